"""The run loop over cells, where benchmarks, engines, metrics and the store meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from longctx_bench.benchmarks.base import example_id
from longctx_bench.core import provenance
from longctx_bench.core.errors import ContextTooShort, DiskFull, UserError
from longctx_bench.core.types import NATURAL, Cell
from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.metrics import shipped_metric
from longctx_bench.models.metadata import virtual_length
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.base import CellJob, Executor, JobResult, OpenCell, RemoteError
from longctx_bench.runner.plan import PlannedCell, RunSpec
from longctx_bench.runner.request_builder import Part, RequestBuilder
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import SCHEMA_VERSION, CellKey, CellResult, TunedRecord, TuningRecord


@dataclass
class RunResult:
    """The finished, skipped and failed cells of a run."""

    finished: list[Cell] = field(default_factory=list)
    """Complete cells, including those of earlier runs."""
    skipped: list[tuple[Cell, str]] = field(default_factory=list)
    """Cells whose task does not fit their length, with the reason."""
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    """Cells that could not be finished, with the reason."""


class Progress(Protocol):
    """Receives the progress of a run."""

    def begin(self, cells: int, examples: int) -> None:
        """A run starts."""

    def cell(self, planned: PlannedCell, examples: int) -> None:
        """A cell starts with ``examples`` left to run."""

    def advance(self, examples: int) -> None:
        """``examples`` more were stored."""

    def note(self, message: str) -> None:
        """A message for the user."""

    def end_cell(self, planned: PlannedCell, left: int) -> None:
        """A cell ended with ``left`` examples not run."""


class NoProgress:
    """Discards the progress."""

    def begin(self, cells: int, examples: int) -> None:
        """Ignore."""

    def cell(self, planned: PlannedCell, examples: int) -> None:
        """Ignore."""

    def advance(self, examples: int) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def end_cell(self, planned: PlannedCell, left: int) -> None:
        """Ignore."""


@dataclass
class Runner:
    """Runs planned cells on an executor and writes their results; the only writer of the store."""

    executor: Executor
    store: ResultStore
    registry: Registry
    spec: RunSpec
    progress: Progress = field(default_factory=NoProgress)

    def run(self, cells: Sequence[PlannedCell]) -> RunResult:
        """Run the missing cells; a failed cell does not stop the others.

        Raises:
            UserError: the results folder is locked by another run or cannot be written, the disk is full, or no engine
                is left.
        """
        run_result = RunResult()
        with self.store.locked():
            open_cells = [planned for planned in cells if not planned.done]
            self.progress.begin(len(cells), sum(planned.strategy.num_units(planned.n) for planned in open_cells))
            run_result.finished += [planned.cell for planned in cells if planned.done]
            for result in self.executor.results(self._jobs(open_cells, run_result), self.progress.note):
                try:
                    self._store(result, run_result)
                except Exception as error:  # noqa: BLE001 (plug-ins may raise anything)
                    self._close(result.job.cell, run_result, error)
        return run_result

    def _jobs(self, cells: Sequence[PlannedCell], run_result: RunResult) -> Iterator[CellJob]:
        """Yield the jobs of all cells, each created when it is requested."""
        requests = RequestBuilder(self.registry, self.spec)
        for planned in cells:
            try:
                cell = self._open(planned)
            except Exception as error:  # noqa: BLE001 (as in run)
                self._record_failure(run_result, planned, error)
                continue
            try:
                yield from (
                    self._external_job(cell)
                    if planned.strategy.external
                    else self._request_jobs(cell, requests, run_result)
                )
            except Exception as error:  # noqa: BLE001 (as in run)
                self._close(cell, run_result, error)

    def _close(self, cell: OpenCell, run_result: RunResult, error: Exception) -> None:
        """Drop the rest of a failed cell and record the reason once; raises as :meth:`_record_failure`."""
        was_closed, cell.closed = cell.closed, True
        if not was_closed:
            self._record_failure(run_result, cell.planned, error)

    def _record_failure(self, run_result: RunResult, planned: PlannedCell, error: Exception) -> None:
        """Record a cell as skipped or failed.

        Raises:
            Exception: the error itself if it is a bug of this project, or if the disk is full, so that no other cell
                could be stored either.
        """
        if isinstance(error, DiskFull):
            raise error
        if isinstance(error, ContextTooShort):
            run_result.skipped.append((planned.cell, str(error)))
            self.progress.note(f"{planned.cell}: skipped: {error}")
            return
        reason = str(error)
        if isinstance(error, MemoryError):
            reason = f"the memory of this machine is full{f' ({reason})' if reason else ''}; choose a smaller --length"
        elif not isinstance(error, UserError):
            if not planned.spec.code:
                raise error
            kind = "" if isinstance(error, RemoteError) else f"{type(error).__name__}: "
            reason = f"{kind}{error} (raised by {planned.raised_by(error)})"
        run_result.failed.append((planned.cell, reason))
        self.progress.note(f"{planned.cell}: failed: {reason}")
        # The reason may be that the folder cannot be written.
        with suppress(UserError):
            self.store.record_failure(planned.cell, planned.spec, reason)

    def _open(self, planned: PlannedCell) -> OpenCell:
        resolved = planned.variant.resolve()
        # Raises for a method that this base does not support, before the weights are loaded.
        overrides = planned.variant.method.model_overrides(resolved.base, planned.cell.length)
        trained_for = virtual_length(planned.variant.source)
        return OpenCell(planned, resolved.folder, resolved.at(planned.cell.length), trained_for, overrides=overrides)

    def _request_jobs(self, cell: OpenCell, builder: RequestBuilder, run_result: RunResult) -> Iterator[CellJob]:
        """Yield the jobs of a cell that have unmeasured examples."""
        planned = cell.planned
        if "prompt" not in planned.variant.method.capabilities:
            self._require_memory(planned, cell.folder, planned.cell.length)
        # map() holds no reference to a job while the next one's prompts are written.
        for job in map(partial(self._request_job, cell, builder), builder.parts(planned, cell.folder)):
            if job.num_missing:
                yield job
            else:
                job.release()
            if cell.closed:
                return
        if not cell.num_examples:
            raise ContextTooShort(f"{planned.task.name}: its data hold no examples")
        if not job.num_missing and not cell.num_running_jobs:
            self._finish(cell, self.executor.engine.settings(), run_result)

    def _request_job(self, cell: OpenCell, builder: RequestBuilder, part: Part) -> CellJob:
        planned, base = cell.planned, cell.model.base
        examples = {example.id: example for example, _ in part.examples}
        requests = builder.requests_of(part.examples, planned, cell.folder, base)
        longest = max(map(num_total_tokens, requests))
        self._require_memory(planned, cell.folder, longest)
        cell.max_tokens = max(cell.max_tokens, longest)
        cell.overrides = planned.variant.method.model_overrides(base, planned.cell.length or cell.max_tokens)
        if part.first:
            # After the checks above, so that a rejected cell leaves no files.
            cell.stored = self.store.start(planned.cell, planned.spec, self.spec.overwrite, self.progress.note)
        for name, example in examples.items():
            if name in cell.stored and cell.stored[name] != example.hash:
                raise UserError(f"{planned.cell}: stored example {name} has another prompt; run again with --overwrite")
        self.store.save_excerpts(planned.cell, examples.values())
        missing = sum(request.example_id not in cell.stored for request in requests)
        if part.first:
            stored = sum(name < example_id(planned.n) for name in cell.stored)
            cell.num_remaining = missing if part.last else planned.n - stored
            self.progress.cell(planned, cell.num_remaining)
        cell.num_examples += len(examples)
        cell.num_running_jobs += missing > 0
        cell.all_jobs_created = part.last
        return CellJob(cell, requests, examples, num_missing=missing)

    def _external_job(self, cell: OpenCell) -> Iterator[CellJob]:
        planned = cell.planned
        self.progress.cell(planned, planned.n)
        cell.num_remaining = planned.strategy.num_units(planned.n)
        yield CellJob(cell)

    def _store(self, result: JobResult, run_result: RunResult) -> None:
        """Store the records of a batch, and finish its cell after the last one."""
        job, cell = result.job, result.job.cell
        if result.error is not None:
            raise result.error
        assert result.batch is not None
        batch, planned = result.batch, cell.planned
        cell.peak_memory = max((peak for peak in (cell.peak_memory, batch.peak) if peak is not None), default=None)
        if batch.harness is not None:
            # An earlier result is replaced only now: a failed run takes nothing away.
            self.store.start(planned.cell, planned.spec, overwrite=True, note=self.progress.note)
            self.store.append(planned.cell, batch.finished)
            summary = asdict(batch.harness)
            self._finish(cell, batch.engine, run_result, lm_eval=summary.pop("details"), **summary)
            return
        new_records = [item for item in batch.finished if item.record["id"] not in cell.stored]
        self.store.append(planned.cell, new_records)
        cell.num_remaining -= len(new_records)
        self.progress.advance(len(new_records))
        if result.last:
            job.release()
            cell.num_running_jobs -= 1
            if cell.all_jobs_created and not cell.num_running_jobs and not cell.closed:
                self._finish(cell, batch.engine, run_result)

    def _finish(self, cell: OpenCell, engine: dict[str, Any], run_result: RunResult, **overrides: Any) -> None:
        self.store.finish(cell.planned.cell, replace(self._result(cell, engine), **overrides))
        self.progress.end_cell(cell.planned, cell.num_remaining)
        run_result.finished.append(cell.planned.cell)

    def _require_memory(self, planned: PlannedCell, folder: Path, length: int) -> None:
        engine = self.executor.engine
        memory = engine.estimate_memory(folder)
        if memory is None:
            return
        needed = memory.peak(length, chunk=planned.strategy.prefill_chunk(length))
        if needed > memory.available:
            raise UserError(
                f"length {length} needs about {_gib(needed)} of memory for one prompt and "
                f"{_gib(memory.available)} are free on {engine.device}; choose a smaller length or "
                f"--dtype bfloat16"
            )

    def _result(self, open_cell: OpenCell, engine: dict[str, Any]) -> CellResult:
        planned, cell = open_cell.planned, open_cell.planned.cell
        totals = _Totals.of(self.store.records(cell))
        if totals.n < open_cell.num_examples:
            raise UserError(
                f"{self.store.path(cell)}: records.jsonl holds {totals.n} of {open_cell.num_examples} examples before "
                f"the first that is missing; run again with --overwrite"
            )
        method = planned.variant.method
        # Recorded for plug-in metrics only: reports know the shipped ones and import no plug-ins.
        scoring = planned.strategy.scoring(planned.task, self.registry)
        is_plugin = scoring is not None and shipped_metric(planned.spec.task.metric) is None
        plugin_metric = scoring.metric if scoring is not None and is_plugin else None
        longest = cell.length or totals.longest_prompt + planned.task.max_new_tokens
        base = open_cell.model.base
        tuning = method.applied_scalar(base, longest)
        return CellResult(
            schema_version=SCHEMA_VERSION,
            cell=CellKey(cell.model, cell.method, cell.task, cell.length),
            original_length=planned.variant.model.original_length,
            metric=planned.spec.task.metric,
            score=totals.score,
            n=totals.n,
            # The data has fewer examples than requested.
            exhausted=(open_cell.num_examples or totals.n) < planned.n,
            prompt_tokens=totals.prompt_tokens,
            new_tokens=totals.new_tokens,
            seconds=self.store.total_seconds(cell),
            factor=method.at(base, longest).factor or max(1.0, longest / planned.variant.model.original_length),
            factor_source=_factor_source(planned, method.at(base, longest)),
            applied=open_cell.overrides,
            tuning=None if tuning is None else TuningRecord(*tuning),
            tuned=_tuned(method, base, longest),
            virtual_length=open_cell.virtual_length,
            spec_hash=planned.spec.hash,
            spec=planned.spec,
            engine=engine,
            environment=provenance.environment(),
            executor=self.executor.describe(),
            peak_memory=open_cell.peak_memory,
            percent=None if plugin_metric is None else plugin_metric.percent,
            higher_is_better=None if plugin_metric is None else plugin_metric.higher_is_better,
            finished=provenance.now(),
        )


@dataclass
class _Totals:
    """Sums over a cell's records."""

    score: float = 0.0
    """Mean over examples; for losses, over scored tokens."""
    n: int = 0
    scored: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    longest_prompt: int = 0

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> _Totals:
        """Sum in one pass, with one record in memory at a time."""
        totals = cls()

        def weighted() -> Iterator[float]:
            for record in records:
                weight = record.get("scored", 1)
                totals.n += 1
                totals.scored += weight
                totals.prompt_tokens += record["prompt_tokens"]
                totals.new_tokens += record["new_tokens"]
                totals.longest_prompt = max(totals.longest_prompt, record["prompt_tokens"])
                yield record["score"] * weight

        total = fsum(weighted())
        totals.score = total / float(totals.scored)
        return totals


def _tuned(method: Method, base: BaseModelInfo, length: int) -> TunedRecord | None:
    tuned, entry = method.tuned_parameters, method.tuned_entry(base, length)
    return None if tuned is None or entry is None else TunedRecord(entry, tuned.table[entry], tuned.objective)


def _factor_source(planned: PlannedCell, at_length: Method) -> str:
    if planned.variant.method.factor is not None:
        return "fixed"
    if at_length.factor is not None:
        return "tuned"
    return "each prompt" if planned.cell.length == NATURAL else "derived"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
