"""Text that stays in its line and its place, whoever chose it."""

from __future__ import annotations

import re

_BREAKING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Ends of lines, and what terminals take as commands."""
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks of the writing direction: one in a name would turn the numbers behind it around."""


def plain(text: str) -> str:
    """Return ``text`` as one line, without what moves the text around it."""
    return _TURNING.sub("", _BREAKING.sub(" ", text)).strip()
