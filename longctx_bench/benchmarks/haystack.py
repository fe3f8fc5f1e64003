"""Text to hide needles in, cut to an exact number of tokens."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.core.errors import UserError

WINDOW = 64
"""A prompt lies in (L - WINDOW, L] tokens, reserved new tokens and BOS included."""

# A sentence ends at . ! or ? (and closing quotes) before white space and a capital, digit or opening quote.
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*\s+(?=[\"'(\[\u2018\u201c]*[A-Z0-9])")


def split_sentences(text: str) -> list[str]:
    """Split text at sentence ends; joined with single spaces, the pieces give the words back in order."""
    pieces: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        pieces.append(text[start : match.end()].rstrip())
        start = match.end()
    pieces.append(text[start:].rstrip())
    return [piece for piece in pieces if piece]


@lru_cache(maxsize=4)
def essay_words(path: Path) -> tuple[str, ...]:
    """Return the words of an essay file: RULER's JSON (key ``text``) or plain text.

    Raises:
        UserError: the file is not one of the two or holds no words.
    """
    try:
        raw = path.read_text(encoding="utf-8")
        text = json.loads(raw)["text"] if path.suffix == ".json" else raw
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not essays: expected JSON with a key 'text', or plain UTF-8 text") from error
    words = tuple(str(text).split())
    if not words:
        raise UserError(f"{path}: holds no words")
    return words


def excerpt(words: tuple[str, ...], start: int, count: int) -> str:
    """Return ``count`` words from ``start`` on, going round at the end of the text as often as needed."""
    return " ".join(_taken(words, start % len(words), count))


def _taken(words: tuple[str, ...], start: int, count: int) -> tuple[str, ...]:
    taken = words[start : start + count]
    while len(taken) < count:
        taken += words[: count - len(taken)]
    return taken


@lru_cache(maxsize=4)
def _ends(path: Path) -> tuple[int, ...]:
    """Return the numbers of the essays' words that end a sentence; the last word is followed by the first."""
    words = essay_words(path)
    begins = list(accumulate((len(word) + 1 for word in words), initial=0))
    text = " ".join((*words, words[0]))
    return tuple(bisect_left(begins, match.end()) - 1 for match in _SENTENCE_END.finditer(text))


def excerpt_sentences(path: Path, start: int, count: int) -> list[str]:
    """Return the :func:`split_sentences` of an :func:`excerpt` of the essays, of which the whole was split once.

    Whether a sentence ends between two words is a matter of these two alone.
    """
    words, ends = essay_words(path), _ends(path)
    start %= len(words)
    taken = _taken(words, start, count)
    cuts = [0]
    for first in range(-start, count, len(words)):
        # The text's first word is the excerpt's word ``first``; below 0 it lies before it.
        here = ends[bisect_left(ends, -first) : bisect_left(ends, count - 1 - first)]
        cuts += [first + end + 1 for end in here]
    return [" ".join(taken[begin:end]) for begin, end in pairwise((*cuts, count)) if begin < end]


def noise_sentences(encoder: PromptEncoder, tokens: int) -> list[str]:
    """Return sentences of the noise haystack that take at most ``tokens`` tokens, each on a line of its own."""
    phrases = split_sentences(prompt_templates.NOISE)
    sizes = [encoder.size(phrase + "\n") for phrase in phrases]
    taken: list[str] = []
    while tokens >= sizes[len(taken) % len(phrases)]:
        tokens -= sizes[len(taken) % len(phrases)]
        taken.append(phrases[len(taken) % len(phrases)])
    return taken


class FittedSize(NamedTuple):
    """How many units of text fill a budget, and the tokens that they make."""

    units: int
    tokens: int


def fit_to_budget(
    tokens: Callable[[int], int], budget: int, window: int, least: int, guess: int, what: str
) -> FittedSize:
    """Find how many units of text fill a budget: ``budget - window < tokens(units) <= budget``.

    The answer depends on the arguments alone, so that an example is the same bytes wherever it is made.
    ``tokens`` must grow about linearly; each call of it tokenises a prompt, and two or three are enough.

    Args:
        tokens: tokens of the prompt made of that many units.
        budget: the most tokens allowed.
        window: how far below the budget is near enough.
        least: fewest units that the task can be made of.
        guess: units to try first.
        what: names the task in the error.

    Returns:
        The number of units and their tokens; when no number lands in the window, the most that fit the budget.

    Raises:
        ContextTooShort: ``least`` units are more than the budget.
    """
    low, low_tokens = least, tokens(least)
    if low_tokens > budget:
        raise ContextTooShort(
            f"{what}: the shortest prompt takes {low_tokens} tokens, {budget} are free; choose a larger length"
        )
    if low_tokens > budget - window:
        return FittedSize(low, low_tokens)
    high: int | None = None
    high_tokens = 0
    units = max(guess, least + 1)
    while high is None or high - low > 1:
        found = tokens(units)
        if budget - window < found <= budget:
            return FittedSize(units, found)
        if found > budget:
            high, high_tokens = units, found
        else:
            low, low_tokens = units, found
        aim = budget - window / 4
        if high is None:
            units = max(low + 1, int(low * aim / max(low_tokens, 1)) + 1)
        else:
            slope = (high_tokens - low_tokens) / (high - low)
            step = int((aim - low_tokens) / slope) if slope > 0 else (high - low) // 2
            units = min(high - 1, max(low + 1, low + step))
    return FittedSize(low, low_tokens)
