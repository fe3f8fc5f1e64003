"""Haystacks: text to hide needles in, sized to an exact number of tokens."""

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
"""A prompt has (L - WINDOW, L] tokens, including BOS and reserved new tokens."""

# A sentence ends at . ! or ? (and closing quotes) before white space and a capital, digit or opening quote.
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*\s+(?=[\"'(\[\u2018\u201c]*[A-Z0-9])")


def split_sentences(text: str) -> list[str]:
    """Split text into sentences; joined with single spaces they have the same words in the same order."""
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        sentences.append(text[start : match.end()].rstrip())
        start = match.end()
    sentences.append(text[start:].rstrip())
    return [sentence for sentence in sentences if sentence]


@lru_cache(maxsize=4)
def essay_words(path: Path) -> tuple[str, ...]:
    """Return the words of an essay file: RULER's JSON (key ``text``) or plain text.

    Raises:
        UserError: the file is neither or has no words.
    """
    try:
        raw = path.read_text(encoding="utf-8")
        text = json.loads(raw)["text"] if path.suffix == ".json" else raw
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not essays: expected JSON with a key 'text', or plain UTF-8 text") from error
    words = tuple(str(text).split())
    if not words:
        raise UserError(f"{path}: has no words")
    return words


def excerpt(words: tuple[str, ...], start: int, count: int) -> str:
    """Return ``count`` words from ``start`` on, wrapping around at the end of the text."""
    return " ".join(_wrapping_slice(words, start % len(words), count))


def _wrapping_slice(words: tuple[str, ...], start: int, count: int) -> tuple[str, ...]:
    taken = words[start : start + count]
    while len(taken) < count:
        taken += words[: count - len(taken)]
    return taken


@lru_cache(maxsize=4)
def _sentence_ends(path: Path) -> tuple[int, ...]:
    """Return the indices of words that end a sentence; the text wraps around at its end."""
    words = essay_words(path)
    begins = list(accumulate((len(word) + 1 for word in words), initial=0))
    text = " ".join((*words, words[0]))
    return tuple(bisect_left(begins, match.end()) - 1 for match in _SENTENCE_END.finditer(text))


def excerpt_sentences(path: Path, start: int, count: int) -> list[str]:
    """Return the :func:`split_sentences` of an :func:`excerpt`, from sentence ends that are computed once per file.

    This is exact because whether a sentence ends between two words depends on these two words only.
    """
    words, ends = essay_words(path), _sentence_ends(path)
    start %= len(words)
    taken = _wrapping_slice(words, start, count)
    cuts = [0]
    for first in range(-start, count, len(words)):
        # ``first`` is the index in the excerpt of the text's first word; negative when it precedes the excerpt.
        ends_inside = ends[bisect_left(ends, -first) : bisect_left(ends, count - 1 - first)]
        cuts += [first + end + 1 for end in ends_inside]
    return [" ".join(taken[begin:end]) for begin, end in pairwise((*cuts, count)) if begin < end]


def noise_sentences(encoder: PromptEncoder, tokens: int) -> list[str]:
    """Return sentences of the noise haystack, one per line, that take at most ``tokens`` tokens."""
    phrases = split_sentences(prompt_templates.NOISE)
    sizes = [encoder.size(phrase + "\n") for phrase in phrases]
    taken: list[str] = []
    while tokens >= sizes[len(taken) % len(phrases)]:
        tokens -= sizes[len(taken) % len(phrases)]
        taken.append(phrases[len(taken) % len(phrases)])
    return taken


class FittedSize(NamedTuple):
    """The number of units of text that fill a budget, and their tokens."""

    units: int
    tokens: int


def fit_to_budget(
    tokens: Callable[[int], int], budget: int, window: int, min_units: int, guess: int, what: str
) -> FittedSize:
    """Find how many units of text fill a budget: ``budget - window < tokens(units) <= budget``.

    The result depends only on the arguments, so that an example is byte-identical on every machine. ``tokens`` must
    grow about linearly; each call tokenises a prompt, and two or three calls usually suffice.

    Args:
        tokens: returns the prompt's tokens for a number of units.
        budget: maximum number of tokens.
        window: accepted distance below the budget in tokens.
        min_units: fewest units that the task can have.
        guess: number of units to try first.
        what: names the task in the error.

    Returns:
        The number of units and their tokens; when no number lands in the window, the largest that fits the budget.

    Raises:
        ContextTooShort: ``min_units`` units exceed the budget.
    """
    low, low_tokens = min_units, tokens(min_units)
    if low_tokens > budget:
        raise ContextTooShort(
            f"{what}: the shortest prompt takes {low_tokens} tokens, {budget} are available; choose a larger length"
        )
    if low_tokens > budget - window:
        return FittedSize(low, low_tokens)
    high: int | None = None
    high_tokens = 0
    units = max(guess, min_units + 1)
    while high is None or high - low > 1:
        num_tokens = tokens(units)
        if budget - window < num_tokens <= budget:
            return FittedSize(units, num_tokens)
        if num_tokens > budget:
            high, high_tokens = units, num_tokens
        else:
            low, low_tokens = units, num_tokens
        target = budget - window / 4
        if high is None:
            units = max(low + 1, int(low * target / max(low_tokens, 1)) + 1)
        else:
            slope = (high_tokens - low_tokens) / (high - low)
            step = int((target - low_tokens) / slope) if slope > 0 else (high - low) // 2
            units = min(high - 1, max(low + 1, low + step))
    return FittedSize(low, low_tokens)
