"""Data types of a run: cells, examples, requests, generations, losses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NATURAL = 0
"""The length of a cell that uses documents at full length, without truncation or padding."""


def length_name(length: int) -> str:
    """Return a cell's length as users write it: tokens, or ``natural``."""
    return "natural" if length == NATURAL else str(length)


@dataclass(frozen=True, order=True)
class Cell:
    """The unit of work and storage: one model, method, task and length."""

    model: str
    method: str
    task: str
    length: int
    """Tokens of prompt and new tokens together, or :data:`NATURAL`."""

    def __str__(self) -> str:
        return f"{self.method}-{self.model}/{self.task}/{length_name(self.length)}"


@dataclass(frozen=True)
class Example:
    """One prompt with its references; a pure function of (task spec, tokenizer, length, seed, index)."""

    id: str
    prompt: str
    answer_prefix: str
    """Appended to the prompt; the model continues right after it."""
    references: tuple[str, ...]
    depths: tuple[float, ...]
    """Start of each needle or gold document in percent of the context (0 = start).

    On a grid of depths: the grid point, with the needle at the nearest sentence boundary.
    """
    n_tokens: int
    """Tokens of prompt and answer prefix, including BOS and chat template."""
    max_new_tokens: int
    classes: tuple[str, ...] = ()
    """All class names of a classification task, for its metric."""
    ids: tuple[int, ...] = ()
    """Token ids (with BOS) of benchmarks that work on tokens rather than text; ``prompt`` is their decoding."""
    scored: int = 0
    """Number of tokens at the end whose loss is measured; 0 for generation tasks."""
    words: int | None = None
    """Document length as counted by the benchmark, if it reports scores by length."""

    @property
    def hash(self) -> str:
        """Hash of prompt, answer prefix and references."""
        parts = "\x00".join((self.prompt, self.answer_prefix, *self.references))
        return hashlib.sha256(parts.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Request:
    """What an engine gets of an example: tokens, never a task."""

    example_id: str
    input_ids: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    """Stop tokens in addition to the model's EOS tokens."""
    min_new_tokens: int = 0
    """EOS and stop tokens are suppressed before that many new tokens."""
    scored: int = 0
    """Number of tokens at the end whose loss is requested; 0 for generation."""
    drafts: tuple[tuple[int, ...], ...] = ()
    """Draft completions for speculative decoding, most likely first; they never change the output."""


@dataclass(frozen=True)
class Generation:
    """A model's greedy generation for one request."""

    example_id: str
    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    """``eos``, ``stop`` (stop token), ``length`` (max_new_tokens reached) or ``settled`` (the score is final)."""
    seconds: float
    """This example's share of the batch's wall time."""


_FINISH_REASONS = {
    "settled": "stopped once its score could no longer change",
    "eos": "ended by the model's own end token",
    "stop": "ended by a stop text of the task",
    "length": "cut off at the most new tokens",
    "lm_eval": "ended by lm-eval",
}


def describe_finish_reason(finish_reason: str | None) -> str:
    """Return a description of a finish reason; unknown reasons are repeated."""
    if finish_reason is None:
        return "no generation"
    return _FINISH_REASONS.get(finish_reason, f"ended by {finish_reason}")


@dataclass(frozen=True)
class LoglikelihoodResult:
    """Losses of the last tokens of one request."""

    example_id: str
    losses: Sequence[float]
    """Nats per token, of the last ``scored`` tokens in order."""
    seconds: float
    greedy: bool = False
    """True when each of those tokens was the most likely one."""


class SampleRecord(NamedTuple):
    """The stored record of a finished example."""

    record: dict[str, Any]
    """With ``id``, ``hash``, ``score``, ``metric`` and details of the generation; no times."""
    seconds: float
