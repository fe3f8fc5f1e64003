"""What flows through a run: cells, examples, generations, scores. Plain data, no behaviour beyond hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Cell:
    """The unit of work, of storage and of a heatmap: one model, method, task and length."""

    model: str
    method: str
    task: str
    length: int

    def __str__(self) -> str:
        return f"{self.method}-{self.model}/{self.task}/{self.length}"


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


@dataclass(frozen=True)
class Generation:
    """A model's greedy continuation of one request."""

    example_id: str
    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    """``eos``, ``length`` (budget used up) or ``settled`` (the score can no longer change)."""
    seconds: float
    """This example's share of its batch's wall time."""


@dataclass(frozen=True)
class Score:
    """One metric's verdict on one generation, in [0, 1]."""

    example_id: str
    metric: str
    value: float
