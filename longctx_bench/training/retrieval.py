"""Synthetic retrieval sequences in RULER's needle-in-a-haystack wording, never longer than the training context.

The wording is that of NVIDIA/RULER (scripts/data/synthetic/constants.py); the haystack is the training text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from longctx_bench.benchmarks import haystack, wording
from longctx_bench.benchmarks.vocabulary import adjective_noun

_KIND = "numbers"
_KINDS = (
    *((1, 1, 1), (1, 1, 1), (2, 1, 1), (4, 1, 1), (4, 1, 1), (6, 1, 1), (8, 1, 1), (10, 1, 1)),
    *((3, 2, 1), (4, 4, 1), (8, 2, 1), (1, 1, 2), (1, 1, 4)),
)
"""(keys, keys asked for, values per key), each as likely: one needle, many keys, many questions, many values."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Exercise:
    """One retrieval sequence as text."""

    prompt: str
    answer_prefix: str
    answer: str
    values: tuple[str, ...]
    """The values asked for, each of them in the prompt."""

    @property
    def text(self) -> str:
        """All of it, as trained on."""
        return self.prompt + self.answer_prefix + self.answer


def exercise(
    seed: int, index: int, text: str, encode: Encode, length: int, keys: int | None = None, most: int = 10
) -> Exercise | None:
    """Hide needles in ``text`` and ask for them, in at most ``length`` tokens; None where it cannot fit.

    Args:
        seed: of the run.
        index: of the exercise; the two decide everything but the text.
        text: haystack, more than ``length`` tokens of it are not used.
        encode: text to token ids, without special tokens.
        length: tokens that :attr:`Exercise.text` and an EOS may take.
        keys: make this many needles with one question, in place of a mix of kinds.
        most: needles of the kinds that are mixed; those with more are left out.
    """
    rng = random.Random(f"{seed}:{index}")
    kinds = [kind for kind in _KINDS if kind[0] * kind[2] <= most]
    n_keys, n_asked, n_values = rng.choice(kinds) if keys is None else (keys, 1, 1)
    names = _distinct_keys(rng, n_keys)
    values = {name: [f"{rng.randint(1_000_000, 9_999_999)}" for _ in range(n_values)] for name in names}
    asked = rng.sample(names, n_asked)
    needles = [
        wording.NEEDLE.format(type_needle_v=_KIND, key=name, value=value) for name in names for value in values[name]
    ]
    rng.shuffle(needles)
    depths = [rng.random() for _ in needles]
    expected = tuple(value for name in asked for value in values[name])
    prompt, prefix, kind = wording.NIAH_PROMPT, wording.NIAH_ANSWER, _KIND
    if len(expected) == 1:
        prompt, prefix, kind = wording.singular(prompt), wording.singular(prefix), _KIND[:-1]
    words = {"type_needle_v": kind, "query": wording.enumerate_queries(asked)}
    answer = f" {wording.enumerate_queries(list(expected))}."
    fixed = prompt.format(context=" ".join(needles), **words) + prefix.format(**words) + answer
    # Two spare: the EOS, and a token more where a needle splits the haystack.
    room = length - len(encode(fixed)) - 2
    sentences = _sentences(text, encode, room)
    while sentences or room >= 0:
        context = " ".join(_with_needles(sentences, needles, depths))
        made = Exercise(prompt.format(context=context, **words), prefix.format(**words), answer, expected)
        if len(encode(made.text)) + 1 <= length:
            return made
        if not sentences:
            break
        sentences = sentences[:-1]
    return None


def _sentences(text: str, encode: Encode, room: int) -> list[str]:
    """Return the first sentences of the text that take at most ``room`` tokens together."""
    chosen = []
    for sentence in haystack.sentences(" ".join(text.split())):
        room -= len(encode(" " + sentence))
        if room < 0:
            break
        chosen.append(sentence)
    return chosen


def _with_needles(sentences: list[str], needles: list[str], depths: list[float]) -> list[str]:
    pieces = list(sentences)
    places = sorted(
        ((int(depth * (len(sentences) + 1)), needle) for depth, needle in zip(depths, needles, strict=True))
    )
    for place, needle in reversed(places):
        pieces.insert(place, needle)
    return pieces


def _distinct_keys(rng: random.Random, count: int) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[adjective_noun(rng)] = None
    return list(keys)
