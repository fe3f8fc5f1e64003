"""Escaping of untrusted text in the page: inert JSON, scripts, CSP hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

_ACTIVE = re.compile(
    "[<>&\u2028\u2029"
    "\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufff9-\uffff]"
)
"""Characters that open or close an element, end a line of a script, reorder or hide text, or are not text."""


def inert_json(value: Any) -> str:
    r"""Return JSON that is inert anywhere in an HTML page.

    Characters with a meaning in HTML, in scripts or for the reader (``<``, ``>``, ``&``, line separators, controls,
    bidirectional marks, lone surrogates) are written as ``\u00XX``; parsing gives the same value.

    Args:
        value: JSON-serialisable; numbers must be finite.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def script_text(code: str) -> str:
    """Return JavaScript that can be embedded in a ``<script>`` element.

    ``<!--`` and ``<script`` change how an HTML parser finds the end of a script. In valid programs they occur only in
    strings and regular expressions, where the escape means the same character.
    """
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", code, flags=re.IGNORECASE)


def source_hash(text: str) -> str:
    """Return a script's or style's hash as a Content-Security-Policy names it (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
