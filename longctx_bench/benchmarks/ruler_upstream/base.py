"""``ruler@paper``: how NVIDIA/RULER's own scripts size and draw their samples, faults included.

Reproduces scripts/data/synthetic/*.py at revision c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a (Apache-2.0, see
NOTICE) sample by sample: the same prompts, byte for byte, for the same seed and tokenizer. The tests compare
them with what the original scripts wrote (tests/data/README.md).

What it does not repeat, on purpose:

* Essays are split into sentences by :func:`longctx_bench.benchmarks.haystack.split_sentences`. Upstream calls NLTK's
  Punkt, whose model is a download of its own; needles in essays may stand a sentence away from upstream's.
* Where upstream tries for ever to fit a prompt, :class:`ContextTooShort` ends the cell.
* Upstream's chat templates. With ``--chat-template`` the tokenizer's own is used, and counted as upstream counts.

Upstream counts without BOS, so with a tokenizer that adds one a prompt may take one token more than ``length``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from longctx_bench.benchmarks.base import Benchmark, ContextTooShort, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.types import Example

T = TypeVar("T")

SHORT = 4096
"""Below this length upstream takes smaller steps and, for cwe, fewer repetitions."""

_PATIENCE = 1000
"""Prompts of the smallest size, all too long, after which upstream's loop is taken to be endless."""


class UpstreamError(Exception):
    """Upstream fails here, or goes on for ever; the message continues "RULER's own generator ...".

    Its retry loop catches everything that is raised: there, a failure passes for a prompt that is too long.
    """


@dataclass(frozen=True)
class UpstreamSample:
    """A sample as upstream draws it: ``input``, ``answer_prefix`` and ``outputs``; the depths are measured here."""

    prompt: str
    answer_prefix: str
    outputs: tuple[str, ...]
    depths: tuple[float, ...] = ()


@dataclass(frozen=True)
class UpstreamRun:
    """One run of an upstream script: its arguments and its random state, which every draw moves on."""

    what: str
    encoder: PromptEncoder
    length: int
    new_tokens: int
    seed: int
    rng: random.Random
    """Stands for the global ``random`` that upstream seeds: the same stream."""
    numpy: np.random.RandomState
    """Stands for the global ``numpy.random``, likewise."""

    def within(self, length: int) -> UpstreamRun:
        """Return the same run, same random state, on another length and with nothing reserved for an answer."""
        return replace(self, length=length, new_tokens=0)

    def size(self, draft: UpstreamSample) -> int:
        """Count the tokens of a prompt and its answer prefix as upstream does: no special tokens."""
        return self.encoder.size(self.encoder.text(draft.prompt, draft.answer_prefix))

    def sample(self, population: Sequence[T], count: int) -> list[T]:
        """Draw without replacement.

        Raises:
            UpstreamError: there are fewer, or ``count`` is negative.
        """
        if not 0 <= count <= len(population):
            raise UpstreamError(f"cannot draw {count} of {len(population)}")
        return self.rng.sample(population, count)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in an order that depends on their number and the seed alone: upstream's fault."""
        mixed = list(items)
        random.Random(self.seed).shuffle(mixed)
        return mixed

    def largest(self, tokens: Callable[[int], int], least: int, most: int) -> int:
        """Search the most units whose prompt fits; ``least`` when none does.

        Every probe draws a fresh prompt: which sizes are probed, and in which order, decides all later draws.
        """
        found = least
        while least <= most:
            middle = (least + most) // 2
            if tokens(middle) + self.new_tokens <= self.length:
                found, least = middle, middle + 1
            else:
                most = middle - 1
        return found

    def fitting(self, draw: Callable[[int], UpstreamSample], units: int, step: int) -> UpstreamSample:
        """Draw until a prompt fits, taking ``step`` units away each time that leaves any: hence the underfill.

        Raises:
            UpstreamError: upstream would never come to an end, or as good as never.
        """
        tries = 0
        while tries < _PATIENCE:
            try:
                draft = draw(units)
                if self.size(draft) + self.new_tokens <= self.length:
                    return draft
            except UpstreamError:
                pass
            if units > step:
                units -= step
            else:
                tries += 1
        raise UpstreamError(f"tries for ever ({tries} prompts of its smallest size were all too long)")


class UpstreamBenchmark(Benchmark):
    """A task of ``ruler@paper``.

    Upstream draws its samples one after another from one random stream, so example i takes the work of
    examples 0 to i. It is still a function of (parameters, encoder, length, max_new_tokens, seed, i) alone,
    because every call of :meth:`examples` starts the stream again from the seed.

    A cell in which upstream hangs at sample k yields samples 0 to k-1 here before it raises; upstream writes
    its file at the very end, and so none at all.
    """

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield upstream's first ``n`` samples; how far they fall short of ``length`` is upstream's doing."""
        run = UpstreamRun(
            what=f"{self.title()} of ruler@paper",
            encoder=encoder,
            length=length,
            new_tokens=max_new_tokens,
            seed=seed,
            rng=random.Random(seed),
            numpy=np.random.RandomState(seed),
        )
        drafts, made = self.samples(run), 0
        try:
            while made < n:
                draft = next(drafts)
                yield Example(
                    id=example_id(made),
                    prompt=draft.prompt,
                    answer_prefix=draft.answer_prefix,
                    references=draft.outputs,
                    depths=draft.depths,
                    n_tokens=encoder.count(draft.prompt, draft.answer_prefix),
                    max_new_tokens=max_new_tokens,
                )
                made += 1
        except UpstreamError as error:
            less = f" or at most {made} examples" if made else ""
            raise ContextTooShort(
                f"{run.what} at {length}: RULER's own generator {error} at example {made}; choose a larger length{less}"
            ) from error

    @abstractmethod
    def title(self) -> str:
        """Name the task in messages."""

    @abstractmethod
    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Draw upstream's samples, one after another, for as long as they are asked for."""


def needle_depths(context: str, hidden: Sequence[str]) -> tuple[float, ...]:
    """Return where the hidden texts begin, in percent of the context's characters, in the prompt's order."""
    return tuple(percent(start, context) for start in sorted(context.index(text) for text in hidden))


def percent(start: int, context: str) -> float:
    """Return a character's place in percent of the context."""
    return round(100 * start / len(context), 2)
