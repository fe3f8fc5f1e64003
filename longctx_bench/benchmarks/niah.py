"""Needle in a haystack: RULER's eight variants and the DroPE paper's protocol, from one generator."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import gcd
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from longctx_bench.benchmarks import haystack
from longctx_bench.benchmarks.base import IndexedBenchmark, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.benchmarks.ruler.word_lists import adjective_noun, uuid4
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import Source
from longctx_bench.core.types import Example

Kind = Literal["words", "numbers", "uuids"]

_RULER_DEPTHS = [round(100 * point / 39) for point in range(40)]
"""RULER draws depths without replacement from these 40 points."""


class NeedleInAHaystack(IndexedBenchmark):
    """Needle in a haystack: key-value sentences hidden in text (RULER, arXiv 2404.06654, section 3)."""

    id: ClassVar[str] = "needle-in-a-haystack"
    references_from_data: ClassVar[bool] = False
    grid: ClassVar[str | None] = "depth_grid"

    haystack: Literal["essay", "noise", "needle"] = "essay"
    essays: Source | None = None
    """Source of the essays; only for the essay haystack."""
    keys: int = Field(default=1, ge=1)
    values: int = Field(default=1, ge=1)
    """Values (and so needles) per key."""
    queries: int = Field(default=1, ge=1)
    key_type: Kind = "words"
    value_type: Kind = "numbers"
    depth_grid: int | None = Field(default=None, ge=2)
    """Number of depths from 0 to 100 %: any k consecutive examples cover all (:func:`grid_depth`). Default: random."""
    one_text: bool = False
    """Use the same haystack for all depths of a grid, so that engines can share prompt prefixes (prefix sharing)."""

    @model_validator(mode="after")
    def _consistent(self) -> NeedleInAHaystack:
        if self.queries > self.keys:
            raise ValueError(f"queries ({self.queries}) cannot exceed keys ({self.keys})")
        if self.haystack == "essay" and self.essays is None:
            raise ValueError("an essay haystack needs 'essays', the name of a data source")
        if self.depth_grid and self.keys * self.values > 1:
            raise ValueError("depth_grid is for a single needle")
        if self.one_text and not self.depth_grid:
            raise ValueError("one_text goes with a depth_grid")
        return self

    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Return one example of at most ``length`` and more than ``length - haystack.WINDOW`` tokens."""
        rng = random.Random(f"needles {seed} {index}")
        keys = [_draw(self.key_type, rng) for _ in range(self.keys)]
        answers = [[_draw(self.value_type, rng) for _ in range(self.values)] for _ in keys]
        needles = [self._needle(key, value) for key, values in zip(keys, answers, strict=True) for value in values]
        queried = rng.sample(range(self.keys), self.queries)
        rng.shuffle(needles)
        depths = self._depths(rng, len(needles), index)
        prompt_template, answer_template, kind = self._templates()
        slots = {"type_needle_v": kind, "query": prompt_templates.enumerate_queries([keys[i] for i in queried])}
        answer_prefix = answer_template.format(**slots)
        shared = f"text {seed} {index // self.depth_grid}" if self.one_text and self.depth_grid else None
        text = _Haystack(self, random.Random(shared) if shared else rng, needles, depths)

        def prompt(units: int) -> str:
            return prompt_template.format(context=text.context(units), **slots)

        budget = length - max_new_tokens
        units, n_tokens = haystack.fit_to_budget(
            lambda units: encoder.count(prompt(units), answer_prefix),
            budget,
            haystack.WINDOW,
            text.min_units,
            text.guess(budget),
            f"needles in {self.haystack} at {length}",
        )
        if budget - n_tokens >= haystack.WINDOW:
            # No further whole needle fits (a uuid needle takes about 90 tokens): fill up with noise sentences.
            text.closing = haystack.noise_sentences(encoder, budget - n_tokens - haystack.WINDOW // 4)
            n_tokens = encoder.count(prompt(units), answer_prefix)
        return Example(
            id=example_id(index),
            prompt=prompt(units),
            answer_prefix=answer_prefix,
            references=tuple(value for i in queried for value in answers[i]),
            depths=tuple(depths) if self.depth_grid else text.needle_depths(units),
            n_tokens=n_tokens,
            max_new_tokens=max_new_tokens,
        )

    def expected_completion(self, references: Sequence[str]) -> str:
        """Join the values as the question joins its keys."""
        return prompt_templates.enumerate_queries(list(references))

    def _needle(self, key: str, value: str) -> str:
        return prompt_templates.NEEDLE.format(type_needle_v=self.value_type, key=key, value=value)

    def _templates(self) -> tuple[str, str, str]:
        """Return prompt template, answer-prefix template and the word for the values; singular for a single value."""
        if self.queries * self.values > 1:
            return prompt_templates.NIAH_PROMPT, prompt_templates.NIAH_ANSWER, self.value_type
        return (
            prompt_templates.singular(prompt_templates.NIAH_PROMPT),
            prompt_templates.singular(prompt_templates.NIAH_ANSWER),
            self.value_type[:-1],
        )

    def _depths(self, rng: random.Random, needles: int, index: int) -> list[float]:
        if self.depth_grid:
            return [grid_depth(index, self.depth_grid)]
        return [float(depth) for depth in sorted(rng.sample(_RULER_DEPTHS, needles))]


def grid_depth(index: int, points: int) -> float:
    """Return the depth in percent of example ``index`` on a grid of ``points`` depths from 0 to 100.

    Every ``points`` consecutive examples visit each depth once, in strides, so that the first few are far apart.
    """
    stride = next(step for step in range(round(0.618 * points), 2 * points) if gcd(step, points) == 1)
    return round(100 * ((points // 2 + index * stride) % points) / (points - 1), 2)


class _Haystack:
    """One example's haystack at any size; the random draws do not depend on the size."""

    def __init__(self, task: NeedleInAHaystack, rng: random.Random, needles: list[str], depths: list[float]) -> None:
        self.kind = task.haystack
        self.needles = needles
        self.depths = depths
        self.closing: list[str] = []
        # Cached, because the size that was counted last is usually the one that is used.
        self._latest: tuple[tuple[int, int], str] = ((-1, 0), "")
        self.min_units = len(needles) if self.kind == "essay" else 0
        self._rng = random.Random(rng.random())
        self._lines: list[str] = []
        self._task = task
        if self.kind == "essay":
            assert task.essays is not None
            self._essays = fetch(task.essays)
            self._start = rng.randrange(len(haystack.essay_words(self._essays)))

    def guess(self, budget: int) -> int:
        """Return a first guess at the number of units: an essay word has 1.25 tokens, a line 25 or 85."""
        free = max(1, budget - 120)
        if self.kind == "essay":
            return int(free / 1.25)
        return int(free / (25 if self._task.key_type != "uuids" else 85))

    def context(self, units: int) -> str:
        """Return the text with all needles at their depths."""
        key = (units, len(self.closing))
        if self._latest[0] != key:
            segments, joiner = self._segments(units)
            for needle, index in reversed(list(zip(self.needles, self._insert_indices(segments), strict=True))):
                segments.insert(index, needle)
            self._latest = key, joiner.join(segments + self.closing)
        return self._latest[1]

    def needle_depths(self, units: int) -> tuple[float, ...]:
        """Return the start of each needle in percent of the context's characters, in text order."""
        context = self.context(units)
        starts = sorted(context.index(needle) for needle in self.needles)
        return tuple(round(100 * start / len(context), 2) for start in starts)

    def _segments(self, units: int) -> tuple[list[str], str]:
        if self.kind == "essay":
            return haystack.excerpt_sentences(self._essays, self._start, units), " "
        if self.kind == "noise":
            return [prompt_templates.NOISE] * units, "\n"
        task = self._task
        while len(self._lines) < units:
            key = _draw(task.key_type, self._rng)
            self._lines.append(task._needle(key, _draw(task.value_type, self._rng)))
        return self._lines[:units], "\n"

    def _insert_indices(self, segments: list[str]) -> list[int]:
        """Return the gaps between segments that are nearest to the depths, measured in characters."""
        ends = list(accumulate((len(segment) + 1 for segment in segments), initial=0))
        indices = []
        for depth in self.depths:
            target = ends[-1] * depth / 100
            index = bisect_left(ends, target)
            previous_is_nearer = index > 0 and target - ends[index - 1] < ends[index] - target
            indices.append(index - 1 if previous_is_nearer else index)
        return indices


def _draw(kind: Kind, rng: random.Random) -> str:
    """Draw a key or a value: an adjective-noun pair, a 7-digit number or a random uuid4."""
    if kind == "words":
        return adjective_noun(rng)
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    return uuid4(rng)
