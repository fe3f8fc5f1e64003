"""Sanitize untrusted text for terminals and reports: no control characters, no bidirectional overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
"""Line ends, terminal control characters and lone surrogates."""
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Bidirectional control characters: one in a name would reorder the numbers after it."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Both, except line ends and tabs."""


def single_line(text: str) -> str:
    """Return ``text`` as one line without control or bidirectional characters."""
    return _BIDI.sub("", _CONTROL.sub(" ", text)).strip()


def escape_control_chars(text: str) -> str:
    """Return ``text`` with control and bidirectional characters replaced by escapes; line breaks are kept."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def pluralize(number: int, what: str) -> str:
    """Return a number with its noun: ``1 cell``, ``1,024 cells``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def describe_parameters(parameters: Mapping[str, object]) -> str:
    """Return parameters of a method as text: ``group 4, window 128``; without any, that they are its own."""
    return ", ".join(f"{name} {value}" for name, value in parameters.items()) or "its own"
