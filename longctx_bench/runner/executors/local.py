"""One engine in this process, one batch after the other."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from longctx_bench.engines.base import Engine
from longctx_bench.registry import Registry
from longctx_bench.runner.executors import batch_worker
from longctx_bench.runner.executors.base import Note, Result, Work


class LocalExecutor:
    """Runs every batch on one engine, here."""

    name = "local"

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine = engine
        self._registry = registry

    @property
    def engine(self) -> Engine:
        """The one engine."""
        return self._engine

    def results(self, works: Iterator[Work], note: Note) -> Iterator[Result]:
        """Run the cells in their order, part by part."""
        for work in works:
            try:
                yield from self._part(work)
            except Exception as error:  # noqa: BLE001 (whose fault it is, the runner decides)
                yield Result(work, error=error)

    def _part(self, work: Work) -> Iterator[Result]:
        planned = work.planned
        if work.harness is not None:
            benchmark = self._registry.benchmark(planned.task)
            answer = batch_worker.whole(self._engine, work.folder, work.contestant, benchmark, work.harness)
            yield Result(work, answer, last=True)
            return
        measure = self._registry.metric(planned.task).metric
        batches = work.unfinished(batch_worker.batches(self._engine, work.folder, work.requests, work.per_prompt))
        for place, batch in enumerate(batches, 1):
            answer = batch_worker.answer(self._engine, planned.kind, measure, work.contestant, batch, work.examples)
            yield Result(work, answer, last=place == len(batches))
            if work.closed:
                return

    def describe(self) -> dict[str, Any] | None:
        """Return None: a run is local unless its records say otherwise."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
