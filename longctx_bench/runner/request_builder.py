"""A cell's examples as token ids: written once for a task, tokenizer and length, read by every method in turn."""

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
"""Examples of a cell that are in memory at a time: a larger cell is written, batched, run and stored in parts of so
many consecutive examples. No batch reaches over the end of a part, so that another number would mean other batches."""

Made = list[tuple[Example, "array[int]"]]
"""Examples with their token ids; as machine integers, because 500 prompts of 131,072 tokens are held at once."""


class Part(NamedTuple):
    """Consecutive examples of a cell."""

    made: Made
    first: bool
    last: bool


_AHEAD = 8
"""Examples that each core may write before the first of them is asked for."""
_DRAFT = 128
"""Tokens of a draft at most: no model writes a long summary word by word as its reference stands."""


class PromptCache:
    """The examples of the last task, tokenizer and length, where they are no more than :data:`PART`."""

    def __init__(self, registry: Registry, spec: RunSpec) -> None:
        self._registry = registry
        self._spec = spec
        self._encoders: dict[tuple[Path, bool], PromptEncoder] = {}
        self._key: tuple[str, Path, int, int] | None = None
        self._made: Made = []

    def examples(self, planned: PlannedCell, folder: Path) -> list[Example]:
        """Return a cell's examples; ``folder`` holds the tokenizer."""
        return [example for part in self.parts(planned, folder) for example, _ in part.made]

    def requests(self, planned: PlannedCell, folder: Path, base: BaseModelInfo) -> list[Request]:
        """Return what an engine gets of a cell's examples, in their order."""
        return [
            request
            for part in self.parts(planned, folder)
            for request in self.requests_of(part.made, planned, folder, base)
        ]

    def parts(self, planned: PlannedCell, folder: Path) -> Iterator[Part]:
        """Yield a cell's examples in parts of :data:`PART`, each written when it is asked for; none without data.

        The methods of a base share what a cell of one part has; of a larger cell each writes the prompts again.
        """
        key = (planned.task.name, folder, planned.cell.length, planned.n)
        if key == self._key:
            return iter((Part(self._made, first=True, last=True),))
        self._key, self._made = None, []

        def kept(part: Part) -> Part:
            if part.first and part.last:
                self._key, self._made = key, part.made
            return part

        return map(kept, _Parts(self._write(planned.task, folder, planned.cell.length, planned.n), PART))

    def requests_of(self, made: Made, planned: PlannedCell, folder: Path, base: BaseModelInfo) -> list[Request]:
        """Return what an engine gets of some of a cell's examples, in their order."""
        task, method = planned.task, planned.variant.method
        encoder, benchmark = self._encoder(task, folder), self._registry.benchmark(task)
        stop_ids = frozenset(encoder.tokenizer.encode(text, add_special_tokens=False)[-1] for text in task.stop)
        requests = []
        for example, ids in made:
            given = method.prompt(base, ids, example.max_new_tokens)
            scored = min(example.scored, len(given) - 1)
            requests.append(
                Request(
                    example.id,
                    given,
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
        """Return the tokens of a right answer, as they would follow on the prompt."""
        if not example.references or example.scored:
            return ()
        draft = encoder.continuation(
            example.prompt, example.answer_prefix, benchmark.expected_completion(example.references)
        )
        return (tuple(draft[:_DRAFT]),) if draft else ()

    def _write(self, task: TaskSpec, folder: Path, length: int, n: int) -> Iterator[tuple[Example, array[int]]]:
        encoder = self._encoder(task, folder)
        benchmark = self._registry.benchmark(task)

        def encoded(example: Example) -> tuple[Example, array[int]]:
            return example, array("i", example.ids or encoder.encode(example.prompt, example.answer_prefix))

        arguments = (encoder, length, task.max_new_tokens)
        if not isinstance(benchmark, IndexedBenchmark):
            yield from map(encoded, benchmark.examples(*arguments, n, self._spec.seed))
            return
        # The first alone: it reads what all share, and shows what is wrong. A tokenizer lets go of Python while it
        # works, so that threads are enough.
        yield encoded(benchmark.example(*arguments, self._spec.seed, 0))
        cores = usable_cores()
        pool = ThreadPoolExecutor(cores)
        try:
            ahead: deque[Future[tuple[Example, array[int]]]] = deque()
            for index in range(1, n):
                ahead.append(pool.submit(lambda i: encoded(benchmark.example(*arguments, self._spec.seed, i)), index))
                if len(ahead) > _AHEAD * cores:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            # Ctrl-C, or an example that cannot be written: nobody waits for those behind it.
            pool.shutdown(wait=False, cancel_futures=True)

    def _encoder(self, task: TaskSpec, folder: Path) -> PromptEncoder:
        key = (folder, self._spec.chat_template and task.chat_template)
        if key not in self._encoders:
            self._encoders[key] = PromptEncoder(prompt_tokenizer(folder), key[1])
        return self._encoders[key]


class _Parts(Iterator[Part]):
    """Takes examples in parts, and one more to see whether a part is the last; keeps no part that it has given."""

    def __init__(self, examples: Iterator[tuple[Example, array[int]]], size: int) -> None:
        self._examples = examples
        self._size = size
        self._following: Made | None = None

    def __next__(self) -> Part:
        first = self._following is None
        made = [*(self._following or islice(self._examples, 1)), *islice(self._examples, self._size - 1)]
        if not made:
            raise StopIteration
        self._following = list(islice(self._examples, 1))
        return Part(made, first, not self._following)
