"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Scorer(Protocol):
    """A pure function from a model's text and its answer key to a score."""

    def __call__(self, text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
        """Return the score; ``classes`` are all the names that the model could choose from, where it had to choose."""
        ...


@dataclass(frozen=True)
class Metric:
    """A scoring rule and what is known of its future."""

    name: str
    score: Scorer
    settled: Callable[[str, Sequence[str]], bool]
    """True when no continuation of the text can change the score: decoding may stop."""
    is_rate: bool
    """True when every score is 0 or 1, so that the mean is a success rate."""
    reproduces: str
    """The upstream function that it equals."""
    percent: bool = True
    """True when the score is shown as per cent."""
    higher_is_better: bool = True
    version: int = 1
    """Raised when the same text comes to get another score, so that cells are measured again."""


def never(text: str, references: Sequence[str]) -> bool:
    """Return False: each further word may change the score."""
    return False
