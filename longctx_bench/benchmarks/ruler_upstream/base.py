"""``ruler@paper``: sampling and sizing as in NVIDIA/RULER's own scripts, faults included.

Reproduces scripts/data/synthetic/*.py at revision c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a (Apache-2.0, see
NOTICE) sample by sample: the same prompts, byte for byte, for the same seed and tokenizer. The tests compare
them with what the original scripts wrote (tests/data/README.md).

Intended differences:

* Essays are split into sentences by :func:`longctx_bench.benchmarks.haystack.split_sentences`. Upstream calls NLTK's
  Punkt, whose model is a download of its own; needles in essays may stand a sentence away from upstream's.
* Where upstream loops endlessly to fit a prompt, :class:`ContextTooShort` ends the cell.
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
"""Below this length upstream uses smaller steps and, for cwe, fewer repetitions."""

_MAX_TRIES = 1000
"""Number of smallest-size prompts, all too long, after which upstream's loop is considered endless."""


class UpstreamError(Exception):
    """Upstream fails or loops endlessly here; the message continues "RULER's own generator ...".

    Upstream's retry loop catches all exceptions, so that a failure counts as a prompt that is too long.
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
    """One run of an upstream script: its arguments and random state."""

    what: str
    encoder: PromptEncoder
    length: int
    new_tokens: int
    seed: int
    rng: random.Random
    """Same stream as the global ``random`` that upstream seeds."""
    numpy: np.random.RandomState
    """Likewise for the global ``numpy.random``."""

    def within(self, length: int) -> UpstreamRun:
        """Return the run with the same random state at another length, with no tokens reserved for the answer."""
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
        """Return the items in an order that depends only on their number and the seed (a fault of upstream)."""
        shuffled = list(items)
        random.Random(self.seed).shuffle(shuffled)
        return shuffled

    def largest(self, tokens: Callable[[int], int], low: int, high: int) -> int:
        """Return the largest number of units whose prompt fits; ``low`` when none does.

        Binary search as upstream: every probe draws a new prompt, so that the order of probes determines later draws.
        """
        largest = low
        while low <= high:
            middle = (low + high) // 2
            if tokens(middle) + self.new_tokens <= self.length:
                largest, low = middle, middle + 1
            else:
                high = middle - 1
        return largest

    def fitting(self, draw: Callable[[int], UpstreamSample], units: int, step: int) -> UpstreamSample:
        """Draw until a prompt fits, with ``step`` fewer units each time if any would be left: hence the underfill.

        Raises:
            UpstreamError: upstream would practically never terminate.
        """
        tries = 0
        while tries < _MAX_TRIES:
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

    Upstream draws all samples from one random stream, so that example i requires generating examples 0 to i. It is
    still a pure function of (parameters, encoder, length, max_new_tokens, seed, i) only,
    because every call of :meth:`examples` restarts the stream from the seed.

    A cell in which upstream hangs at sample k yields samples 0 to k-1 here before it raises; upstream writes
    its file at the very end, and so none at all.
    """

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield upstream's first ``n`` samples; they underfill ``length`` as upstream's do."""
        run = UpstreamRun(
            what=f"{self.title()} of ruler@paper",
            encoder=encoder,
            length=length,
            new_tokens=max_new_tokens,
            seed=seed,
            rng=random.Random(seed),
            numpy=np.random.RandomState(seed),
        )
        samples, count = self.samples(run), 0
        try:
            while count < n:
                sample = next(samples)
                yield Example(
                    id=example_id(count),
                    prompt=sample.prompt,
                    answer_prefix=sample.answer_prefix,
                    references=sample.outputs,
                    depths=sample.depths,
                    n_tokens=encoder.count(sample.prompt, sample.answer_prefix),
                    max_new_tokens=max_new_tokens,
                )
                count += 1
        except UpstreamError as error:
            less = f" or at most {count} examples" if count else ""
            raise ContextTooShort(
                f"{run.what} at {length}: RULER's own generator {error} at example {count}; choose a larger "
                f"length{less}"
            ) from error

    @abstractmethod
    def title(self) -> str:
        """Name the task in messages."""

    @abstractmethod
    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Yield upstream's samples, endlessly."""


def needle_depths(context: str, hidden: Sequence[str]) -> tuple[float, ...]:
    """Return the starts of the hidden texts in percent of the context's characters, in text order."""
    return tuple(percent(start, context) for start in sorted(context.index(text) for text in hidden))


def percent(start: int, context: str) -> float:
    """Return a character position in percent of the context."""
    return round(100 * start / len(context), 2)
