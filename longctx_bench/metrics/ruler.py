"""RULER's scores: is the reference in the text?"""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.metrics.base import Metric


def string_match_all(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Return the share of references that occur in the text, whatever their case."""
    lowered = text.lower()
    return sum(reference.lower() in lowered for reference in references) / len(references)


def string_match_part(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Return 1 when any reference occurs in the text, whatever its case."""
    lowered = text.lower()
    return float(any(reference.lower() in lowered for reference in references))


def _all_found(text: str, references: Sequence[str]) -> bool:
    # What has been written stays in the text, so a substring once found is found for good.
    return string_match_all(text, references) == 1.0


def _one_found(text: str, references: Sequence[str]) -> bool:
    return string_match_part(text, references) == 1.0


_UPSTREAM = "NVIDIA/RULER scripts/eval/synthetic/constants.py"

RULER_METRICS = (
    Metric("string_match_all", string_match_all, _all_found, False, f"{_UPSTREAM} string_match_all"),
    Metric("string_match_part", string_match_part, _one_found, True, f"{_UPSTREAM} string_match_part"),
)
