"""Synthetic retrieval sequences in RULER's needle-in-a-haystack wording, never longer than the training context.

The wording is that of NVIDIA/RULER (scripts/data/synthetic/constants.py); the haystack is the training text.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longctx_bench.benchmarks import haystack
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.benchmarks.ruler.word_lists import adjective_noun
from longctx_bench.training.recipe import ExerciseMix

_KIND = "numbers"


class Kind(NamedTuple):
    """How many needles an exercise hides and what it asks."""

    keys: int
    questions: tuple[int, ...]
    """Keys that each question asks for."""
    values: int = 1
    """Needles of each key."""


_ONE_ANSWER = tuple(Kind(keys, (1,)) for keys in (1, 1, 2, 4, 4, 6, 8, 10))
"""One needle, or one key among many: each entry as likely."""
_SEVERAL_ANSWERS = (Kind(3, (2,)), Kind(4, (4,)), Kind(8, (2,)), Kind(1, (1,), 2), Kind(1, (1,), 4))
"""Several keys in a question, or several values of a key."""
_FEW_NEEDLES = tuple(Kind(keys, (1,) * asked) for keys in (1, 2, 3, 4) for asked in (1, 2) if asked <= keys)
"""One to four needles, one or two questions one after the other."""
_MIXES: dict[ExerciseMix, tuple[tuple[Kind, ...], ...]] = {
    "one-question": (_ONE_ANSWER + _SEVERAL_ANSWERS,),
    "mixed": (_FEW_NEEDLES, _ONE_ANSWER + _SEVERAL_ANSWERS),
    "several-answers": (_FEW_NEEDLES, _ONE_ANSWER, _SEVERAL_ANSWERS),
}
"""Kinds of exercises, in groups that are drawn equally often."""

# Where a sentence ends within running text: behind its closing quotes, before white space.
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*(?=\s)")


class Encoded(NamedTuple):
    """A text's tokens."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]
    """Of each token: its first character in the text, and one past its last."""


Encode = Callable[[str], Encoded]
"""Text to tokens, without special tokens."""


@dataclass(frozen=True)
class Exercise:
    """One retrieval sequence as text."""

    text: str
    """All of it, as trained on: instruction, haystack with needles, questions and answers."""
    haystack: tuple[tuple[int, int], ...]
    """Character ranges of the text that are haystack, in order."""
    values: tuple[str, ...]
    """The values asked for, each of them in a needle."""

    def is_haystack(self, spans: Sequence[tuple[int, int]]) -> list[bool]:
        """Tell of each token, by its character span, whether it ends in the haystack."""
        starts = [start for start, _ in self.haystack]
        flags = []
        for _, end in spans:
            nearest = bisect_right(starts, end - 1) - 1
            flags.append(nearest >= 0 and end <= self.haystack[nearest][1])
        return flags


def exercise(
    seed: int,
    index: int,
    text: str,
    encode: Encode,
    length: int,
    keys: int | None = None,
    max_needles: int = 10,
    mix: ExerciseMix = "one-question",
) -> Exercise | None:
    """Hide needles in ``text`` and ask for them, in at most ``length`` tokens; None where it cannot fit.

    Args:
        seed: of the run.
        index: of the exercise; the two decide everything but the text.
        text: haystack, more than ``length`` tokens of it are not used.
        encode: text to tokens.
        length: tokens that :attr:`Exercise.text` and an EOS may take.
        keys: make this many needles with one question, in place of a mix of kinds.
        max_needles: kinds of exercise with more needles are left out.
        mix: ``one-question`` collapses white space in the haystack, as in RULER; the others keep line breaks.
            ``several-answers`` gives the values of a key in the order of their needles, the others in any.
    """
    rng = random.Random(f"{seed}:{index}")
    groups = _MIXES[mix]
    group = groups[int(rng.random() * len(groups))] if len(groups) > 1 else groups[0]
    kinds = tuple(kind for kind in group if kind.keys * kind.values <= max_needles)
    kind = rng.choice(kinds) if keys is None else Kind(keys, (1,))
    names = _distinct_keys(rng, kind.keys)
    values = {name: [f"{rng.randint(1_000_000, 9_999_999)}" for _ in range(kind.values)] for name in names}
    asked = rng.sample(names, sum(kind.questions))
    needles = [
        prompt_templates.NEEDLE.format(type_needle_v=_KIND, key=name, value=value)
        for name in names
        for value in values[name]
    ]
    rng.shuffle(needles)
    depths = [rng.random() for _ in needles]
    instruction, questions = _wording(asked, kind, values)
    # Two spare: the EOS, and a token more where a needle splits the haystack.
    room = length - len(encode(instruction + " ".join(needles) + questions).ids) - 2
    fill = _between_sentences if mix == "one-question" else _between_lines
    pieces = fill(text, encode, room, needles, depths) if room >= 0 else None
    while pieces is not None:
        if mix == "several-answers":
            body = "".join(piece for piece, _ in pieces)
            values = {name: sorted(values[name], key=body.index) for name in names}
            _, questions = _wording(asked, kind, values)
        answer = tuple(value for name in asked for value in values[name])
        made = _assembled(instruction, pieces, questions, answer)
        excess = len(encode(made.text).ids) + 1 - length
        if excess <= 0:
            return made
        room -= excess
        pieces = fill(text, encode, room, needles, depths) if room >= 0 else None
    return None


def _wording(asked: list[str], kind: Kind, values: dict[str, list[str]]) -> tuple[str, str]:
    """Return what stands before the haystack, and the questions with their answers behind it."""
    before, questions = "", ""
    for count in kind.questions:
        names, asked = asked[:count], asked[count:]
        expected = [value for name in names for value in values[name]]
        prompt, prefix, unit = prompt_templates.NIAH_PROMPT, prompt_templates.NIAH_ANSWER, _KIND
        if len(expected) == 1:
            prompt, prefix, unit = prompt_templates.singular(prompt), prompt_templates.singular(prefix), _KIND[:-1]
        words = {"type_needle_v": unit, "query": prompt_templates.enumerate_queries(names)}
        instruction, question = prompt.split("{context}")
        before = before or instruction.format(**words)
        questions += (
            f"{question.format(**words)}{prefix.format(**words)} {prompt_templates.enumerate_queries(expected)}."
        )
    return before, questions


Pieces = list[tuple[str, bool]]
"""Text in order, and of each piece whether it is haystack."""


def _between_sentences(text: str, encode: Encode, room: int, needles: list[str], depths: list[float]) -> Pieces | None:
    """Put needles between the first sentences of the text, joined by spaces, that take at most ``room`` tokens."""
    chosen = []
    for sentence in haystack.split_sentences(" ".join(text.split())):
        room -= len(encode(" " + sentence).ids)
        if room < 0:
            break
        chosen.append((sentence, True))
    positions = sorted((int(depth * (len(chosen) + 1)), needle) for depth, needle in zip(depths, needles, strict=True))
    for position, needle in reversed(positions):
        chosen.insert(position, (needle, False))
    return [(" " * (number > 0) + piece, is_haystack) for number, (piece, is_haystack) in enumerate(chosen)]


def _between_lines(text: str, encode: Encode, room: int, needles: list[str], depths: list[float]) -> Pieces | None:
    """Put needles behind sentences of the text's first ``room`` tokens, which is left as it stands."""
    spans = encode(text).spans
    text = text[: spans[room][0]] if room < len(spans) else text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)] or [len(text)]
    chosen = sorted((ends[int(depth * len(ends))], needle) for depth, needle in zip(depths, needles, strict=True))
    pieces: Pieces = []
    start = 0
    for end, needle in chosen:
        pieces += [(text[start:end], True), (f" {needle}", False)]
        start = end
    return [*pieces, (text[start:], True)]


def _assembled(instruction: str, pieces: Pieces, questions: str, values: tuple[str, ...]) -> Exercise:
    ranges = []
    text = instruction
    for piece, is_haystack in pieces:
        if is_haystack and piece:
            ranges.append((len(text), len(text) + len(piece)))
        text += piece
    return Exercise(text + questions, tuple(ranges), values)


def _distinct_keys(rng: random.Random, count: int) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[adjective_noun(rng)] = None
    return list(keys)
