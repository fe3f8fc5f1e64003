"""A metric: whether the first number in the generation is correct."""

from __future__ import annotations

import re
from collections.abc import Sequence


def first_number(text: str, references: Sequence[str]) -> float:
    """Return 1 if the first number in the text is a reference, else 0."""
    number = re.search(r"\d+", text)
    return float(number is not None and number[0] in references)
