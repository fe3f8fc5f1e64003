"""Metrics: a scoring function with its metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from inspect import signature
from typing import Any, Protocol

from longctx_bench.core.deprecation import warn_renamed
from longctx_bench.core.errors import UserError


class Scorer(Protocol):
    """A pure function from a generation and its references to a score."""

    def __call__(self, text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
        """Return the score; ``classes`` are all class names of a classification task, empty for other tasks."""
        ...


def never_final(text: str, references: Sequence[str]) -> bool:
    """Return False: more text may always change the score."""
    return False


@dataclass(frozen=True)
class Metric:
    """A scoring function and how its scores are read."""

    name: str
    score: Scorer
    is_final: Callable[[str, Sequence[str]], bool] = never_final
    """Stopping criterion: true when no continuation of the text can change the score, so that decoding may stop."""
    is_rate: bool = False
    """True when every score is 0 or 1, so that the mean is a success rate."""
    reference_implementation: str = ""
    """The upstream function whose scores it equals; empty where there is none."""
    percent: bool = True
    """True when the score is shown as a percentage."""
    higher_is_better: bool = True
    version: int = 1
    """To be raised when the same text gets another score, so that cells are measured again."""
    settled: InitVar[Callable[[str, Sequence[str]], bool] | None] = None
    """Deprecated: ``is_final``."""
    reproduces: InitVar[str | None] = None
    """Deprecated: ``reference_implementation``."""

    def __post_init__(self, settled: Callable[[str, Sequence[str]], bool] | None, reproduces: str | None) -> None:
        for old, new, value in (
            ("settled", "is_final", settled),
            ("reproduces", "reference_implementation", reproduces),
        ):
            if value is not None:
                warn_renamed(f"Metric({old}=...)", new)
                object.__setattr__(self, new, value)


def as_metric(value: Any, name: str) -> Metric:
    """Return a Metric as it is, or wrap a function of text and references that returns a score in [0, 1].

    Raises:
        UserError: ``value`` is neither.
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

    return Metric(name, score)
