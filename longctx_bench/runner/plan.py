"""Run planning: from models, tasks and lengths to cells."""

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
from longctx_bench.runner.strategies import STRATEGIES, RunSettings, Strategy, run_settings
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import CellSpec, MethodRecord, ModelRecord, TaskRecord


@dataclass(frozen=True)
class RunSpec:
    """The options of a run."""

    variants: tuple[ModelVariant, ...]
    tasks: tuple[TaskSpec, ...]
    scales: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    limit: int | None = None
    seed: int = 42
    chat_template: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Validate lengths and limit.

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
    """One cell of a run, with everything needed to run it."""

    cell: Cell
    variant: ModelVariant
    task: TaskSpec
    kind: str
    """The benchmark's: ``generate``, ``loss`` or ``lm_eval``."""
    n: int
    spec: CellSpec
    done: bool

    @property
    def strategy(self) -> Strategy:
        """How the cell is run."""
        return STRATEGIES[self.kind]

    @property
    def settings(self) -> RunSettings:
        """The options of the run that a harness with prompts of its own needs."""
        return run_settings(self.n, self.spec.seed, self.spec.chat_template and self.task.chat_template)

    def raised_by(self, error: Exception) -> str:
        """Return the plug-in that raised an error: file and line if known, otherwise all plug-ins of the cell."""
        uses = (self.variant.spec.use, self.task.use, self.task.metric)
        files = {Path(use.partition(":")[0]).name: use for use in uses if use.startswith("./")}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if use := files.get(Path(frame.filename).name):
                return f"{use}, line {frame.lineno}"
        return " or ".join(uses)


def plan(spec: RunSpec, engine: EngineInfo, store: ResultStore, registry: Registry) -> list[PlannedCell]:
    """List a run's cells, grouped by checkpoint so that each is loaded once.

    Raises:
        UserError: a task's parameters or metric are wrong.
    """
    cells = []
    # First: everything below is built from this version of the code, even if the files change meanwhile.
    codes = {task.name: registry.benchmark_code(task) for task in spec.tasks}
    benchmarks = {task.name: registry.benchmark(task) for task in spec.tasks}
    scorings: dict[str, LoadedMetric | None] = {}
    for task in spec.tasks:
        scorings[task.name] = STRATEGIES[benchmarks[task.name].kind].load_scoring(task, registry)
        if NATURAL in spec.lengths and not benchmarks[task.name].natural:
            raise UserError(
                f"--length natural: {task.name} has no documents of its own length; name a number of tokens"
            )
    # Once per run: a digest reads megabytes of each local model.
    pinned_sources = {source: _try_pin(source) for source in dict.fromkeys(variant.source for variant in spec.variants)}
    pinned_variants = [replace(variant, source=pinned_sources[variant.source]) for variant in spec.variants]
    sources = set(pinned_sources.values())
    sources |= {source for benchmark in benchmarks.values() for source in _sources(benchmark).values()}
    digests: dict[Source, str | None] = {source: content_digest(source) for source in sources if is_local(source)}
    for source in dict.fromkeys(variant.source for variant in pinned_variants):
        variants = [variant for variant in pinned_variants if variant.source == source]
        for task in spec.tasks:
            for length in sorted({length for variant in variants for length in spec.cell_lengths(variant)}):
                # Methods in the innermost loop: they share the loaded weights and the prompts.
                for variant in variants:
                    if length in spec.cell_lengths(variant):
                        cell_spec = _cell_spec(
                            spec,
                            variant,
                            task,
                            benchmarks[task.name],
                            scorings[task.name],
                            {"method": variant.code, "task": codes[task.name]},
                            length,
                            engine,
                            digests,
                        )
                        cell = Cell(variant.model.name, variant.method_name, task.name, length)
                        n = spec.limit or task.samples
                        done = not spec.overwrite and store.done(cell, cell_spec, n)
                        cells.append(PlannedCell(cell, variant, task, benchmarks[task.name].kind, n, cell_spec, done))
    return cells


def _try_pin(source: Source) -> Source:
    """Pin a hub repository to a commit; an unreachable one fails only its own cells, when they start."""
    try:
        return resolve_revision(source)
    except UserError:
        return source


def _sources(benchmark: Benchmark) -> dict[str, Any]:
    """Return a benchmark's local data sources, by field."""
    fields = {name: getattr(benchmark, name) for name in type(benchmark).model_fields}
    return {name: value for name, value in fields.items() if is_local(value)}


def _params(benchmark: Benchmark) -> dict[str, Any]:
    """Return a benchmark's parameters; a local file in place of a named source keeps that name (its digest differs)."""
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
    """Return everything a cell's numbers depend on."""
    method, model = variant.method, variant.model
    local: dict[str, Any] = {"weights": variant.source, **_sources(benchmark)}
    # External harnesses bring their own metrics.
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
