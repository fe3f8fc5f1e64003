"""LongRoPE's search: one factor per rotary pair, by evolution (Ding et al. 2024, arXiv 2402.13753).

As in LongRoPE2 (Shang et al. 2025, arXiv 2502.20082), fitness is the loss of the answers of needle prompts alone. Lists
are monotonic: no pair is slowed down more than a slower one. Left out are LongRoPE's first tokens without scaling,
which a config cannot express, and LongRoPE2's search for the critical pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from longctx_bench.analysis.calibration.calibrate import store_fit
from longctx_bench.analysis.calibration.objectives import Objective
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.rope_frequencies import inverse_frequencies
from longctx_bench.methods.rope_scaling import NTK, PI, LongRoPE, RoPE, YaRN
from longctx_bench.models.metadata import TUNED_PARAMETERS
from longctx_bench.models.variant import ModelUnderTest

STEPS = 100
"""Steps of a factor between 1 and 2."""
_MAX_FACTOR = 1.25
"""Maximum factor of a pair, as a multiple of the extension factor."""
_RATE = 0.3
"""Probability that a mutation redraws a factor, or that a crossover takes the other parent's."""
_TRIES = 100
"""Attempts to make a list that was not measured before."""

Steps = tuple[int, ...]
"""A list of factors in steps of 1 / :data:`STEPS`, from the fastest pair on, none below the one before it."""


@dataclass(frozen=True)
class Budget:
    """Size of a search; the defaults are the authors'."""

    population: int = 64
    """Lists in the first generation."""
    generations: int = 40
    """After the first. In each, the better half of the population has as many children."""

    @property
    def evaluations(self) -> int:
        """Lists that are measured at each scale, at most."""
        return self.population + self.generations * 2 * self.children

    @property
    def children(self) -> int:
        """New lists in a generation by mutation, and as many by crossover."""
        return self.population // 4


@dataclass(frozen=True)
class SearchPoint:
    """The best list after a generation."""

    scale: float
    generation: int
    evaluations: int
    """So far, at this scale."""
    loss: float


@dataclass(frozen=True)
class FactorSearch:
    """The result of a search."""

    table: dict[float, tuple[float, ...]]
    """Factors by scale, one per rotary pair, the fastest first."""
    starts: dict[float, dict[str, float]]
    """Loss with the lists that the search starts from, by scale and method."""
    points: list[SearchPoint]


def longrope_with(factors: Sequence[float]) -> LongRoPE:
    """Return LongRoPE with one list for all lengths."""
    return LongRoPE(short_factor=tuple(factors), long_factor=tuple(factors))


def search_factors(
    base: BaseModelInfo,
    objective: Objective,
    scales: Sequence[float],
    n: int,
    budget: Budget,
    seed: int,
    tell: Callable[[SearchPoint], None],
) -> FactorSearch:
    """Search a list of factors at each scale, from those of PI, NTK and YaRN on.

    The first generation is those three and mutations of them. Each later one has mutations and crossovers of the better
    half of those before it. No list is measured twice.

    Args:
        base: the checkpoint's properties.
        objective: what to maximise.
        scales: extension factors, each above 1.
        n: examples of each kind per list.
        budget: how many lists.
        seed: of the mutations and crossovers.
        tell: called after each generation with the best list so far.

    Raises:
        UserError: the base has no rotary positions that LongRoPE can change, or no score of a generation is finite.
    """
    table: dict[float, tuple[float, ...]] = {}
    starts: dict[float, dict[str, float]] = {}
    points: list[SearchPoint] = []
    for scale in scales:
        length = round(scale * base.training_context)

        def score(steps: Steps, length: int = length) -> float:
            return objective.score(ModelUnderTest(base, longrope_with(_factors(steps)), length), n)

        evolution = _Evolution(score, round(_MAX_FACTOR * scale * STEPS), Random(f"{seed} {scale:g}"))
        starts[scale] = {name: -evolution.measure(factors) for name, factors in starting_lists(base, length).items()}
        for generation in range(budget.generations + 1):
            if generation:
                evolution.breed(budget)
            else:
                evolution.populate(budget.population)
            best = evolution.best(1)[0]
            if not math.isfinite(evolution.scores[best]):
                raise UserError(f"calibrate --search at {scale:g}x: no loss is finite; nothing is written")
            points.append(SearchPoint(scale, generation, len(evolution.scores), -evolution.scores[best]))
            tell(points[-1])
        table[scale] = _factors(best)
    return FactorSearch(table, starts, points)


def starting_lists(base: BaseModelInfo, length: int) -> dict[str, list[float]]:
    """Return the factors of PI, NTK and YaRN at a length, one per rotary pair.

    Raises:
        UserError: one of them cannot be applied to the base.
    """
    plain, _ = inverse_frequencies(base, RoPE(), length)
    methods: tuple[Method, ...] = (PI(), NTK(), YaRN())
    return {
        method.component_id(): [a / b for a, b in zip(plain, inverse_frequencies(base, method, length)[0], strict=True)]
        for method in methods
    }


class _Evolution:
    """A population of lists with their scores, and the next generations of it."""

    def __init__(self, score: Callable[[Steps], float], max_steps: int, random: Random) -> None:
        self.scores: dict[Steps, float] = {}
        """Score of each measured list, in the order of measurement."""
        self._score = score
        self._max_steps = max_steps
        """Maximum of a factor, in steps."""
        self._random = random

    def measure(self, factors: Sequence[float]) -> float:
        """Measure a list from elsewhere, rounded to steps and made monotonic; return its score."""
        steps, previous = [], STEPS
        for factor in factors:
            previous = max(previous, min(self._max_steps, round(factor * STEPS)))
            steps.append(previous)
        self._add(tuple(steps))
        return self.scores[tuple(steps)]

    def populate(self, size: int) -> None:
        """Add mutations of the present lists, of each in turn, until there are ``size`` lists."""
        parents = list(self.scores)
        for index in range(size - len(parents)):
            self._add(self._mutation(parents[index % len(parents)]))

    def breed(self, budget: Budget) -> None:
        """Add the children of the better half of a population."""
        parents = self.best(max(2, budget.population // 2))
        for _ in range(budget.children):
            self._add(self._mutation(self._random.choice(parents)))
        for _ in range(budget.children):
            self._add(self._crossover(*self._random.sample(parents, 2)))

    def best(self, count: int) -> list[Steps]:
        """Return the best lists so far; of equal ones those that were measured first."""
        return sorted(self.scores, key=lambda steps: -self.scores[steps])[:count]

    def _add(self, steps: Steps | None) -> None:
        if steps is not None and steps not in self.scores:
            score = self._score(steps)
            self.scores[steps] = score if math.isfinite(score) else -math.inf

    def _mutation(self, parent: Steps) -> Steps | None:
        """Return the parent with some factors redrawn between their neighbours; None if all such were measured."""

        def mutated() -> Steps:
            child = [STEPS, *parent, self._max_steps]
            for pair in range(1, len(child) - 1):
                if self._random.random() < _RATE:
                    child[pair] = self._random.randint(child[pair - 1], child[pair + 1])
            return tuple(child[1:-1])

        return self._new(mutated)

    def _crossover(self, a: Steps, b: Steps) -> Steps | None:
        """Return the first list with some factors of the second, where it stays monotonic; else a mutation of it."""

        def crossed() -> Steps:
            child = [STEPS, *a, self._max_steps]
            for pair, step in enumerate(b, 1):
                if self._random.random() < _RATE and child[pair - 1] <= step <= child[pair + 1]:
                    child[pair] = step
            return tuple(child[1:-1])

        return self._new(crossed) or self._mutation(a)

    def _new(self, make: Callable[[], Steps]) -> Steps | None:
        return next((child for _ in range(_TRIES) if (child := make()) not in self.scores), None)


def _factors(steps: Steps) -> tuple[float, ...]:
    return tuple(step / STEPS for step in steps)


def write_factors(
    folder: Path,
    objective: Objective,
    search: FactorSearch,
    budget: Budget,
    n: int,
    seed: int,
    shares_found: dict[float, float],
) -> Path:
    """Add the lists and how they were found to ``calibration.json``, where ``longrope`` finds them.

    Raises:
        UserError: the folder cannot be written.
    """
    method = LongRoPE.component_id()
    lists = {f"{scale:g}": {"short_factor": best, "long_factor": best} for scale, best in search.table.items()}
    last = {point.scale: point for point in search.points}
    return store_fit(folder, (TUNED_PARAMETERS, method, objective.name), {
        "method": method,
        "table": lists,
        "data": f"{objective.data}, {n} of each",
        "budget": {
            **asdict(budget), "evaluations": {f"{scale:g}": point.evaluations for scale, point in last.items()},
        },
        "seed": seed,
        "starts": {f"{scale:g}": losses for scale, losses in search.starts.items()},
        "retrieval": {f"{scale:g}": round(share, 4) for scale, share in shares_found.items()},
        "made": {"at": provenance.now(), **provenance.environment()},
        "search": [asdict(point) for point in search.points],
    })  # fmt: skip
