"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

from longctx_bench.core.errors import UserError


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
    settled: Callable[[str, Sequence[str]], bool] = lambda text, references: False
    """True when no continuation of the text can change the score: decoding may stop."""
    is_rate: bool = False
    """True when every score is 0 or 1, so that the mean is a success rate."""
    reproduces: str = ""
    """The upstream function that it equals; empty where there is none."""
    percent: bool = True
    """True when the score is shown as per cent."""
    higher_is_better: bool = True
    version: int = 1
    """Raised when the same text comes to get another score, so that cells are measured again."""


def as_metric(value: Any, name: str) -> Metric:
    """Return a metric as it is; of a function from text and references to a score in [0, 1], a metric of that name.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, Metric):
        return value
    if not callable(value) or isinstance(value, type):
        raise UserError(f"metric '{name}': is neither a Metric nor a function of text and references")
    try:
        takes_classes = "classes" in signature(value).parameters
    except (TypeError, ValueError):
        takes_classes = False

    def score(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
        return float(value(text, references, classes=classes) if takes_classes else value(text, references))

    return Metric(name, score, never, is_rate=False, reproduces="")


def never(text: str, references: Sequence[str]) -> bool:
    """Return False: each further word may change the score."""
    return False
