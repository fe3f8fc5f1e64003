"""Attention of the last token by length, with and without scaling, in a positional and a semantic head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.cell_selection import scale_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SERIES: dict[str, dict[str, Any]] = {
    "with": {"color": "#D55E00", "linestyle": "-", "marker": "o"},
    "without": {
        "color": "#0072B2", "linestyle": (0, (4, 1.5)), "marker": "s", "markerfacecolor": "white",
    },
}  # fmt: skip
_MAX_LENGTHS = 100
_NEEDLE = "#BBBBBB"
_TARGETS = {"positional": "near", "semantic": "needle"}
"""Attention target that each head was selected by."""


def attention_sheet(probe: Mapping[str, Any]) -> Figure:
    """Draw the results of ``longctx-bench probe attention``: Figures 7 and 8 of arXiv 2512.12167.

    Args:
        probe: with ``model``, ``heads`` and ``lengths`` as
            :mod:`longctx_bench.analysis.probes.last_token_attention` writes them.

    Returns:
        The figure: a row per head, a column per length with the attention on equal parts of the prompt (grey line: the
        needle), and on the right the attention on the head's target by scale.

    Raises:
        UserError: the probe is not in that form.
    """
    try:
        return _draw(probe)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{probe.get('model', 'probe')}: not what `longctx-bench probe attention` writes ({error!r:.80}); "
            f"run it again"
        ) from error


def _draw(probe: Mapping[str, Any]) -> Figure:
    lengths: Sequence[Mapping[str, Any]] = probe["lengths"]
    if len(lengths) > _MAX_LENGTHS:
        raise ValueError(f"{len(lengths)} lengths")
    columns = len(lengths) + 1
    with style.styled():
        figure = style.new_figure(min(style.PAGE, 1.5 * columns + 0.4), 3.3)
        axes = figure.subplots(2, columns, squeeze=False, width_ratios=[*[1.0] * len(lengths), 1.25])
        for row, (head, target) in enumerate(_TARGETS.items()):
            for column, entry in enumerate(lengths):
                axis = axes[row][column]
                _profile(axis, entry, head)
                axis.set_ylim(*_shared(lengths, head))
                axis.tick_params(labelleft=column == 0)
                if row == 0:
                    axis.set_title(f"{scale_name(entry['scale'])}: {style.tokens(entry['length'])} tokens")
                axis.set_xticks([0, 50, 100])
            axes[row][0].set_ylabel(_head(head, probe["heads"][head]) + "\nattention")
            _by_scale(axes[row][-1], lengths, head, target, probe)
        for axis in axes[1][:-1]:
            axis.set_xlabel("place (%)")
        axes[1][-1].set_xlabel("scale")
        handles = axes[0][-1].get_lines()
        # A probe without scaling has one series.
        names = [f"{probe['model']}, {line.get_label()} {probe['scaling']}" for line in handles]
        needle = axes[0][0].axvline(-1, color=_NEEDLE, linewidth=2.5)
        figure.legend([*handles, needle], [*(names if len(handles) > 1 else [probe["model"]]), "needle"],
                      loc="outside lower center", ncols=3, handlelength=3)  # fmt: skip
    return figure


def _profile(axis: Axes, entry: Mapping[str, Any], head: str) -> None:
    axis.axvline(100 * entry["needle"], color=_NEEDLE, linewidth=2.5, zorder=0)
    for name, line_style in _SERIES.items():
        if name not in entry:
            continue
        values = entry[name][head]["profile"]
        edges = [100 * index / len(values) for index in range(len(values) + 1)]
        axis.stairs(
            values, edges, color=line_style["color"], linestyle=line_style["linestyle"], linewidth=0.9, baseline=None
        )
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.set_xlim(0, 100)


def _shared(lengths: Sequence[Mapping[str, Any]], head: str) -> tuple[float, float]:
    """Return the axis limits that all lengths of a head share; below 1e-6 counts as zero."""
    values = [v for e in lengths for name in _SERIES if name in e for v in e[name][head]["profile"] if v > 0]
    return max(1e-6, min(values) / 1.5), 1.5


def _by_scale(
    axis: Axes, lengths: Sequence[Mapping[str, Any]], head: str, target: str, probe: Mapping[str, Any]
) -> None:
    highest = 10.0
    for name, line_style in _SERIES.items():
        points = [(entry["scale"], 100 * entry[name][head][target]) for entry in lengths if name in entry]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, **line_style, clip_on=False)
            highest = max(highest, *(value for _, value in points))
    scales = [entry["scale"] for entry in lengths]
    axis.set_xscale("log", base=2)
    axis.set_xticks(scales, [scale_name(scale) for scale in scales])
    axis.minorticks_off()
    axis.set_ylim(0, 100 if highest > 50 else 10 * math.ceil(highest / 10))
    axis.grid(visible=True, axis="y")
    axis.set_ylabel(
        "on the needle (%)" if target == "needle" else f"on the last {probe['near']} tokens (%)", fontsize=7
    )


def _head(kind: str, layer_and_head: Sequence[int]) -> str:
    return f"{kind} head {layer_and_head[0]}.{layer_and_head[1]}"
