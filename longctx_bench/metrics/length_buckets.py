"""Scores by the length of the documents: relative to the training context, and LongBench-E's word counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longctx_bench.core.types import NATURAL


@dataclass(frozen=True, slots=True)
class ScoredExample:
    """One example's score and how long its document was."""

    score: float
    prompt_tokens: int
    words: int | None


@dataclass(frozen=True)
class Bucket:
    """A range of lengths."""

    name: str
    low: float
    high: float
    """Not in the bucket any more."""


BY_CONTEXT = (
    Bucket("0-2x", 0, 2),
    Bucket("2-4x", 2, 4),
    Bucket("4-8x", 4, 8),
    Bucket("8-16x", 8, 16),
    Bucket("16x+", 16, float("inf")),
)
"""Multiples of the training context: those of Tables 8 and 9 of arXiv 2512.12167, and what is longer."""
BY_WORDS = (Bucket("0-4k words", 0, 4000), Bucket("4-8k words", 4000, 8000), Bucket("8k+ words", 8000, float("inf")))
"""LongBench-E's (THUDM/LongBench LongBench/eval.py ``scorer_e``)."""


def buckets_of(task: str, length: int) -> tuple[Bucket, ...]:
    """Return the buckets that a cell's examples are sorted into; none for most tasks."""
    if task.endswith("_e"):
        return BY_WORDS
    return BY_CONTEXT if length == NATURAL else ()


def scores_by_bucket(
    points: Sequence[ScoredExample], buckets: Sequence[Bucket], original_length: int
) -> dict[str, list[float]]:
    """Return the scores in each bucket; points without a word count fall into no bucket of words."""
    size: Callable[[ScoredExample], float | None] = (
        (lambda point: point.words) if buckets is BY_WORDS else (lambda point: point.prompt_tokens / original_length)
    )
    scores: dict[str, list[float]] = {bucket.name: [] for bucket in buckets}
    for point in points:
        value = size(point)
        for bucket in buckets:
            if value is not None and bucket.low <= value < bucket.high:
                scores[bucket.name].append(point.score)
    return scores
