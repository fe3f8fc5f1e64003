"""Putting untrusted text into a page: JSON that no HTML parser sees through, scripts that no text can end."""

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
"""What ends or opens an element, ends a line of a script, reorders or hides what stands around it, or is no text."""


def inert_json(value: Any) -> str:
    r"""Return JSON that stays data wherever it stands in a page.

    Each character that means something to an HTML parser, a script or a reader's eye (``<``, ``>``, ``&``, line
    separators, controls, bidirectional marks, lone surrogates) is written as ``\u00XX``; reading the JSON gives the
    same value back.

    Args:
        value: of what JSON knows; numbers must be finite.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def script_text(code: str) -> str:
    """Return JavaScript that an HTML parser reads to its end.

    ``<!--`` and ``<script`` change how a parser looks for the end of a script. Both are found only inside strings
    and regular expressions of a program that works, where the escape stands for the same character.
    """
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", code, flags=re.IGNORECASE)


def source_hash(text: str) -> str:
    """Return a script's or style's hash as a Content-Security-Policy names it (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
