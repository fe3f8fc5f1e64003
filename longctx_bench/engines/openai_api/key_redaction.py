"""Redaction of the API key, in case a server repeats it in a response."""

from __future__ import annotations

import re

_MASK = "[key]"
_MIN_SECRET_LENGTH = 12
"""Characters of a key that is redacted in generated text: shorter ones are placeholders (``EMPTY``, ``none``), and a
model may generate those words."""


class ApiKey:
    """An API key (or None), and its redaction."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        # Verbatim, and as JSON may escape it: \/ for a slash, \u002d for any character.
        forms = (f"(?:\\\\?{re.escape(character)}|(?i:\\\\u{ord(character):04x}))" for character in key or "")
        self._pattern = re.compile("".join(forms)) if key else None

    def masked(self, text: str) -> str:
        """Return a message or a name with the key redacted."""
        return self._pattern.sub(_MASK, text) if self._pattern else text

    def masked_in_answer(self, text: str) -> str:
        """Return generated text with the key redacted, if it is long enough to be a secret."""
        return text.replace(self.key, _MASK) if self.key and len(self.key) >= _MIN_SECRET_LENGTH else text
