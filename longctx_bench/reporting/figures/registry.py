"""The kinds of figures that the command line offers: each from a run's folder to figures by file name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import safe_name, shipped_folder
from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.core.untrusted_files import UnreadableFile, parse_object, read_content
from longctx_bench.reporting.figures.cell_selection import at_scale, scale_name
from longctx_bench.reporting.results import CellSummary, Results, read_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
"""By file name, without its ending."""


@dataclass(frozen=True)
class Material:
    """What figures are drawn from; cells are read when the first kind asks for them."""

    folder: Path
    """A run's."""
    tasks: tuple[str, ...] = ()
    """The tasks to draw; all when empty."""
    scale: float | None = None
    """Where bars and the heat table are drawn; 0 for whole documents."""
    methods: tuple[str, ...] = ()
    """The methods to draw; all when empty."""
    models: tuple[str, ...] = ()
    """The models to draw; all when empty."""
    checkpoints: tuple[Path, ...] = ()
    """Folders with ``loss.csv`` files in or below them, for training curves."""
    shipped_curves: bool = True
    """Without ``checkpoints``, also draw the curves of the shipped checkpoints that were measured."""

    @cached_property
    def results(self) -> Results:
        """The folder's cells.

        Raises:
            UserError: it holds none.
        """
        return read_cells(self.folder)

    @property
    def cells(self) -> list[CellSummary]:
        """The finished cells of the tasks, methods and models to draw."""
        return [
            summary
            for summary in self.results.finished
            if (not self.tasks or summary.cell.task in self.tasks)
            and (not self.methods or summary.cell.method in self.methods)
            and (not self.models or summary.cell.model in self.models)
        ]

    @property
    def missing(self) -> list[str]:
        """One line for each cell that no figure shows, if any kind has read the cells."""
        return self.results.missing if "results" in self.__dict__ else []

    @property
    def name(self) -> str:
        """The tasks, for a file's name."""
        return safe_name("-".join(self.tasks)) if self.tasks else "all"

    def probes(self, kind: str) -> list[Path]:
        """Return the JSON files that a probe wrote.

        Raises:
            UserError: there are none.
        """
        found = sorted((self.folder / "probes" / kind).rglob("*.json"))
        if not found:
            raise UserError(f"{self.folder}: holds no probe; `longctx-bench probe {kind} MODEL` makes one")
        return found


_Frequency = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class _FactorProbe(msgspec.Struct):
    """What ``longctx-bench probe factors`` writes."""

    rope: Annotated[list[_Frequency], msgspec.Meta(min_length=1, max_length=100_000)]
    factors: dict[str, list[Annotated[float, msgspec.Meta(ge=0, le=1e6)]]]
    scale: _Frequency
    original_length: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    model: str


def _heatmaps(material: Material) -> Figures:
    from longctx_bench.reporting.figures.niah_heatmaps import heatmap_sheet

    by_task: dict[str, list[CellSummary]] = {}
    for summary in material.cells:
        if summary.by_depth:
            by_task.setdefault(summary.cell.task, []).append(summary)
    if not by_task:
        heatmap_sheet([])  # says what is missing
    return {f"{safe_name(task)}-heatmap": heatmap_sheet(cells) for task, cells in sorted(by_task.items())}


def _length(material: Material) -> Figures:
    from longctx_bench.reporting.figures.score_vs_length import length_sheet

    return {f"{material.name}-length": length_sheet(material.cells)}


def _bars(material: Material) -> Figures:
    from longctx_bench.reporting.figures.score_bars import bar_sheet

    return {f"{material.name}-bars-{_where(material)}": bar_sheet(material.cells, material.scale)}


def _tasks(material: Material) -> Figures:
    from longctx_bench.reporting.figures.task_heatmap import task_table

    return {f"{material.name}-tasks-{_where(material)}": task_table(material.cells, material.scale)}


def _where(material: Material) -> str:
    chosen = at_scale([s for s in material.cells if s.percent], material.scale)
    return scale_name(chosen[0].scale) if chosen else "none"


def _in_context(material: Material) -> Figures:
    from longctx_bench.reporting.figures.short_context import in_context_sheet

    return {"in-context": in_context_sheet(material.cells, material.scale)}


def _curves(material: Material) -> Figures:
    from longctx_bench.reporting.figures.loss_curves import curve_sheet, read_curves

    missing = [folder for folder in material.checkpoints if not folder.is_dir()]
    if missing:
        raise UserError(f"--checkpoints {missing[0]}: no such folder")
    folders = [material.folder, *material.checkpoints]
    if material.shipped_curves and not material.checkpoints:
        weights = [s.result.spec.weights or {} for s in material.results.finished]
        embedded = {name for name in (source.get("embedded") for source in weights) if name}
        folders += [shipped_folder("baselines") / "checkpoints" / name for name in sorted(embedded)]
    return {"curves": curve_sheet(read_curves(folders))}


def _factors(material: Material) -> Figures:
    from longctx_bench.reporting.figures.rope_factors import factor_sheet

    made = {}
    for path in material.probes("factors"):
        try:
            found = msgspec.convert(_probe(path), _FactorProbe)
        except msgspec.ValidationError as error:
            raise UserError(f"{path}: not what `longctx-bench probe factors` writes ({error}); run it again") from error
        made[f"factors-{path.parent.name}-{path.stem}"] = factor_sheet(
            found.rope, found.factors, found.scale, found.original_length, found.model
        )
    return made


def _attention(material: Material) -> Figures:
    from longctx_bench.reporting.figures.attention_by_length import attention_sheet

    return {f"attention-{path.stem}": attention_sheet(_probe(path)) for path in material.probes("attention")}


def _probe(path: Path) -> dict[str, Any]:
    """Return what a probe wrote.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return parse_object(read_content(path))
    except (FileNotFoundError, UnreadableFile) as error:
        raise UserError(f"{path}: {error}; run the probe again") from error


KINDS: PluginRegistry[Callable[[Material], Figures]] = PluginRegistry(
    "figure",
    {
        "heatmap": _heatmaps,
        "length": _length,
        "bars": _bars,
        "tasks": _tasks,
        "in-context": _in_context,
        "curves": _curves,
        "factors": _factors,
        "attention": _attention,
    },
)
"""Functions from a folder's material to figures; UserError where it has nothing for them, with what to do."""


def draw(material: Material, kinds: Sequence[str], tell: Callable[[str], None]) -> Figures:
    """Draw several kinds of figures.

    Args:
        material: what from.
        kinds: of :data:`KINDS`.
        tell: called with a line for each kind that is left out because the folder has nothing for it.

    Raises:
        UserError: a task was not measured, the only kind cannot be drawn, or none can.
    """
    measured = {summary.cell.task for summary in material.results.finished} if material.tasks else set()
    for name in material.tasks:
        if name not in measured:
            raise UserError(f"--task {name}: not measured in {material.folder}{did_you_mean(name, measured)}")
    made: Figures = {}
    for name in kinds:
        try:
            made |= KINDS[name](material)
        except UserError as error:
            if len(kinds) == 1:
                raise
            tell(f"{name}: {error}")
    if not made:
        raise UserError(f"{material.folder}: has no data for any figure")
    return made
