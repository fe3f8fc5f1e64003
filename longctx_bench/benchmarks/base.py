"""What a benchmark is: a writer of examples that never sees a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import DoesNotFit
from longctx_bench.core.specs import Component
from longctx_bench.core.types import Example

__all__ = ["Benchmark", "DoesNotFit", "IndexedBenchmark", "example_id"]


class Benchmark(Component, ABC):
    """A task's generator. A subclass's fields are the parameters that a task YAML may set."""

    kind: ClassVar[Literal["generate", "loss", "lm_eval"]] = "generate"
    """What is scored: the model's continuation, how well it predicts the text itself, or what lm-eval makes of it."""
    natural: ClassVar[bool] = False
    """True when the task has documents of its own, which :data:`~longctx_bench.core.types.NATURAL` keeps whole."""

    grid: ClassVar[str | None] = None
    """The parameter that is the number of depths, if a task may put one needle in turn at each of them: heatmaps."""

    @abstractmethod
    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield examples 0 ... n-1.

        Example i is a pure function of (parameters, encoder, length, max_new_tokens, seed, i): it does not
        depend on n, on the examples before it, on the process or on the machine.

        Fewer than n examples mean that the data holds no more.

        Args:
            encoder: counts and encodes tokens of the model under test.
            length: tokens of prompt, answer prefix, BOS, chat template and reserved new tokens together.
            max_new_tokens: reserved for the answer.
            n: how many examples.
            seed: of all random choices.

        Raises:
            DoesNotFit: even the shortest prompt is longer than ``length``.
        """

    def answer(self, references: Sequence[str]) -> str:
        """Return a right answer as a model would write it: a guess, for engines that decode faster with one.

        The first reference unless a task overrides it: most tasks want one of them.
        """
        return references[0]


class IndexedBenchmark(Benchmark):
    """A benchmark whose example i can be written without those before it."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield :meth:`example` 0 ... n-1."""
        for index in range(n):
            yield self.example(encoder, length, max_new_tokens, seed, index)

    @abstractmethod
    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Write one example; arguments and errors as in :meth:`Benchmark.examples`."""


def example_id(index: int) -> str:
    """Return the id of example ``index``: fixed width, so that ids sort as numbers do."""
    return f"{index:06d}"
