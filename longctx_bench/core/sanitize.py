"""Text that stays in its line and its place, whoever chose it: no terminal takes it for a command."""

from __future__ import annotations

import re

_BREAKING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
"""Ends of lines, what terminals take as commands, and halves of characters."""
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks of the writing direction: one in a name would turn the numbers behind it around."""

_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Both, but for ends of lines and tabs; and halves of characters, which no stream takes."""


def single_line(text: str) -> str:
    """Return ``text`` as one line, without what moves the text around it."""
    return _TURNING.sub("", _BREAKING.sub(" ", text)).strip()


def escape_control_chars(text: str) -> str:
    """Return ``text`` in its lines, with what would move the cursor or the text around it written as escapes."""
    return _ACTIVE.sub(lambda found: repr(found[0])[1:-1], text)


def pluralize(number: int, what: str) -> str:
    """Return a number with its noun: ``1 cell``, ``1,024 cells``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
