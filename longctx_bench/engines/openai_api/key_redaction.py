"""A server's key kept out of what is printed and stored, should the server repeat it."""

from __future__ import annotations

import re

_MASK = "[key]"
_SHORTEST = 12
"""Characters of a key that is masked in what a model wrote: shorter ones are placeholders (``EMPTY``, ``none``), and a
model may write those words by itself."""


class ApiKey:
    """A key (None where there is none), and text without it."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        # As it stands, and as JSON may write it: \/ for a slash, \u002d for any character.
        forms = (f"(?:\\\\?{re.escape(character)}|(?i:\\\\u{ord(character):04x}))" for character in key or "")
        self._pattern = re.compile("".join(forms)) if key else None

    def masked(self, text: str) -> str:
        """Return a message or a name with the key replaced."""
        return self._pattern.sub(_MASK, text) if self._pattern else text

    def masked_in_answer(self, text: str) -> str:
        """Return what a model wrote with the key replaced, where that is long enough to be a secret."""
        return text.replace(self.key, _MASK) if self.key and len(self.key) >= _SHORTEST else text
