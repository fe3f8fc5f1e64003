"""What counts as the same: two engines' answers to the same prompts, and the rotations behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

FREQUENCY = {"float32": 1e-5, "bfloat16": 1e-2}
"""Largest relative difference of a rotary frequency: some units of the precision that the tables are held in."""


@dataclass(frozen=True)
class Answer:
    """What an engine wrote after one prompt."""

    tokens: list[int]
    steps: list[dict[int, float]]
    """Log-probabilities of the likeliest tokens before each of its own."""


@dataclass(frozen=True)
class Rotation:
    """How queries and keys are turned."""

    frequencies: list[float]
    """Radians a token by pair of dimensions; all 0 without positions."""
    factor: float
    """What cos and sin are multiplied with."""


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same."""

    first_token: float = 5e-3
    """Nats, of a first token's log-probability: that much is rounding, transformers' own fp32 against its fp64 too."""
    gap: float = 1e-3
    """Nats, between two candidates of which each engine chose another: a tie that rounding may break."""
    equal_share: float = 0.99
    """Of the prompts, whose greedy tokens must all be equal."""


def compare(
    reference: tuple[Sequence[Answer], Rotation | None],
    other: tuple[Sequence[Answer], Rotation | None],
    tolerance: Tolerance,
    dtype: str,
) -> dict[str, Any]:
    """Compare two engines' answers to the same prompts, in the same order, and their rotations.

    Returns:
        One length's section of a certificate; ``passed`` is True when frequencies, first log-probabilities and greedy
        tokens are within the tolerance and each difference of tokens is a near tie for the reference.
    """
    (mine, turned), (theirs, turned_too) = reference, other
    rotary = _rotary(turned, turned_too, FREQUENCY[dtype])
    first = [first_difference(a.steps[0], b.steps[0]) for a, b in zip(mine, theirs, strict=True)]
    differences = []
    for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.tokens != b.tokens:
            differences.append({"prompt": place} | explain(a, b, tolerance.gap))
    share = 1 - len(differences) / len(mine)
    passed = (
        rotary["same"] is not False
        and max(first) <= tolerance.first_token
        and share >= tolerance.equal_share
        and all(difference["explained"] for difference in differences)
    )
    return {
        "passed": passed,
        "prompts": len(mine),
        "rotary": rotary,
        "first_token": {"largest_difference": max(first)},
        "greedy": {"equal_share": share, "differences": differences},
    }


def explain(mine: Answer, theirs: Answer, tolerance: float) -> dict[str, Any]:
    """Say where two greedy answers part and how near a tie it was for the first engine.

    Returns:
        The step, both tokens (None where one had ended), both engines' gaps between the two candidates in nats, None
        where a candidate was not among the kept ones; ``explained`` is True when the first engine's gap is known and
        below the tolerance.
    """
    pairs = zip_longest(mine.tokens, theirs.tokens)
    step, (own, other) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
    gap, gap_too = (_gap(answer, step, own, other) for answer in (mine, theirs))
    explained = gap is not None and gap < tolerance
    return {"step": step, "hf": own, "vllm": other, "hf_gap": gap, "vllm_gap": gap_too, "explained": explained}


def _gap(answer: Answer, step: int, one: int | None, other: int | None) -> float | None:
    known = answer.steps[step] if step < len(answer.steps) else {}
    if one not in known or other not in known:
        return None
    return abs(known[one] - known[other])


def rotation_of(rows: list[list[float]] | None) -> Rotation | None:
    """Return what a table's row for position 1 says: cos in its first half, sin in its second; None without a table."""
    if rows is None:
        return None
    [row] = rows
    half = len(row) // 2
    pairs = list(zip(row[:half], row[half:], strict=True))
    return Rotation([math.atan2(sin, cos) for cos, sin in pairs], math.hypot(*pairs[0]))


def _rotary(mine: Rotation | None, theirs: Rotation | None, tolerance: float) -> dict[str, Any]:
    """Compare two rotations; frequencies below 1e-20 radians a token count as none."""
    still = [0.0] * len((mine or theirs or Rotation([], 1.0)).frequencies)
    a, b = mine or Rotation(still, 1.0), theirs or Rotation(still, 1.0)
    pairs = [(x, y) for x, y in zip(a.frequencies, b.frequencies, strict=True) if max(abs(x), abs(y)) > 1e-20]
    largest = max((abs(x - y) / max(abs(x), abs(y)) for x, y in pairs), default=0.0)
    largest = max(largest, abs(a.factor - b.factor) / a.factor)
    kept = {"positions": bool(pairs), "largest_relative_difference": largest, "factor": [a.factor, b.factor]}
    return {"same": largest <= tolerance} | kept


def first_difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Return the largest difference over the five tokens that the first finds likeliest."""
    likeliest = sorted(mine, key=lambda token: -mine[token])[:5]
    return max(abs(mine[token] - theirs[token]) if token in theirs else math.inf for token in likeliest)
