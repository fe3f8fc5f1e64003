"""Local executor: one engine in this process, batches in sequence."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from longctx_bench.engines.base import Engine
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.base import CellJob, JobResult, Note
from longctx_bench.runner.strategies import CellContext


class LocalExecutor:
    """Runs all batches on one engine in this process."""

    name = "local"

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine = engine
        self._registry = registry

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self._engine

    def results(self, jobs: Iterator[CellJob], note: Note) -> Iterator[JobResult]:
        """Run the jobs in order."""
        for job in jobs:
            try:
                yield from self._run(job)
            except Exception as error:  # noqa: BLE001 (the runner decides whether it is a user error)
                yield JobResult(job, error=error)

    def _run(self, job: CellJob) -> Iterator[JobResult]:
        planned, strategy = job.planned, job.planned.strategy
        context = CellContext(job.folder, job.model, planned.task, self._registry, planned.settings)
        batches = job.unfinished(strategy.batches(self._engine, job.folder, job.requests, job.per_prompt))
        for number, batch in enumerate(batches, 1):
            result = strategy.run_batch(self._engine, context, batch, job.examples)
            yield JobResult(job, result, last=number == len(batches))
            if job.closed:
                return

    def describe(self) -> dict[str, Any] | None:
        """Return None: records without an executor are local."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
