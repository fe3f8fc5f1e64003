"""Scores: pure functions from a model's text and the references to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longctx_bench.errors import UserError, near_miss


@dataclass(frozen=True)
class Metric:
    """A scoring rule and what is known of its future."""

    name: str
    score: Callable[[str, Sequence[str]], float]
    settled: Callable[[str, Sequence[str]], bool]
    """True when no continuation of the text can change the score: decoding may stop."""
    is_rate: bool
    """True when every score is 0 or 1, so that the mean is a success rate."""
    reproduces: str
    """The upstream function that it equals."""


def string_match_all(text: str, references: Sequence[str]) -> float:
    """Return the share of references that occur in the text, whatever their case."""
    lowered = text.lower()
    return sum(reference.lower() in lowered for reference in references) / len(references)


def string_match_part(text: str, references: Sequence[str]) -> float:
    """Return 1 when any reference occurs in the text, whatever its case."""
    lowered = text.lower()
    return float(any(reference.lower() in lowered for reference in references))


def _all_found(text: str, references: Sequence[str]) -> bool:
    # What has been written stays in the text, so a substring once found is found for good.
    return string_match_all(text, references) == 1.0


def _one_found(text: str, references: Sequence[str]) -> bool:
    return string_match_part(text, references) == 1.0


_RULER = "NVIDIA/RULER scripts/eval/synthetic/constants.py"

METRICS = {
    metric.name: metric
    for metric in (
        Metric("string_match_all", string_match_all, _all_found, False, f"{_RULER} string_match_all"),
        Metric("string_match_part", string_match_part, _one_found, True, f"{_RULER} string_match_part"),
    )
}


def metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is no such metric.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'{near_miss(name, METRICS)}")
    return METRICS[name]
