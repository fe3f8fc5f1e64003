"""The loop over cells: the one place where benchmarks, engines, metrics and the store meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from longctx_bench import provenance
from longctx_bench.benchmarks.lm_eval import LMEval
from longctx_bench.engines.base import Contestant, Engine
from longctx_bench.engines.batching import total_tokens
from longctx_bench.engines.checkpoints import checkpoint_folder, load_tokenizer, read_config
from longctx_bench.errors import DoesNotFit, UserError
from longctx_bench.harness.tasks import run_task
from longctx_bench.methods.base import Base, Method
from longctx_bench.metrics import metric
from longctx_bench.plan import PlannedCell, RunSpec
from longctx_bench.prompts import PromptCache
from longctx_bench.records import NATURAL, Cell
from longctx_bench.registry import ALL, Registry
from longctx_bench.store import ResultStore, spec_hash
from longctx_bench.verdicts import continued, predicted


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
    """Runs planned cells on one engine into one store."""

    engine: Engine
    store: ResultStore
    registry: Registry
    spec: RunSpec
    progress: Progress = field(default_factory=Silent)

    def run(self, cells: Sequence[PlannedCell]) -> Outcome:
        """Run what is missing; one cell that fails does not stop the others.

        Raises:
            UserError: the output folder is held by another run or cannot be written.
        """
        outcome = Outcome()
        with self.store.locked():
            open_cells = [planned for planned in cells if not planned.done]
            self.progress.begin(len(cells), sum(_units(planned) for planned in open_cells))
            outcome.finished += [planned.cell for planned in cells if planned.done]
            examples = PromptCache(self.registry, self.spec)
            for planned in open_cells:
                try:
                    self._run_cell(planned, examples)
                    outcome.finished.append(planned.cell)
                except DoesNotFit as error:
                    outcome.skipped.append((planned.cell, str(error)))
                    self.progress.note(f"{planned.cell}: skipped: {error}")
                except UserError as error:
                    self._failed(outcome, planned, str(error))
                except Exception as error:  # a method or benchmark of someone's own may raise anything
                    if planned.variant.spec.use.startswith("longctx_bench.") and planned.task.use.startswith(
                        "longctx_bench."
                    ):
                        raise
                    reason = (
                        f"{type(error).__name__}: {error} (raised by {planned.variant.spec.use} or {planned.task.use})"
                    )
                    self._failed(outcome, planned, reason)
        return outcome

    def _failed(self, outcome: Outcome, planned: PlannedCell, reason: str) -> None:
        outcome.failed.append((planned.cell, reason))
        self.progress.note(f"{planned.cell}: failed: {reason}")
        # A disk that is full may be the very reason.
        with suppress(UserError):
            self.store.fail(planned.cell, planned.spec, reason)

    def _run_cell(self, planned: PlannedCell, cache: PromptCache) -> None:
        if planned.kind == "lm_eval":
            self._run_harness(planned)
            return
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
        have = self.store.start(planned.cell, planned.spec, self.spec.rerun)
        for record in have.values():
            if record["id"] in known and record["hash"] != known[record["id"]].hash:
                raise UserError(
                    f"{planned.cell}: stored example {record['id']} has another prompt; run again with --rerun"
                )
        self.store.keep_excerpts(planned.cell, known.values())
        missing = [request for request in requests if request.example_id not in have]
        self.progress.cell(planned, len(missing))
        if missing:
            self.engine.load(folder)
            self.engine.peak_memory()  # What cells before took does not count.
        measure = metric(planned.task.metric)
        judge = predicted if planned.kind == "loss" else continued
        left = len(missing)
        per_prompt = planned.variant.method.per_prompt or planned.cell.length == NATURAL or judge is predicted
        for batch in self.engine.batches(requests, per_prompt) if missing else []:
            # A batch is the unit of resuming: batches are the same ones in every run, and so are their sums.
            if all(request.example_id in have for request in batch):
                continue
            fresh = judge(self.engine, batch, contestant, measure, known)
            self.store.append(planned.cell, [item for item in fresh if item.record["id"] not in have])
            added = sum(request.example_id not in have for request in batch)
            left -= added
            self.progress.advance(added)
        peak = self.engine.peak_memory() if missing else None
        self.store.finish(planned.cell, self._summary(planned, base, overrides) | _known(peak_memory=peak))
        self.progress.end_cell(planned, left)

    def _run_harness(self, planned: PlannedCell) -> None:
        """Run a task of lm-eval whole: it cannot be taken up in its middle."""
        folder = checkpoint_folder(planned.variant.source)
        base = planned.variant.base(read_config(folder))
        overrides = planned.variant.method.model_overrides(base, planned.cell.length)
        benchmark = self.registry.benchmark(planned.task)
        assert isinstance(benchmark, LMEval)
        self.progress.cell(planned, planned.n)
        self.engine.load(folder)
        self.engine.peak_memory()
        contestant = Contestant(base, planned.variant.method, planned.cell.length)
        limit = None if planned.n == ALL else planned.n
        began = perf_counter()
        settings = (limit, self.spec.seed, self.spec.chat_template and planned.task.chat_template)
        found = run_task(self.engine, contestant, load_tokenizer(folder), benchmark, *settings)
        # Only now is a cell from before replaced: what fails above takes nothing away.
        self.store.start(planned.cell, planned.spec, rerun=True)
        self.store.append(planned.cell, found.finished)
        summary = self._summary(planned, base, overrides)
        own = {"metric": found.metric, "score": found.score, "lm_eval": found.details}
        own |= _known(peak_memory=self.engine.peak_memory())
        self.store.finish(planned.cell, summary | own | {"seconds": round(perf_counter() - began, 3)})
        self.progress.end_cell(planned, _units(planned))

    def _refuse_impossible(self, planned: PlannedCell, folder: Path, length: int) -> None:
        footprint = self.engine.footprint(folder)
        if footprint is None:
            return
        # A loss is read off one pass over the whole row; a prompt can be prefilled in pieces.
        needed = footprint.peak(length, chunk=length if planned.kind == "loss" else 256)
        if needed > footprint.available:
            raise UserError(
                f"length {length} needs about {_gib(needed)} of memory for one prompt and "
                f"{_gib(footprint.available)} are free on {self.engine.device}; choose a smaller length or "
                f"--dtype bfloat16"
            )

    def _summary(self, planned: PlannedCell, base: Base, overrides: dict[str, Any]) -> dict[str, Any]:
        cell = planned.cell
        records = self.store.records(cell)
        method = planned.variant.method
        longest = cell.length or max(record["prompt_tokens"] for record in records) + planned.task.max_new_tokens
        tuning = method.tuning(base, longest)
        return {
            "cell": {"model": cell.model, "method": cell.method, "task": cell.task, "length": cell.length},
            "original_length": planned.variant.model.original_length,
            "metric": planned.task.metric,
            "score": _mean(records),
            "n": len(records),
            # The data holds no more, whatever number is asked for.
            "exhausted": len(records) < planned.n,
            "prompt_tokens": sum(record["prompt_tokens"] for record in records),
            "new_tokens": sum(record["new_tokens"] for record in records),
            "seconds": self.store.seconds(cell),
            "factor": method.factor or max(1.0, longest / planned.variant.model.original_length),
            "factor_source": _factor_source(planned),
            "applied": overrides,
            "tuning": tuning and tuning._asdict(),
            "spec_hash": spec_hash(planned.spec),
            "spec": planned.spec,
            "engine": self.engine.describe(),
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
