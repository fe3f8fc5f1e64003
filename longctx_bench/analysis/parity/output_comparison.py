"""Comparison of two engines' outputs for the same prompts: greedy tokens, log-probabilities, rotary frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

FREQUENCY = {"float32": 1e-5, "bfloat16": 1e-2}
"""Largest relative difference of a rotary frequency: a few units in the last place of the tables' dtype."""


@dataclass(frozen=True)
class Generation:
    """An engine's continuation of one prompt."""

    tokens: list[int]
    steps: list[dict[int, float]]
    """Log-probabilities of the most likely tokens at each step."""


@dataclass(frozen=True)
class Rotation:
    """The rotary embedding of queries and keys."""

    frequencies: list[float]
    """Radians per token, by pair of dimensions; all 0 without positions."""
    factor: float
    """Attention factor: what cos and sin are multiplied by."""


@dataclass(frozen=True)
class Tolerance:
    """Differences that still count as equal."""

    first_token: float = 5e-3
    """Nats, of a first token's log-probability: rounding alone causes as much, as between fp32 and fp64."""
    gap: float = 1e-3
    """Nats, between two candidates where the engines chose differently: a tie that rounding may break."""
    equal_share: float = 0.99
    """Share of the prompts whose greedy tokens must all be equal."""


def compare_outputs(
    reference: tuple[Sequence[Generation], Rotation | None],
    other: tuple[Sequence[Generation], Rotation | None],
    tolerance: Tolerance,
    dtype: str,
) -> dict[str, Any]:
    """Compare two engines' outputs for the same prompts, in the same order, and their rotations.

    Returns:
        One length's section of a certificate; ``passed`` is True when frequencies, first log-probabilities and greedy
        tokens are within the tolerance and each difference of tokens is a near tie for the reference.
    """
    (mine, rotation), (theirs, other_rotation) = reference, other
    rotary = _compare_rotations(rotation, other_rotation, FREQUENCY[dtype])
    first_differences = [first_difference(a.steps[0], b.steps[0]) for a, b in zip(mine, theirs, strict=True)]
    differences = []
    for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.tokens != b.tokens:
            differences.append({"prompt": index} | explain(a, b, tolerance.gap))
    share = 1 - len(differences) / len(mine)
    passed = (
        rotary["same"] is not False
        and max(first_differences) <= tolerance.first_token
        and share >= tolerance.equal_share
        and all(difference["explained"] for difference in differences)
    )
    return {
        "passed": passed,
        "prompts": len(mine),
        "rotary": rotary,
        "first_token": {"largest_difference": max(first_differences)},
        "greedy": {"equal_share": share, "differences": differences},
    }


def explain(mine: Generation, theirs: Generation, tolerance: float) -> dict[str, Any]:
    """Return where two greedy outputs diverge and how close the candidates were for the first engine.

    Returns:
        The step, both tokens (None where one had ended), both engines' gaps between the two candidates in nats, None
        where a candidate was not among the kept ones; ``explained`` is True when the first engine's gap is known and
        below the tolerance.
    """
    pairs = zip_longest(mine.tokens, theirs.tokens)
    step, (my_token, their_token) = next((position, pair) for position, pair in enumerate(pairs) if pair[0] != pair[1])
    my_gap, their_gap = (_gap(answer, step, my_token, their_token) for answer in (mine, theirs))
    explained = my_gap is not None and my_gap < tolerance
    return {
        "step": step,
        "hf": my_token,
        "vllm": their_token,
        "hf_gap": my_gap,
        "vllm_gap": their_gap,
        "explained": explained,
    }


def _gap(answer: Generation, step: int, a: int | None, b: int | None) -> float | None:
    logprobs = answer.steps[step] if step < len(answer.steps) else {}
    if a not in logprobs or b not in logprobs:
        return None
    return abs(logprobs[a] - logprobs[b])


def rotation_of(rows: list[list[float]] | None) -> Rotation | None:
    """Return the rotation of a cos/sin table's row for position 1 (cos in its first half); None without a table."""
    if rows is None:
        return None
    [row] = rows
    half = len(row) // 2
    pairs = list(zip(row[:half], row[half:], strict=True))
    return Rotation([math.atan2(sin, cos) for cos, sin in pairs], math.hypot(*pairs[0]))


def _compare_rotations(mine: Rotation | None, theirs: Rotation | None, tolerance: float) -> dict[str, Any]:
    """Compare two rotations; frequencies below 1e-20 radians per token count as none."""
    zeros = [0.0] * len((mine or theirs or Rotation([], 1.0)).frequencies)
    a, b = mine or Rotation(zeros, 1.0), theirs or Rotation(zeros, 1.0)
    pairs = [(x, y) for x, y in zip(a.frequencies, b.frequencies, strict=True) if max(abs(x), abs(y)) > 1e-20]
    largest = max((abs(x - y) / max(abs(x), abs(y)) for x, y in pairs), default=0.0)
    largest = max(largest, abs(a.factor - b.factor) / a.factor)
    comparison = {"positions": bool(pairs), "largest_relative_difference": largest, "factor": [a.factor, b.factor]}
    return {"same": largest <= tolerance} | comparison


def first_difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Return the largest difference over the five tokens most likely by the first."""
    most_likely = sorted(mine, key=lambda token: -mine[token])[:5]
    return max(abs(mine[token] - theirs[token]) if token in theirs else math.inf for token in most_likely)
