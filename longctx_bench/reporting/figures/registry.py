"""Registry of figures: what ``figures --kind`` offers, and the inputs that they are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import safe_name
from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.core.untrusted_files import UnreadableFile, parse_object, read_content
from longctx_bench.reporting.figures.cell_selection import at_scale, scale_name
from longctx_bench.reporting.results import CellSummary, Results, read_cells
from longctx_bench.store.bundle import companion_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FiguresByName = dict[str, "Figure"]
"""Figures by file name, without extension."""


@dataclass(frozen=True)
class FigureInputs:
    """Inputs of figures; cells are read lazily."""

    folder: Path
    """The run's folder, or a bundle."""
    tasks: tuple[str, ...] = ()
    """Tasks to draw; all when empty."""
    scale: float | None = None
    """Scale of bars and of the task heatmap; 0 for whole documents, the figure's default when None."""
    methods: tuple[str, ...] = ()
    """Methods to draw; all when empty."""
    models: tuple[str, ...] = ()
    """Base models to draw; all when empty."""
    checkpoints: tuple[Path, ...] = ()
    """Folders with ``loss.csv`` files in or below them, for training curves."""
    shipped_curves: bool = True
    """Without ``checkpoints``, also draw the loss curves of shipped checkpoints that were measured."""

    @cached_property
    def results(self) -> Results:
        """Results of the folder.

        Raises:
            UserError: the folder holds none.
        """
        return read_cells(self.folder)

    @property
    def cells(self) -> list[CellSummary]:
        """Finished cells of the selected tasks, methods and models."""
        return [
            summary
            for summary in self.results.finished
            if (not self.tasks or summary.cell.task in self.tasks)
            and (not self.methods or summary.cell.method in self.methods)
            and (not self.models or summary.cell.model in self.models)
        ]

    @property
    def missing(self) -> list[str]:
        """One line per missing cell; empty while no figure has read the results."""
        return self.results.missing if "results" in self.__dict__ else []

    @property
    def name(self) -> str:
        """The selected tasks as a file name, or ``all``."""
        return safe_name("-".join(self.tasks)) if self.tasks else "all"

    def probes(self, kind: str) -> list[Path]:
        """Return the JSON files of a probe.

        Raises:
            UserError: there are none.
        """
        files = sorted((companion_folder(self.folder) / "probes" / kind).rglob("*.json"))
        if not files:
            raise UserError(f"{self.folder}: holds no probe; `longctx-bench probe {kind} MODEL` makes one")
        return files


_Frequency = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class _FactorProbe(msgspec.Struct):
    """Output of ``longctx-bench probe factors``."""

    rope: Annotated[list[_Frequency], msgspec.Meta(min_length=1, max_length=100_000)]
    factors: dict[str, list[Annotated[float, msgspec.Meta(ge=0, le=1e6)]]]
    scale: _Frequency
    original_length: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    model: str


def _heatmaps(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.niah_heatmaps import heatmap_sheet

    by_task: dict[str, list[CellSummary]] = {}
    for summary in inputs.cells:
        if summary.by_depth:
            by_task.setdefault(summary.cell.task, []).append(summary)
    if not by_task:
        heatmap_sheet([])  # raises a UserError
    return {f"{safe_name(task)}-heatmap": heatmap_sheet(cells) for task, cells in sorted(by_task.items())}


def _length(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.score_vs_length import length_sheet

    return {f"{inputs.name}-length": length_sheet(inputs.cells)}


def _bars(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.score_bars import bar_sheet

    return {f"{inputs.name}-bars-{_where(inputs)}": bar_sheet(inputs.cells, inputs.scale)}


def _tasks(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.task_heatmap import task_table

    return {f"{inputs.name}-tasks-{_where(inputs)}": task_table(inputs.cells, inputs.scale)}


def _where(inputs: FigureInputs) -> str:
    chosen = at_scale([s for s in inputs.cells if s.percent], inputs.scale)
    return scale_name(chosen[0].scale) if chosen else "none"


def _in_context(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.short_context import in_context_sheet

    return {"in-context": in_context_sheet(inputs.cells, inputs.scale)}


def _curves(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.loss_curves import curve_sheet, read_curves

    missing = [folder for folder in inputs.checkpoints if not folder.is_dir()]
    if missing:
        raise UserError(f"--checkpoints {missing[0]}: no such folder")
    folders = [companion_folder(inputs.folder), *inputs.checkpoints]
    if inputs.shipped_curves and not inputs.checkpoints:
        weights = [s.result.spec.weights or {} for s in inputs.results.finished]
        embedded = {name for name in (source.get("embedded") for source in weights) if name}
        folders += [shipped_checkpoint_folder(name) for name in sorted(embedded)]
    return {"curves": curve_sheet(read_curves(folders))}


def _factors(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.rope_factors import factor_sheet

    figures = {}
    for path in inputs.probes("factors"):
        try:
            probe = msgspec.convert(_read_probe(path), _FactorProbe)
        except msgspec.ValidationError as error:
            raise UserError(f"{path}: not what `longctx-bench probe factors` writes ({error}); run it again") from error
        figures[f"factors-{path.parent.name}-{path.stem}"] = factor_sheet(
            probe.rope, probe.factors, probe.scale, probe.original_length, probe.model
        )
    return figures


def _attention(inputs: FigureInputs) -> FiguresByName:
    from longctx_bench.reporting.figures.attention_by_length import attention_sheet

    return {f"attention-{path.stem}": attention_sheet(_read_probe(path)) for path in inputs.probes("attention")}


def _read_probe(path: Path) -> dict[str, Any]:
    """Read a probe's JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return parse_object(read_content(path))
    except (FileNotFoundError, UnreadableFile) as error:
        raise UserError(f"{path}: {error}; run the probe again") from error


FIGURE_KINDS: PluginRegistry[Callable[[FigureInputs], FiguresByName]] = PluginRegistry(
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
"""Functions from :class:`FigureInputs` to figures, by kind; they raise UserError where the folder has no data."""


def draw_figures(inputs: FigureInputs, kinds: Sequence[str], note: Callable[[str], None]) -> FiguresByName:
    """Draw figures of one or more kinds.

    Args:
        inputs: the run's folder and the selection.
        kinds: keys of :data:`FIGURE_KINDS`.
        note: called with one line for each kind left out for lack of data.

    Raises:
        UserError: a task was not measured, the only kind has no data, or no kind has.
    """
    measured = {summary.cell.task for summary in inputs.results.finished} if inputs.tasks else set()
    for name in inputs.tasks:
        if name not in measured:
            raise UserError(f"--task {name}: not measured in {inputs.folder}{did_you_mean(name, measured)}")
    figures: FiguresByName = {}
    for name in kinds:
        try:
            figures |= FIGURE_KINDS[name](inputs)
        except UserError as error:
            if len(kinds) == 1:
                raise
            note(f"{name}: {error}")
    if not figures:
        raise UserError(f"{inputs.folder}: has no data for any figure")
    return figures
