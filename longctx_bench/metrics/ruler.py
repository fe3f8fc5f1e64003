"""RULER's metrics: whether the references occur in the text."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.metrics.base import Metric


def string_match_all(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Return the fraction of references that occur in the text, case-insensitively."""
    lowered = text.lower()
    return sum(reference.lower() in lowered for reference in references) / len(references)


def string_match_part(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Return 1 if any reference occurs in the text, case-insensitively, else 0."""
    lowered = text.lower()
    return float(any(reference.lower() in lowered for reference in references))


def _all_found(text: str, references: Sequence[str]) -> bool:
    # Text is only ever appended, so a substring that was found once stays found.
    return string_match_all(text, references) == 1.0


def _one_found(text: str, references: Sequence[str]) -> bool:
    return string_match_part(text, references) == 1.0


_UPSTREAM = "NVIDIA/RULER scripts/eval/synthetic/constants.py"

RULER_METRICS = (
    Metric("string_match_all", string_match_all, _all_found, False, f"{_UPSTREAM} string_match_all"),
    Metric("string_match_part", string_match_part, _one_found, True, f"{_UPSTREAM} string_match_part"),
)
