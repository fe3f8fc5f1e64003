"""Request builder: a cell's examples as token ids, generated once per task, tokenizer and length for all methods."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from longctx_bench.benchmarks.base import Benchmark, IndexedBenchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.provenance import usable_cores
from longctx_bench.core.specs import TaskSpec
from longctx_bench.core.types import Example, Request
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.models.checkpoint import prompt_tokenizer
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import PlannedCell, RunSpec

PART = 1024
"""Examples of a cell in memory at a time: a larger cell is generated, batched, run and stored in parts of this many
consecutive examples. No batch spans two parts, so another value would change the batches."""

EncodedExamples = list[tuple[Example, "array[int]"]]
"""Examples with their token ids, as machine integers because 500 prompts of 131,072 tokens are held at once."""


class Part(NamedTuple):
    """Consecutive examples of a cell."""

    examples: EncodedExamples
    first: bool
    last: bool


_PREFETCH = 8
"""Examples generated ahead per core."""
_MAX_DRAFT_TOKENS = 128
"""Maximum draft tokens: no model reproduces a long reference summary word by word."""


class RequestBuilder:
    """Builds requests; caches the examples of the last task, tokenizer and length if they fit in one part."""

    def __init__(self, registry: Registry, spec: RunSpec) -> None:
        self._registry = registry
        self._spec = spec
        self._encoders: dict[tuple[Path, bool], PromptEncoder] = {}
        self._key: tuple[str, Path, int, int] | None = None
        self._examples_of_key: EncodedExamples = []

    def examples(self, planned: PlannedCell, folder: Path) -> list[Example]:
        """Return a cell's examples; ``folder`` holds the tokenizer."""
        return [example for part in self.parts(planned, folder) for example, _ in part.examples]

    def requests(self, planned: PlannedCell, folder: Path, base: BaseModelInfo) -> list[Request]:
        """Return a cell's requests, in the order of its examples."""
        return [
            request
            for part in self.parts(planned, folder)
            for request in self.requests_of(part.examples, planned, folder, base)
        ]

    def parts(self, planned: PlannedCell, folder: Path) -> Iterator[Part]:
        """Yield a cell's examples in parts of :data:`PART`, each generated when requested; nothing if there is no data.

        The methods of a base share the examples of a cell of one part; a larger cell's are generated again per method.
        """
        key = (planned.task.name, folder, planned.cell.length, planned.n)
        if key == self._key:
            return iter((Part(self._examples_of_key, first=True, last=True),))
        self._key, self._examples_of_key = None, []

        def cache_whole_cell(part: Part) -> Part:
            if part.first and part.last:
                self._key, self._examples_of_key = key, part.examples
            return part

        return map(cache_whole_cell, _Parts(self._write(planned.task, folder, planned.cell.length, planned.n), PART))

    def requests_of(
        self, examples: EncodedExamples, planned: PlannedCell, folder: Path, base: BaseModelInfo
    ) -> list[Request]:
        """Return the requests of some of a cell's examples, in order."""
        task, method = planned.task, planned.variant.method
        encoder, benchmark = self._encoder(task, folder), self._registry.benchmark(task)
        stop_ids = frozenset(encoder.tokenizer.encode(text, add_special_tokens=False)[-1] for text in task.stop)
        requests = []
        for example, ids in examples:
            input_ids = method.prompt(base, ids, example.max_new_tokens)
            scored = min(example.scored, len(input_ids) - 1)
            requests.append(
                Request(
                    example.id,
                    input_ids,
                    example.max_new_tokens,
                    stop_ids,
                    task.min_new_tokens,
                    scored,
                    self._drafts(benchmark, encoder, example),
                )
            )
        return requests

    @staticmethod
    def _drafts(benchmark: Benchmark, encoder: PromptEncoder, example: Example) -> tuple[tuple[int, ...], ...]:
        """Return draft tokens for speculative decoding: the expected completion, as it would follow the prompt."""
        if not example.references or example.scored:
            return ()
        draft = encoder.continuation(
            example.prompt, example.answer_prefix, benchmark.expected_completion(example.references)
        )
        return (tuple(draft[:_MAX_DRAFT_TOKENS]),) if draft else ()

    def _write(self, task: TaskSpec, folder: Path, length: int, n: int) -> Iterator[tuple[Example, array[int]]]:
        encoder = self._encoder(task, folder)
        benchmark = self._registry.benchmark(task)

        def encoded(example: Example) -> tuple[Example, array[int]]:
            return example, array("i", example.ids or encoder.encode(example.prompt, example.answer_prefix))

        arguments = (encoder, length, task.max_new_tokens)
        if not isinstance(benchmark, IndexedBenchmark):
            yield from map(encoded, benchmark.examples(*arguments, n, self._spec.seed))
            return
        # The first one alone: it loads shared data and raises configuration errors. Threads suffice for the rest,
        # because tokenizers release the GIL.
        yield encoded(benchmark.example(*arguments, self._spec.seed, 0))
        cores = usable_cores()
        pool = ThreadPoolExecutor(cores)
        try:
            pending: deque[Future[tuple[Example, array[int]]]] = deque()
            for index in range(1, n):
                pending.append(pool.submit(lambda i: encoded(benchmark.example(*arguments, self._spec.seed, i)), index))
                if len(pending) > _PREFETCH * cores:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # After Ctrl-C or an error, do not wait for the remaining examples.
            pool.shutdown(wait=False, cancel_futures=True)

    def _encoder(self, task: TaskSpec, folder: Path) -> PromptEncoder:
        key = (folder, self._spec.chat_template and task.chat_template)
        if key not in self._encoders:
            self._encoders[key] = PromptEncoder(prompt_tokenizer(folder), key[1])
        return self._encoders[key]


class _Parts(Iterator[Part]):
    """Splits examples into parts, reading one ahead to know the last part; holds no part after yielding it."""

    def __init__(self, examples: Iterator[tuple[Example, array[int]]], size: int) -> None:
        self._examples = examples
        self._size = size
        self._following: EncodedExamples | None = None

    def __next__(self) -> Part:
        first = self._following is None
        examples = [*(self._following or islice(self._examples, 1)), *islice(self._examples, self._size - 1)]
        if not examples:
            raise StopIteration
        self._following = list(islice(self._examples, 1))
        return Part(examples, first, not self._following)
