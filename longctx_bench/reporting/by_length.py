"""Scores against the length: one panel a task, one line with its 95 % band a contestant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.errors import UserError
from longctx_bench.files import replacing
from longctx_bench.records import NATURAL
from longctx_bench.reporting.summaries import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X"


def length_sheet(cells: Sequence[CellSummary], path: Path) -> Path:
    """Draw each task's score against the length.

    Loss and retrieval side by side, with the cropped baseline, are Figure 5 of arXiv 2512.12167.

    Args:
        cells: of one base or several; those of whole documents are left out.
        path: the file to write; its ending chooses the format (png, pdf, svg).

    Returns:
        The path.

    Raises:
        UserError: no task was measured at two lengths.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = _panels(cells)
    if not panels:
        raise UserError("no task was measured at two lengths; run one with --scale 1x,2x,4x")
    drawn = {s.contestant for own in panels.values() for s in own}
    names = sorted(drawn, key=lambda name: (not name.startswith("rope-"), name))
    shades = plt.get_cmap("viridis")
    colours = {name: shades(0.9 * place / max(1, len(names) - 1)) for place, name in enumerate(names)}
    width = 3.6 * len(panels) + 1.4
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.2), squeeze=False, layout="constrained")
    handles: dict[str, Any] = {}
    for axis, (task, own) in zip(axes.flat, panels.items(), strict=True):
        for place, name in enumerate(names):
            line = [s for s in own if s.contestant == name]
            if line:
                handles[name] = _line(axis, line, colours[name], _MARKERS[place % len(_MARKERS)])
        _describe(axis, task, own)
    figure.legend([handles[name] for name in names], names, loc="outside right center", fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200)
    plt.close(figure)
    return path


def _panels(cells: Sequence[CellSummary]) -> dict[str, list[CellSummary]]:
    """Return by task the cells to draw, by length; tasks with one length have no line."""
    found: dict[str, list[CellSummary]] = {}
    for summary in sorted(cells, key=lambda s: s.cell.length):
        if summary.cell.length != NATURAL:
            found.setdefault(summary.cell.task, []).append(summary)
    return {task: own for task, own in found.items() if len({s.cell.length for s in own}) > 1}


def _line(axis: Axes, cells: Sequence[CellSummary], colour: Any, marker: str) -> Any:
    factor = 100 if cells[0].percent else 1
    lengths = [s.cell.length for s in cells]
    low, high = [factor * s.low for s in cells], [factor * s.high for s in cells]
    axis.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)
    means = [factor * s.score for s in cells]
    return axis.plot(lengths, means, marker=marker, markersize=4, linewidth=1.3, color=colour)[0]


def _describe(axis: Axes, task: str, cells: Sequence[CellSummary]) -> None:
    lengths = sorted({s.cell.length for s in cells})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=7)
    axis.minorticks_off()
    axis.set_xlabel("length (tokens)")
    unit = "%" if cells[0].percent else "nats a token" if cells[0].metric == "token_loss" else "score"
    axis.set_ylabel(f"{cells[0].metric.replace('_', ' ')} ({unit})", fontsize=8)
    axis.set_title(task, fontsize=9)
    for context in {s.original_length for s in cells}:
        if lengths[0] <= context < lengths[-1]:
            # Right of this line lies what the model was never trained on.
            axis.axvline(context, color="grey", linewidth=0.8, linestyle="--")
