"""From what was asked for to the cells that answer it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longctx_bench.benchmarks.base import Benchmark
from longctx_bench.core.code_digest import CodeDigest
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import content_digest, is_local, resolve_revision
from longctx_bench.core.specs import Source, TaskSpec
from longctx_bench.core.types import NATURAL, Cell
from longctx_bench.engines.base import EngineInfo
from longctx_bench.models.variant import ModelVariant
from longctx_bench.registry import LoadedMetric, Registry
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import CellSpec, MethodRecord, ModelRecord, TaskRecord


@dataclass(frozen=True)
class RunSpec:
    """Everything that a run was asked for."""

    variants: tuple[ModelVariant, ...]
    tasks: tuple[TaskSpec, ...]
    scales: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    limit: int | None = None
    seed: int = 42
    chat_template: bool = False
    rerun: bool = False

    def __post_init__(self) -> None:
        """Refuse what no cell can be.

        Raises:
            UserError: no length, or a scale, length or limit that is not positive.
        """
        if not self.scales and not self.lengths:
            raise UserError("name a length: --scale 1x,2x or --length 4096")
        sizes = (*self.scales, *(length for length in self.lengths if length != NATURAL), self.limit or 1)
        if min(sizes) <= 0 or self.limit == 0:
            raise UserError("scales, lengths and limit must be above 0")

    def cell_lengths(self, variant: ModelVariant) -> list[int]:
        """Return the lengths for one model: multiples of its training context, or the absolute ones."""
        scaled = [round(scale * variant.model.original_length) for scale in self.scales]
        return sorted({*scaled, *self.lengths})


@dataclass(frozen=True)
class PlannedCell:
    """One cell of a run with all that it takes to run it."""

    cell: Cell
    variant: ModelVariant
    task: TaskSpec
    kind: str
    """The benchmark's: ``generate``, ``loss`` or ``lm_eval``."""
    n: int
    spec: CellSpec
    done: bool

    def raised_by(self, error: Exception) -> str:
        """Return the plug-in that an error comes from: its file and line where they are known, else all that may be."""
        uses = (self.variant.spec.use, self.task.use, self.task.metric)
        files = {Path(use.partition(":")[0]).name: use for use in uses if use.startswith("./")}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if use := files.get(Path(frame.filename).name):
                return f"{use}, line {frame.lineno}"
        return " or ".join(uses)


def plan(spec: RunSpec, engine: EngineInfo, store: ResultStore, registry: Registry) -> list[PlannedCell]:
    """List a run's cells, grouped by weights so that each is loaded once.

    Raises:
        UserError: a task's parameters or metric are wrong.
    """
    cells = []
    # First: what is built from here on is built of this code, whatever becomes of the files meanwhile.
    codes = {task.name: registry.benchmark_code(task) for task in spec.tasks}
    benchmarks = {task.name: registry.benchmark(task) for task in spec.tasks}
    scorings: dict[str, LoadedMetric] = {}
    for task in spec.tasks:
        kind = benchmarks[task.name].kind
        if kind != "lm_eval":
            scorings[task.name] = registry.load_metric(task)
        if kind != "lm_eval" and (scorings[task.name].metric.name == "token_loss") != (kind == "loss"):
            raise UserError(f"task {task.name}: metric '{task.metric}' does not go with {task.use}")
        if NATURAL in spec.lengths and not benchmarks[task.name].natural:
            raise UserError(
                f"--length natural: {task.name} has no documents of its own length; name a number of tokens"
            )
    # Once a run: a digest reads megabytes of each local model.
    here = {source: _as_of_now(source) for source in dict.fromkeys(variant.source for variant in spec.variants)}
    contestants = [replace(variant, source=here[variant.source]) for variant in spec.variants]
    sources = set(here.values())
    sources |= {source for benchmark in benchmarks.values() for source in _sources(benchmark).values()}
    digests: dict[Source, str | None] = {source: content_digest(source) for source in sources if is_local(source)}
    for source in dict.fromkeys(variant.source for variant in contestants):
        variants = [variant for variant in contestants if variant.source == source]
        for task in spec.tasks:
            for length in sorted({length for variant in variants for length in spec.cell_lengths(variant)}):
                # Methods in the innermost loop: they share the weights that are loaded and the prompts that are made.
                for variant in variants:
                    if length in spec.cell_lengths(variant):
                        described = _cell_spec(
                            spec,
                            variant,
                            task,
                            benchmarks[task.name],
                            scorings.get(task.name),
                            {"method": variant.code, "task": codes[task.name]},
                            length,
                            engine,
                            digests,
                        )
                        cell = Cell(variant.model.name, variant.method_name, task.name, length)
                        n = spec.limit or task.samples
                        done = not spec.rerun and store.done(cell, described, n)
                        cells.append(PlannedCell(cell, variant, task, benchmarks[task.name].kind, n, described, done))
    return cells


def _as_of_now(source: Source) -> Source:
    """Pin a hub repository; one that cannot be had fails its own cells when they begin, and no others."""
    try:
        return resolve_revision(source)
    except UserError:
        return source


def _sources(benchmark: Benchmark) -> dict[str, Any]:
    """Return the data of a benchmark that lies on this machine, by field."""
    fields = {name: getattr(benchmark, name) for name in type(benchmark).model_fields}
    return {name: value for name, value in fields.items() if is_local(value)}


def _params(benchmark: Benchmark) -> dict[str, Any]:
    """Return a benchmark's parameters; a local file in place of a named source by that name, its digest tells it."""
    aliases = {name: source.alias for name, source in _sources(benchmark).items() if getattr(source, "alias", None)}
    return benchmark.model_dump(mode="json") | aliases


def _cell_spec(
    spec: RunSpec,
    variant: ModelVariant,
    task: TaskSpec,
    benchmark: Benchmark,
    scoring: LoadedMetric | None,
    plugins: Mapping[str, CodeDigest | None],
    length: int,
    engine: EngineInfo,
    digests: Mapping[Source, str | None],
) -> CellSpec:
    """Return what a cell's numbers depend on."""
    method, model = variant.method, variant.model
    local: dict[str, Any] = {"weights": variant.source, **_sources(benchmark)}
    # lm-eval's tasks bring metrics of their own.
    metric_name, metric_version = (scoring.metric.name, scoring.metric.version) if scoring else (task.metric, 1)
    plugins = {**plugins, "metric": scoring.code if scoring else None}
    return CellSpec(
        model=ModelRecord(
            name=model.name,
            original_length=model.original_length,
            source=model.source.model_dump(mode="json"),
            licence=model.licence,
            native_method=model.native_method,
        ),
        weights=variant.source.model_dump(mode="json"),
        method=MethodRecord(
            name=variant.spec.name,
            id=method.component_id(),
            version=method.version,
            use=variant.spec.use,
            params=method.model_dump(mode="json"),
        ),
        task=TaskRecord(
            name=task.name,
            benchmark=benchmark.component_id(),
            benchmark_version=benchmark.version,
            use=task.use,
            metric=metric_name,
            metric_version=metric_version,
            max_new_tokens=task.max_new_tokens,
            min_new_tokens=task.min_new_tokens,
            stop=list(task.stop),
            chat_template=task.chat_template,
            protocol=task.protocol,
            grid=benchmark.grid,
            params=_params(benchmark),
        ),
        digests={name: digests[source] for name, source in local.items() if source in digests},
        code={part: source.record() for part, source in plugins.items() if source is not None},
        length=length,
        seed=spec.seed,
        chat_template=spec.chat_template,
        engine=engine.name,
        dtype=engine.dtype,
    )
