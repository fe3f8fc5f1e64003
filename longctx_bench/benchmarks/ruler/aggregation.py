"""RULER's aggregation tasks: the most common words of a list (cwe) and of coded text (fwe)."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from pydantic import Field

from longctx_bench.benchmarks import haystack
from longctx_bench.benchmarks.base import ContextTooShort, IndexedBenchmark, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.benchmarks.ruler.word_lists import adjective_noun, all_words
from longctx_bench.core.types import Example

_COMMON = 10
"""Number of words to find; the prompt says ten."""
_SHORT = 4096
"""Below this length RULER uses fewer repetitions and a smaller one-shot example."""


class CommonWords(IndexedBenchmark):
    """Find the ten words that a numbered list repeats most (RULER, section 3)."""

    id: ClassVar[str] = "ruler-common-words"
    references_from_data: ClassVar[bool] = False

    common_repeats: int = Field(default=30, ge=2)
    uncommon_repeats: int = Field(default=3, ge=1)

    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Return one example of at most ``length`` and more than ``length - haystack.WINDOW`` tokens."""
        rng = random.Random(f"cwe {seed} {index}")
        budget = length - max_new_tokens
        words = _distinct_words(rng, 50 + budget // 6)
        shot = self._one_shot(words, rng, short=length < _SHORT)
        if encoder.size(shot) > budget // 2:
            # A one-shot example that long would leave no room for the list.
            shot = ""
        order = rng.random()
        attempts = (
            [(6, 1), (5, 1), (4, 1), (3, 1)] if length < _SHORT else [(self.common_repeats, self.uncommon_repeats)]
        )
        for common_repeats, uncommon_repeats in attempts:

            @lru_cache(maxsize=1)  # the size that was counted last is usually the one used
            def prompt(uncommon: int, common_repeats: int = common_repeats, repeats: int = uncommon_repeats) -> str:
                listed = _numbered(words[:_COMMON], common_repeats, words[_COMMON : _COMMON + uncommon], repeats, order)
                return shot + prompt_templates.CWE_PROMPT.format(context=listed)

            try:
                uncommon, n_tokens = haystack.fit_to_budget(
                    lambda uncommon, prompt=prompt: encoder.count(prompt(uncommon), prompt_templates.CWE_ANSWER),  # type: ignore[misc]
                    budget,
                    haystack.WINDOW,
                    1,
                    max(2, (budget - 1500) // (5 * uncommon_repeats)),
                    f"cwe at {length}",
                )
            except ContextTooShort:
                if (common_repeats, uncommon_repeats) == attempts[-1]:
                    raise
                continue
            text = prompt(uncommon)
            break
        return Example(
            id=example_id(index),
            prompt=text,
            answer_prefix=prompt_templates.CWE_ANSWER,
            references=tuple(words[:_COMMON]),
            depths=(),
            n_tokens=n_tokens,
            max_new_tokens=max_new_tokens,
        )

    def expected_completion(self, references: Sequence[str]) -> str:
        """Number the words as in the one-shot example."""
        return " ".join(f"{number}. {word}" for number, word in enumerate(references, 1))

    def _one_shot(self, avoid: list[str], rng: random.Random, short: bool) -> str:
        size, common_repeats, uncommon_repeats = (20, 3, 1) if short else (40, 10, 3)
        words = [word for word in rng.sample(all_words(), size + _COMMON) if word not in avoid[:_COMMON]][:size]
        common = words[:_COMMON]
        listed = _numbered(common, common_repeats, words[_COMMON:], uncommon_repeats, rng.random())
        answer = " ".join(f"{number}. {word}" for number, word in enumerate(common, 1))
        return f"{prompt_templates.CWE_PROMPT.format(context=listed)}{prompt_templates.CWE_ANSWER} {answer}\n"


def _distinct_words(rng: random.Random, count: int) -> list[str]:
    """Draw distinct words; beyond the word list, adjective-noun pairs (RULER uses a larger list)."""
    pool = all_words()
    words = rng.sample(pool, min(count, len(pool)))
    drawn = set(words)
    while len(words) < count:
        pair = adjective_noun(rng)
        if pair not in drawn:
            drawn.add(pair)
            words.append(pair)
    return words


def _numbered(common: list[str], common_repeats: int, uncommon: list[str], uncommon_repeats: int, order: float) -> str:
    listed = common * common_repeats + uncommon * uncommon_repeats
    _shuffle(listed, random.Random(order))
    return " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))


class FrequentWords(IndexedBenchmark):
    """Find the three most frequent coded words; frequencies follow a zeta law (RULER, section 3)."""

    id: ClassVar[str] = "ruler-frequent-words"
    references_from_data: ClassVar[bool] = False

    alpha: float = Field(default=2.0, gt=1.0)
    word_length: int = Field(default=6, ge=3)

    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Return one example of at most ``length`` and more than ``length - haystack.WINDOW`` tokens."""
        rng = random.Random(f"fwe {seed} {index}")
        budget = length - max_new_tokens
        words = _coded_words(rng, max(5, budget // 50), self.word_length)
        order = rng.random()
        zeta = _zeta(self.alpha)
        weights = [rank**-self.alpha / zeta for rank in range(1, len(words) + 1)]

        @lru_cache(maxsize=1)  # the size that was counted last is usually the one used
        def prompt(total: int) -> str:
            # The most frequent "word" is the dots, which the prompt says to ignore.
            listed = [
                word
                for word, weight in zip(["...", *words[1:]], weights, strict=True)
                for _ in range(int(total * weight))
            ]
            _shuffle(listed, random.Random(order))
            return prompt_templates.FWE_PROMPT.format(context=" ".join(listed))

        total, n_tokens = haystack.fit_to_budget(
            lambda total: encoder.count(prompt(total), prompt_templates.FWE_ANSWER),
            budget,
            haystack.WINDOW,
            # From this size on ranks 2, 3 and 4 have distinct counts above rank 5, so that the answer is unique.
            int(2 * 5**self.alpha * zeta) if self.alpha >= 2 else 200,
            budget // 3,
            f"fwe at {length}",
        )
        text = prompt(total)
        return Example(
            id=example_id(index),
            prompt=text,
            answer_prefix=prompt_templates.FWE_ANSWER,
            references=tuple(words[1:4]),
            depths=(),
            n_tokens=n_tokens,
            max_new_tokens=max_new_tokens,
        )

    def expected_completion(self, references: Sequence[str]) -> str:
        """Join the words with commas."""
        return ", ".join(references)


def _coded_words(rng: random.Random, count: int, letters: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(string.ascii_lowercase, k=letters))] = None
    return list(words)


def _shuffle(items: list[str], rng: random.Random) -> None:
    """Same as ``rng.shuffle``, draw for draw, in little more than half the time."""
    draw = rng.getrandbits
    for last in range(len(items) - 1, 0, -1):
        bits = (last + 1).bit_length()
        index = draw(bits)
        while index > last:
            index = draw(bits)
        items[last], items[index] = items[index], items[last]


@lru_cache(maxsize=4)
def _zeta(alpha: float) -> float:
    """Return the Riemann zeta function at alpha."""
    if alpha == 2.0:
        # Bit-identical to scipy, which takes long to import.
        return math.pi**2 / 6
    from scipy.special import zeta

    return float(zeta(alpha))
