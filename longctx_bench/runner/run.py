"""The loop over cells: the one place where benchmarks, engines, metrics and the store meet."""

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
from longctx_bench.metrics import shipped_metric
from longctx_bench.models.metadata import virtual_length
from longctx_bench.registry import ALL_EXAMPLES, Registry
from longctx_bench.runner.executors.base import Executor, HarnessSettings, OpenCell, RemoteError, Result, Work
from longctx_bench.runner.plan import PlannedCell, RunSpec
from longctx_bench.runner.request_builder import Part, PromptCache
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import SCHEMA_VERSION, CellKey, CellResult, Tuning


@dataclass
class Outcome:
    """What a run did."""

    finished: list[Cell] = field(default_factory=list)
    """Cells that are complete now, those of earlier runs included."""
    skipped: list[tuple[Cell, str]] = field(default_factory=list)
    """Cells whose task does not fit their length, with the reason."""
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    """Cells that could not be finished, with the reason."""


class Progress(Protocol):
    """What the runner tells whoever watches."""

    def begin(self, cells: int, examples: int) -> None:
        """A run begins."""

    def cell(self, planned: PlannedCell, examples: int) -> None:
        """A cell begins that has so many examples left to run."""

    def advance(self, examples: int) -> None:
        """So many examples are stored."""

    def note(self, message: str) -> None:
        """Something worth a line happened."""

    def end_cell(self, planned: PlannedCell, left: int) -> None:
        """A cell ended with so many examples not run."""


class Silent:
    """Progress that nobody watches."""

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
    """Runs planned cells on an executor into one store; the store is written here alone."""

    executor: Executor
    store: ResultStore
    registry: Registry
    spec: RunSpec
    progress: Progress = field(default_factory=Silent)

    def run(self, cells: Sequence[PlannedCell]) -> Outcome:
        """Run what is missing; one cell that fails does not stop the others.

        Raises:
            UserError: the output folder is held by another run or cannot be written, the disk is full, or nothing is
                left to run on.
        """
        outcome = Outcome()
        with self.store.locked():
            open_cells = [planned for planned in cells if not planned.done]
            self.progress.begin(len(cells), sum(_units(planned) for planned in open_cells))
            outcome.finished += [planned.cell for planned in cells if planned.done]
            for result in self.executor.results(self._opened(open_cells, outcome), self.progress.note):
                try:
                    self._keep(result, outcome)
                except Exception as error:  # noqa: BLE001 (a method or benchmark of someone's own may raise anything)
                    self._close(result.work.cell, outcome, error)
        return outcome

    def _opened(self, cells: Sequence[PlannedCell], outcome: Outcome) -> Iterator[Work]:
        """Yield what there is to run, each part of a cell opened when it is asked for."""
        cache = PromptCache(self.registry, self.spec)
        for planned in cells:
            try:
                cell = self._open(planned)
            except Exception as error:  # noqa: BLE001 (as in run)
                self._ended(outcome, planned, error)
                continue
            try:
                yield from self._harness_work(cell) if planned.kind == "lm_eval" else self._parts(cell, cache, outcome)
            except Exception as error:  # noqa: BLE001 (as in run)
                self._close(cell, outcome, error)

    def _close(self, cell: OpenCell, outcome: Outcome, error: Exception) -> None:
        """Run no more of a cell, and note why, once; raises as :meth:`_ended`."""
        already, cell.closed = cell.closed, True
        if not already:
            self._ended(outcome, cell.planned, error)

    def _ended(self, outcome: Outcome, planned: PlannedCell, error: Exception) -> None:
        """Note a cell that cannot be finished.

        Raises:
            Exception: the error itself, when it is a bug of this project, or the disk is full: no other cell could be
                stored either.
        """
        if isinstance(error, DiskFull):
            raise error
        if isinstance(error, ContextTooShort):
            outcome.skipped.append((planned.cell, str(error)))
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
        outcome.failed.append((planned.cell, reason))
        self.progress.note(f"{planned.cell}: failed: {reason}")
        # A folder that cannot be written may be the very reason.
        with suppress(UserError):
            self.store.fail(planned.cell, planned.spec, reason)

    def _open(self, planned: PlannedCell) -> OpenCell:
        resolved = planned.variant.resolve()
        # Refuses a method that this base cannot take before anything heavy is loaded.
        overrides = planned.variant.method.model_overrides(resolved.base, planned.cell.length)
        trained_for = virtual_length(planned.variant.source)
        return OpenCell(planned, resolved.folder, resolved.at(planned.cell.length), trained_for, overrides=overrides)

    def _parts(self, cell: OpenCell, cache: PromptCache, outcome: Outcome) -> Iterator[Work]:
        """Yield the parts of a cell that have something to run."""
        planned = cell.planned
        if "prompt" not in planned.variant.method.capabilities:
            self._refuse_impossible(planned, cell.folder, planned.cell.length)
        # No part is referred to here while the next one is written.
        for work in map(partial(self._work, cell, cache), cache.parts(planned, cell.folder)):
            if work.left:
                yield work
            else:
                work.release()
            if cell.closed:
                return
        if not cell.examples:
            raise ContextTooShort(f"{planned.task.name}: its data hold no examples")
        if not work.left and not cell.running:
            self._finish(cell, self.executor.engine.settings(), outcome)

    def _work(self, cell: OpenCell, cache: PromptCache, part: Part) -> Work:
        planned, base = cell.planned, cell.contestant.base
        known = {example.id: example for example, _ in part.made}
        requests = cache.requests_of(part.made, planned, cell.folder, base)
        longest = max(map(num_total_tokens, requests))
        self._refuse_impossible(planned, cell.folder, longest)
        cell.longest = max(cell.longest, longest)
        cell.overrides = planned.variant.method.model_overrides(base, planned.cell.length or cell.longest)
        if part.first:
            # What is refused above leaves no trace of a cell.
            cell.have = self.store.start(planned.cell, planned.spec, self.spec.rerun, self.progress.note)
        for name, example in known.items():
            if name in cell.have and cell.have[name] != example.hash:
                raise UserError(f"{planned.cell}: stored example {name} has another prompt; run again with --rerun")
        self.store.keep_excerpts(planned.cell, known.values())
        missing = sum(request.example_id not in cell.have for request in requests)
        if part.first:
            stored = sum(name < example_id(planned.n) for name in cell.have)
            cell.left = missing if part.last else planned.n - stored
            self.progress.cell(planned, cell.left)
        cell.examples += len(known)
        cell.running += missing > 0
        cell.complete = part.last
        return Work(cell, requests, known, left=missing)

    def _harness_work(self, cell: OpenCell) -> Iterator[Work]:
        planned = cell.planned
        self.progress.cell(planned, planned.n)
        limit = None if planned.n == ALL_EXAMPLES else planned.n
        cell.left = _units(planned)
        settings = HarnessSettings(limit, self.spec.seed, self.spec.chat_template and planned.task.chat_template)
        yield Work(cell, harness=settings)

    def _keep(self, result: Result, outcome: Outcome) -> None:
        """Store what a batch brought, and finish its cell after the last one."""
        work, cell = result.work, result.work.cell
        if result.error is not None:
            raise result.error
        assert result.answer is not None
        answer, planned = result.answer, cell.planned
        cell.peak = max((peak for peak in (cell.peak, answer.peak) if peak is not None), default=None)
        if answer.whole is not None:
            # Only now is a cell from before replaced: what fails before takes nothing away.
            self.store.start(planned.cell, planned.spec, rerun=True, note=self.progress.note)
            self.store.append(planned.cell, answer.finished)
            whole = asdict(answer.whole)
            self._finish(cell, answer.engine, outcome, lm_eval=whole.pop("details"), **whole)
            return
        fresh = [item for item in answer.finished if item.record["id"] not in cell.have]
        self.store.append(planned.cell, fresh)
        cell.left -= len(fresh)
        self.progress.advance(len(fresh))
        if result.last:
            work.release()
            cell.running -= 1
            if cell.complete and not cell.running and not cell.closed:
                self._finish(cell, answer.engine, outcome)

    def _finish(self, cell: OpenCell, engine: dict[str, Any], outcome: Outcome, **own: Any) -> None:
        self.store.finish(cell.planned.cell, replace(self._result(cell, engine), **own))
        self.progress.end_cell(cell.planned, cell.left)
        outcome.finished.append(cell.planned.cell)

    def _refuse_impossible(self, planned: PlannedCell, folder: Path, length: int) -> None:
        engine = self.executor.engine
        footprint = engine.estimate_memory(folder)
        if footprint is None:
            return
        # A loss is read off one pass over the whole row; a prompt can be prefilled in pieces.
        needed = footprint.peak(length, chunk=length if planned.kind == "loss" else 256)
        if needed > footprint.available:
            raise UserError(
                f"length {length} needs about {_gib(needed)} of memory for one prompt and "
                f"{_gib(footprint.available)} are free on {engine.device}; choose a smaller length or "
                f"--dtype bfloat16"
            )

    def _result(self, open_cell: OpenCell, engine: dict[str, Any]) -> CellResult:
        planned, cell = open_cell.planned, open_cell.planned.cell
        totals = _Totals.of(self.store.records(cell))
        if totals.n < open_cell.examples:
            raise UserError(
                f"{self.store.path(cell)}: records.jsonl holds {totals.n} of {open_cell.examples} examples before "
                f"the first that is missing; run again with --rerun"
            )
        method = planned.variant.method
        # Whoever reads results knows what ships, and imports nothing.
        own = planned.kind != "lm_eval" and shipped_metric(planned.spec.task.metric) is None
        measure = self.registry.metric(planned.task).metric if own else None
        longest = cell.length or totals.longest_prompt + planned.task.max_new_tokens
        tuning = method.applied_scalar(open_cell.contestant.base, longest)
        return CellResult(
            schema_version=SCHEMA_VERSION,
            cell=CellKey(cell.model, cell.method, cell.task, cell.length),
            original_length=planned.variant.model.original_length,
            metric=planned.spec.task.metric,
            score=totals.score,
            n=totals.n,
            # The data holds no more, whatever number is asked for.
            exhausted=(open_cell.examples or totals.n) < planned.n,
            prompt_tokens=totals.prompt_tokens,
            new_tokens=totals.new_tokens,
            seconds=self.store.seconds(cell),
            factor=method.factor or max(1.0, longest / planned.variant.model.original_length),
            factor_source=_factor_source(planned),
            applied=open_cell.overrides,
            tuning=None if tuning is None else Tuning(*tuning),
            virtual_length=open_cell.virtual_length,
            spec_hash=planned.spec.hash,
            spec=planned.spec,
            engine=engine,
            environment=provenance.environment(),
            executor=self.executor.describe(),
            peak_memory=open_cell.peak,
            percent=None if measure is None else measure.percent,
            higher_is_better=None if measure is None else measure.higher_is_better,
            finished=provenance.now(),
        )


@dataclass
class _Totals:
    """What is summed up over a cell's records."""

    score: float = 0.0
    """The mean over examples; of losses, over the tokens that were scored."""
    n: int = 0
    scored: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    longest_prompt: int = 0

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> _Totals:
        """Sum up in one pass, holding one record at a time."""
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


def _units(planned: PlannedCell) -> int:
    """Return what a cell counts in the progress: its examples, or one where lm-eval runs it whole."""
    return 1 if planned.kind == "lm_eval" else planned.n


def _factor_source(planned: PlannedCell) -> str:
    if planned.variant.method.factor is not None:
        return "fixed"
    return "each prompt" if planned.cell.length == NATURAL else "derived"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
