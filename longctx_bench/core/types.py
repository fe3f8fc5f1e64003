"""What flows through a run: cells, examples, generations, scores. Plain data, no behaviour beyond hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NATURAL = 0
"""The length of a cell whose documents are kept whole, each prompt as long as it is."""


def length_name(length: int) -> str:
    """Return a cell's length as users write it: tokens, or ``natural``."""
    return "natural" if length == NATURAL else str(length)


@dataclass(frozen=True, order=True)
class Cell:
    """The unit of work, of storage and of a heatmap: one model, method, task and length."""

    model: str
    method: str
    task: str
    length: int
    """Tokens of prompt and new tokens together, or :data:`NATURAL`."""

    def __str__(self) -> str:
        return f"{self.method}-{self.model}/{self.task}/{length_name(self.length)}"


@dataclass(frozen=True)
class Example:
    """One prompt with its answer key; a pure function of (task spec, tokenizer, length, seed, index)."""

    id: str
    prompt: str
    answer_prefix: str
    """Belongs to the prompt: the model continues right after it."""
    references: tuple[str, ...]
    depths: tuple[float, ...]
    """Where each needle or gold document begins, in percent of the context (0 = start).

    On a grid of depths the point of the grid: the needle stands at the sentence boundary nearest to it.
    """
    n_tokens: int
    """Tokens of prompt and answer prefix, BOS and chat template included."""
    max_new_tokens: int
    classes: tuple[str, ...] = ()
    """All classes of a classification task, which its metric needs."""
    ids: tuple[int, ...] = ()
    """Token ids (BOS included), where a benchmark cuts tokens and not text; ``prompt`` is then their decoding."""
    scored: int = 0
    """Tokens at the end whose loss is the result; 0 where the model is to go on writing."""
    words: int | None = None
    """Length of the document as its benchmark counts it, where the benchmark sorts its results by that."""

    @property
    def hash(self) -> str:
        """Identify the example's bytes: prompt, answer prefix and references."""
        parts = "\x00".join((self.prompt, self.answer_prefix, *self.references))
        return hashlib.sha256(parts.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Request:
    """What an engine sees of an example: tokens, never a task."""

    example_id: str
    input_ids: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text besides the model's own end tokens."""
    min_new_tokens: int = 0
    """No end or stop token is chosen before so many tokens."""
    scored: int = 0
    """Tokens at the end whose loss is wanted, instead of a continuation."""
    drafts: tuple[tuple[int, ...], ...] = ()
    """Guesses at the continuation, the likeliest first: they may save time and never change a token."""


@dataclass(frozen=True)
class Generation:
    """A model's greedy continuation of one request."""

    example_id: str
    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    """``eos``, ``stop`` (a stop token), ``length`` (budget used up) or ``settled`` (the score can no longer change)."""
    seconds: float
    """This example's share of its batch's wall time."""


_ENDINGS = {
    "settled": "stopped once its score could no longer change",
    "eos": "ended by the model's own end token",
    "stop": "ended by a stop text of the task",
    "length": "cut off at the most new tokens",
    "lm_eval": "ended by lm-eval",
}


def describe_finish_reason(finish_reason: str | None) -> str:
    """Say in words how a generation ended; what is no reason of ours is repeated."""
    if finish_reason is None:
        return "no generation"
    return _ENDINGS.get(finish_reason, f"ended by {finish_reason}")


@dataclass(frozen=True)
class LoglikelihoodResult:
    """How well a model predicted the end of one request's tokens."""

    example_id: str
    losses: Sequence[float]
    """Nats a token, of the last ``scored`` tokens in their order."""
    seconds: float
    greedy: bool = False
    """True when each of those tokens was the likeliest."""


class SampleRecord(NamedTuple):
    """An example that is done: what the store keeps of it."""

    record: dict[str, Any]
    """With ``id``, ``hash``, ``score``, ``metric`` and what is known of the answer; no times."""
    seconds: float
