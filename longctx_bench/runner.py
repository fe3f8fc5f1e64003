"""The loop over cells: the one place where benchmarks, engines, metrics and the store meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import fsum
from pathlib import Path
from typing import Any, Protocol

from longctx_bench import provenance
from longctx_bench.engines.base import Contestant
from longctx_bench.engines.batching import total_tokens
from longctx_bench.engines.checkpoints import checkpoint_folder, read_config
from longctx_bench.errors import DiskFull, DoesNotFit, UserError
from longctx_bench.executors.base import Executor, HarnessSettings, RemoteError, Result, Work
from longctx_bench.methods.base import Method
from longctx_bench.plan import PlannedCell, RunSpec
from longctx_bench.prompts import PromptCache
from longctx_bench.records import NATURAL, Cell
from longctx_bench.registry import ALL, Registry
from longctx_bench.store import ResultStore, spec_hash


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
                    already, result.work.closed = result.work.closed, True
                    if not already:
                        self._ended(outcome, result.work.planned, error)
        return outcome

    def _opened(self, cells: Sequence[PlannedCell], outcome: Outcome) -> Iterator[Work]:
        """Yield the cells that have something to run, each opened when it is asked for."""
        cache = PromptCache(self.registry, self.spec)
        for planned in cells:
            try:
                work = self._harness_work(planned) if planned.kind == "lm_eval" else self._work(planned, cache)
                if not work.left:
                    self._finish(work, self.executor.engine.describe(), outcome)
                    continue
            except Exception as error:  # noqa: BLE001 (as in run)
                self._ended(outcome, planned, error)
                continue
            yield work

    def _ended(self, outcome: Outcome, planned: PlannedCell, error: Exception) -> None:
        """Note a cell that cannot be finished.

        Raises:
            Exception: the error itself, when it is a bug of this project, or the disk is full: no other cell could be
                stored either.
        """
        if isinstance(error, DiskFull):
            raise error
        if isinstance(error, DoesNotFit):
            outcome.skipped.append((planned.cell, str(error)))
            self.progress.note(f"{planned.cell}: skipped: {error}")
            return
        reason = str(error)
        if isinstance(error, MemoryError):
            reason = f"the memory of this machine is full{f' ({reason})' if reason else ''}; choose a smaller --length"
        elif not isinstance(error, UserError):
            uses = (planned.variant.spec.use, planned.task.use)
            if all(use.startswith("longctx_bench.") for use in uses):
                raise error
            kind = "" if isinstance(error, RemoteError) else f"{type(error).__name__}: "
            reason = f"{kind}{error} (raised by {' or '.join(uses)})"
        outcome.failed.append((planned.cell, reason))
        self.progress.note(f"{planned.cell}: failed: {reason}")
        # A folder that cannot be written may be the very reason.
        with suppress(UserError):
            self.store.fail(planned.cell, planned.spec, reason)

    def _work(self, planned: PlannedCell, cache: PromptCache) -> Work:
        folder = checkpoint_folder(planned.variant.source)
        base = planned.variant.base(read_config(folder))
        contestant = Contestant(base, planned.variant.method, planned.cell.length)
        # Refuses a method that this base cannot take before anything heavy is loaded.
        planned.variant.method.model_overrides(base, planned.cell.length)
        if type(planned.variant.method).prompt is Method.prompt:
            self._refuse_impossible(planned, folder, planned.cell.length)
        known = {example.id: example for example in cache.examples(planned, folder)}
        if not known:
            raise DoesNotFit(f"{planned.task.name}: its data hold no examples")
        requests = cache.requests(planned, folder, base)
        longest = max(map(total_tokens, requests))
        self._refuse_impossible(planned, folder, longest)
        overrides = planned.variant.method.model_overrides(base, planned.cell.length or longest)
        # What is refused above leaves no trace of a cell.
        have = self.store.start(planned.cell, planned.spec, self.spec.rerun, self.progress.note)
        for name, stored in have.items():
            if name in known and stored != known[name].hash:
                raise UserError(f"{planned.cell}: stored example {name} has another prompt; run again with --rerun")
        self.store.keep_excerpts(planned.cell, known.values())
        missing = sum(request.example_id not in have for request in requests)
        self.progress.cell(planned, missing)
        return Work(planned, folder, contestant, requests, known, have.keys(), overrides=overrides, left=missing)

    def _harness_work(self, planned: PlannedCell) -> Work:
        folder = checkpoint_folder(planned.variant.source)
        base = planned.variant.base(read_config(folder))
        overrides = planned.variant.method.model_overrides(base, planned.cell.length)
        self.progress.cell(planned, planned.n)
        contestant = Contestant(base, planned.variant.method, planned.cell.length)
        limit = None if planned.n == ALL else planned.n
        settings = HarnessSettings(limit, self.spec.seed, self.spec.chat_template and planned.task.chat_template)
        return Work(planned, folder, contestant, harness=settings, overrides=overrides, left=_units(planned))

    def _keep(self, result: Result, outcome: Outcome) -> None:
        """Store what a batch brought, and finish its cell after the last one."""
        work = result.work
        if result.error is not None:
            raise result.error
        assert result.answer is not None
        answer, cell = result.answer, work.planned.cell
        work.peak = max((peak for peak in (work.peak, answer.peak) if peak is not None), default=None)
        if answer.whole is not None:
            # Only now is a cell from before replaced: what fails before takes nothing away.
            self.store.start(cell, work.planned.spec, rerun=True, note=self.progress.note)
            self.store.append(cell, answer.finished)
            whole = asdict(answer.whole)
            self._finish(work, answer.engine, outcome, lm_eval=whole.pop("details"), **whole)
            return
        fresh = [item for item in answer.finished if item.record["id"] not in work.have]
        self.store.append(cell, fresh)
        work.left -= len(fresh)
        self.progress.advance(len(fresh))
        if result.last and not work.closed:
            self._finish(work, answer.engine, outcome)

    def _finish(self, work: Work, engine: dict[str, Any], outcome: Outcome, **own: Any) -> None:
        known = _known(peak_memory=work.peak, executor=self.executor.describe())
        self.store.finish(work.planned.cell, self._summary(work, engine) | known | own)
        self.progress.end_cell(work.planned, work.left)
        outcome.finished.append(work.planned.cell)

    def _refuse_impossible(self, planned: PlannedCell, folder: Path, length: int) -> None:
        engine = self.executor.engine
        footprint = engine.footprint(folder)
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

    def _summary(self, work: Work, engine: dict[str, Any]) -> dict[str, Any]:
        planned, cell = work.planned, work.planned.cell
        records = self.store.records(cell)
        if len(records) < len(work.examples):
            raise UserError(
                f"{self.store.path(cell)}: records.jsonl holds {len(records)} of {len(work.examples)} examples before "
                f"the first that is missing; run again with --rerun"
            )
        method = planned.variant.method
        longest = cell.length or max(record["prompt_tokens"] for record in records) + planned.task.max_new_tokens
        tuning = method.tuning(work.contestant.base, longest)
        return {
            "cell": {"model": cell.model, "method": cell.method, "task": cell.task, "length": cell.length},
            "original_length": planned.variant.model.original_length,
            "metric": planned.task.metric,
            "score": _mean(records),
            "n": len(records),
            # The data holds no more, whatever number is asked for.
            "exhausted": len(work.examples or records) < planned.n,
            "prompt_tokens": sum(record["prompt_tokens"] for record in records),
            "new_tokens": sum(record["new_tokens"] for record in records),
            "seconds": self.store.seconds(cell),
            "factor": method.factor or max(1.0, longest / planned.variant.model.original_length),
            "factor_source": _factor_source(planned),
            "applied": work.overrides,
            "tuning": tuning and tuning._asdict(),
            "spec_hash": spec_hash(planned.spec),
            "spec": planned.spec,
            "engine": engine,
            "environment": provenance.environment(),
            "finished": provenance.now(),
        }


def _mean(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean over examples; of losses, over the tokens that were scored."""
    weights = [record.get("scored", 1) for record in records]
    total = fsum(record["score"] * weight for record, weight in zip(records, weights, strict=True))
    return total / float(sum(weights))


def _known(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _units(planned: PlannedCell) -> int:
    """Return what a cell counts in the progress: its examples, or one where lm-eval runs it whole."""
    return 1 if planned.kind == "lm_eval" else planned.n


def _factor_source(planned: PlannedCell) -> str:
    if planned.variant.method.factor is not None:
        return "fixed"
    return "each prompt" if planned.cell.length == NATURAL else "derived"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
