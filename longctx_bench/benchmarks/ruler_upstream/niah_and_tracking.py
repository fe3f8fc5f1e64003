"""``ruler@paper``: the eight needle-in-a-haystack tasks and variable tracking."""

from __future__ import annotations

import json
import random
import re
import string
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from longctx_bench.benchmarks.haystack import split_sentences
from longctx_bench.benchmarks.ruler import prompt_templates, word_lists
from longctx_bench.benchmarks.ruler_upstream.base import (
    SHORT,
    UpstreamBenchmark,
    UpstreamError,
    UpstreamRun,
    UpstreamSample,
    needle_depths,
)
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import Source

Kind = Literal["words", "numbers", "uuids"]

_DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40))]
_EXAMPLE_LENGTH = 500
"""Tokens that the worked example of variable tracking may take, at any length."""


class UpstreamNeedleInAHaystack(UpstreamBenchmark):
    """scripts/data/synthetic/niah.py: key-value sentences hidden in essays, noise or other needles.

    Its faults: essays always begin at their first word; a prompt that comes out too long loses 500 words at once
    (25 lines of noise or needles; 5 below 4,096 tokens), hence the underfill; sizes below that step are
    never searched, so that with essays it never ends below some 850 to 950 tokens; the needles' order depends on
    their number and the seed alone.
    """

    id: ClassVar[str] = "ruler-upstream-niah"
    references_from_data: ClassVar[bool] = False

    haystack: Literal["essay", "noise", "needle"] = "essay"
    essays: Source | None = None
    """Where the essays come from; needed by the essay haystack alone."""
    keys: int = Field(default=1, ge=1)
    values: int = Field(default=1, ge=1)
    """Values, and so needles, of each key."""
    queries: int = Field(default=1, ge=1)
    key_type: Kind = "words"
    value_type: Kind = "numbers"

    @model_validator(mode="after")
    def _consistent(self) -> UpstreamNeedleInAHaystack:
        if self.queries > self.keys:
            raise ValueError(f"queries ({self.queries}) cannot exceed keys ({self.keys})")
        if self.haystack == "essay" and self.essays is None:
            raise ValueError("an essay haystack needs 'essays', the name of a data source")
        return self

    def title(self) -> str:
        """Name the task in messages."""
        return f"niah ({self.haystack})"

    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Draw samples as generate_samples does."""
        short = 5 if run.length < SHORT else 25
        step = 500 if self.haystack == "essay" else short
        draw = partial(self._draw, run)
        per_unit = run.size(draw(step)) / step
        upper_bound = max(int((run.length / per_unit) * 3), step * 2)
        units = run.largest(lambda units: run.size(draw(units)), step, upper_bound)
        while True:
            yield run.fitting(draw, units, step)

    def _draw(self, run: UpstreamRun, units: int) -> UpstreamSample:
        """Draw one sample as generate_input_output does."""
        keys: list[str] = []
        answers: list[list[str]] = []
        for _ in range(self.keys):
            keys.append(_value(self.key_type, run.rng))
            answers.append([_value(self.value_type, run.rng) for _ in range(self.values)])
        ordered = [self._needle(key, value) for key, values in zip(keys, answers, strict=True) for value in values]
        needles = run.shuffled(ordered)
        if self.haystack == "essay" and self.essays is not None:
            context = _in_essays(run, needles, essay_sentences(fetch(self.essays), units))
        else:
            context = self._in_lines(run, needles, units)
        asked = run.sample(range(self.keys), self.queries)
        templates = [prompt_templates.NIAH_PROMPT, prompt_templates.NIAH_ANSWER]
        kind: str = self.value_type
        if self.queries * self.values == 1:
            templates, kind = [prompt_templates.singular(template) for template in templates], kind[:-1]
        words = {"type_needle_v": kind, "query": prompt_templates.enumerate_queries([keys[key] for key in asked])}
        prompt, answer_prefix = (template.format(context=context, **words) for template in templates)
        outputs = tuple(value for key in asked for value in answers[key])
        return UpstreamSample(prompt, answer_prefix, outputs, needle_depths(context, needles))

    def expected_completion(self, references: Sequence[str]) -> str:
        """Join the values as the question joins its keys."""
        return prompt_templates.enumerate_queries(list(references))

    def _needle(self, key: str, value: str) -> str:
        return prompt_templates.NEEDLE.format(type_needle_v=self.value_type, key=key, value=value)

    def _in_lines(self, run: UpstreamRun, needles: list[str], count: int) -> str:
        if self.haystack == "noise":
            lines = [prompt_templates.NOISE] * count
        else:
            kinds = (self.key_type, self.value_type)
            lines = [self._needle(*(_value(kind, run.rng) for kind in kinds)) for _ in range(count)]
        positions = sorted(run.sample(range(count), len(needles)), reverse=True)
        for position, needle in zip(positions, needles, strict=True):
            lines.insert(position, needle)
        return "\n".join(lines)


class UpstreamVariableTracking(UpstreamBenchmark):
    """scripts/data/synthetic/variable_tracking.py: a chain of assignments in noise, after one worked example.

    Its faults: the search counts the worked example before its names are drawn anew, so that a prompt may come
    out too long and lose ten lines of noise (five below 4,096 tokens); one worked example of 500 tokens serves
    all samples and all lengths, with new names put in by blind replacement; below some 850 tokens it never ends.
    """

    id: ClassVar[str] = "ruler-upstream-variable-tracking"
    references_from_data: ClassVar[bool] = False

    chains: int = Field(default=1, ge=1)
    hops: int = Field(default=4, ge=1, le=10)

    def title(self) -> str:
        """Name the task in messages."""
        return "vt"

    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Draw samples as main and sys_vartrack_w_noise_random do."""
        example = self._example(run.within(_EXAMPLE_LENGTH))
        example_tokens = run.encoder.size(example)
        step = 5 if run.length < SHORT else 10
        draw = partial(self._draw, run)
        units = self._search(run, draw, step, example_tokens)

        def shown(noises: int) -> UpstreamSample:
            draft = draw(noises)
            return replace(draft, prompt=f"{self._renamed(run, example)}\n{draft.prompt}")

        while True:
            yield run.fitting(shown, units, step)

    def expected_completion(self, references: Sequence[str]) -> str:
        """Join the names as the worked example does."""
        return " ".join(references)

    def _example(self, run: UpstreamRun) -> str:
        """Draw the worked example: three-letter names, the value 12345."""
        draw = partial(self._draw, run, worked=True)
        draft = run.fitting(draw, self._search(run, draw, 5, 0), 5)
        return f"{draft.prompt}{draft.answer_prefix} {' '.join(draft.outputs)}\n"

    def _search(self, run: UpstreamRun, draw: Callable[[int], UpstreamSample], step: int, example_tokens: int) -> int:
        per_unit = run.size(draw(step)) / step
        upper_bound = max(int((run.length / per_unit) * 3), step * 2)
        return run.largest(lambda units: run.size(draw(units)) + example_tokens, step, upper_bound)

    def _draw(self, run: UpstreamRun, noises: int, worked: bool = False) -> UpstreamSample:
        """Draw one sample as generate_input_output does."""
        chains = self._chains(run, worked)
        lines = [prompt_templates.NOISE] * noises
        for _, chain in chains:
            positions = sorted(run.sample(range(len(lines)), len(chain)))
            for num_inserted, (position, statement) in enumerate(zip(positions, chain, strict=True)):
                lines.insert(position + num_inserted, statement)
        context = "\n".join(lines)
        names, statements = chains[0]
        words = {"query": statements[0].split("=")[-1].strip(), "num_v": self.hops + 1}
        prompt = prompt_templates.VT_PROMPT.format(context=context, **words)
        hidden = [statement for _, chain in chains for statement in chain]
        return UpstreamSample(
            prompt, prompt_templates.VT_ANSWER.format(**words), tuple(names), needle_depths(context, hidden)
        )

    def _chains(self, run: UpstreamRun, worked: bool) -> list[tuple[list[str], list[str]]]:
        """Draw the names and statements of each chain as generate_chains does.

        Raises:
            UpstreamError: a name came up twice; upstream draws one more, takes it for a further chain, and fails on it.
        """
        count = self.chains * (self.hops + 1)
        names = [_letters(run.rng, 3 if worked else 5) for _ in range(count)]
        while len(set(names)) < count:
            names.append(_letters(run.rng, 3 if worked else 5))
        chains = []
        for first in range(0, count, self.hops + 1):
            chain = names[first : first + self.hops + 1]
            value = "12345" if worked else str(run.numpy.randint(10000, 99999))
            copies = [f"VAR {new} = VAR {old} " for old, new in pairwise(chain)]
            chains.append((chain, [f"VAR {chain[0]} = {value}", *copies]))
        if len(names) > count:
            if not worked:
                run.numpy.randint(10000, 99999)
            raise UpstreamError("gave two variables one name")
        return chains

    def _renamed(self, run: UpstreamRun, example: str) -> str:
        """Give the worked example new names and a new value, as randomize_icl does: by blind replacement."""
        for name in example.strip().split()[-self.hops - 1 :]:
            example = example.replace(name, _letters(run.rng, len(name)))
        return example.replace("12345", str(run.numpy.randint(10000, 99999)))


def _in_essays(run: UpstreamRun, needles: list[str], essay: tuple[str, ...]) -> str:
    cuts = sorted(int(len(essay) * (depth / 100)) for depth in run.sample(_DEPTHS, len(needles)))
    segments = []
    # Two needles at one cut, or one at the very start, leave an empty part and so a doubled space: as upstream.
    for needle, first, last in zip(needles, [0, *cuts], cuts, strict=False):
        segments += [" ".join(essay[first:last]), needle]
    return " ".join([*segments, " ".join(essay[cuts[-1] :])])


@lru_cache(maxsize=2)
def _essay_words(path: Path) -> list[str]:
    """Return an essay file cut at white space as niah.py does, which keeps an empty last word.

    Raises:
        UserError: the file is not RULER's JSON.
    """
    try:
        return re.sub(r"\s+", " ", str(json.loads(path.read_text(encoding="utf-8"))["text"])).split(" ")
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not RULER's essays: expected JSON with a key 'text'") from error


@lru_cache(maxsize=4)
def essay_sentences(path: Path, count: int) -> tuple[str, ...]:
    """Return the sentences of the first ``count`` words, going round at the end."""
    words = _essay_words(path)
    repeats = -(-count // len(words))
    return tuple(split_sentences(" ".join((words * repeats)[:count]).strip()))


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=count))


def _value(kind: Kind, rng: random.Random) -> str:
    """Draw a key or a value with exactly upstream's calls: generate_random."""
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "words":
        return _Pairs.shared().at(rng.randrange(_Pairs.shared().total))
    return word_lists.uuid4(rng)


class _Pairs:
    """All adjective-noun pairs in sorted order, as upstream lists them, without holding six million of them.

    Sorting the adjectives by what they put before the noun sorts the pairs, except that an adjective such as
    "blue-eyed" lies among the pairs of "blue": such adjectives are listed together.
    """

    def __init__(self) -> None:
        self._nouns = sorted(set(word_lists.nouns()))
        self._groups: list[list[str]] = []
        for start in sorted({f"{adjective}-" for adjective in word_lists.adjectives()}):
            if self._groups and start.startswith(self._groups[-1][0]):
                self._groups[-1].append(start)
            else:
                self._groups.append([start])
        self._listed = {
            number: sorted({start + noun for start in group for noun in self._nouns})
            for number, group in enumerate(self._groups)
            if len(group) > 1
        }
        sizes = (len(self._listed.get(number, self._nouns)) for number in range(len(self._groups)))
        self._ends = list(accumulate(sizes))
        self.total = self._ends[-1]

    @staticmethod
    @lru_cache(maxsize=1)
    def shared() -> _Pairs:
        """Return the shared instance, created on first use."""
        return _Pairs()

    def at(self, index: int) -> str:
        """Return the pair at an index of the sorted list."""
        number = bisect_right(self._ends, index)
        within = index - (self._ends[number - 1] if number else 0)
        if number in self._listed:
            return self._listed[number][within]
        return self._groups[number][0] + self._nouns[within]
