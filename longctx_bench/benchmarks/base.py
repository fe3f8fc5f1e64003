"""The benchmark interface: a generator of examples, which never sees a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.deprecation import alias_renamed_methods, renamed_attributes
from longctx_bench.core.errors import ContextTooShort
from longctx_bench.core.specs import Component
from longctx_bench.core.types import Example

__all__ = ["Benchmark", "ContextTooShort", "IndexedBenchmark", "example_id"]


_RENAMED_METHODS = {"answer": "expected_completion"}


class Benchmark(Component, ABC):
    """Generates a task's examples. A subclass's fields are the parameters that a task YAML may set."""

    kind: ClassVar[Literal["generate", "loss", "lm_eval"]] = "generate"
    """What is scored: the model's generation, its loss on the text itself, or the results of an lm-eval task."""
    natural: ClassVar[bool] = False
    """True when the task's documents can be used at full length (:data:`~longctx_bench.core.types.NATURAL`)."""

    grid: ClassVar[str | None] = None
    """Name of the parameter that sets the number of needle depths, for tasks that place one needle on a grid of depths;
    heatmaps are drawn for these."""

    references_from_data: ClassVar[bool] = True
    """Whether references are text of a data set, which ``pack --without-texts`` leaves out, and not generated."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        alias_renamed_methods(cls, _RENAMED_METHODS)

    @abstractmethod
    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield examples 0 ... n-1, or fewer when the data set is smaller.

        Example i is a pure function of (parameters, encoder, length, max_new_tokens, seed, i): it does not depend on n,
        on other examples, on the process or on the machine.

        Args:
            encoder: encodes and counts tokens with the tokenizer of the model under test.
            length: total tokens: prompt, answer prefix, BOS, chat template and reserved new tokens.
            max_new_tokens: tokens reserved for the generation.
            n: number of examples.
            seed: seeds all random choices.

        Raises:
            ContextTooShort: even the shortest prompt is longer than ``length``.
        """

    def expected_completion(self, references: Sequence[str]) -> str:
        """Return a correct completion as a model would write it, which engines may use as a draft to decode faster.

        The first reference unless overridden: most tasks ask for one of their references.
        """
        return references[0]


alias_renamed_methods(Benchmark, _RENAMED_METHODS)


class IndexedBenchmark(Benchmark):
    """A benchmark that generates each example independently of the others."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield :meth:`example` 0 ... n-1."""
        for index in range(n):
            yield self.example(encoder, length, max_new_tokens, seed, index)

    @abstractmethod
    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Return one example; arguments and errors as in :meth:`Benchmark.examples`."""


def example_id(index: int) -> str:
    """Return the id of example ``index``, zero-padded so that ids sort numerically."""
    return f"{index:06d}"


__getattr__ = renamed_attributes(__name__, {"DoesNotFit": "ContextTooShort"}, globals())
