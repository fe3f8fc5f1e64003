"""RoPE frequency scaling factors by pair of dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.plot_styles import METHODS, plot_style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def factor_sheet(
    rope: Sequence[float], factors: Mapping[str, Sequence[float]], scale: float, original_length: int, model: str
) -> Figure:
    """Draw how much each method slows down each pair of dimensions: Figure 6 of arXiv 2512.12167.

    Args:
        rope: RoPE's inverse frequencies in radians per token, fastest pair first.
        factors: inverse frequencies relative to RoPE's, by method; one per pair.
        scale: the extension factor s.
        original_length: training context in tokens.
        model: name of the base.

    Returns:
        The figure. Right of the dotted line, pairs turn less than once within the training context; the dashed line
        is 1 / s.

    Raises:
        UserError: no method is given, or one has a different number of pairs.
    """
    if not factors:
        raise UserError(f"{model}: the probe holds no factors of a method")
    for name, values in factors.items():
        if len(values) != len(rope):
            raise UserError(f"{model}: {name} has {len(values)} factors, the model {len(rope)} pairs of dimensions")
    order = list(METHODS)
    names = sorted(factors, key=lambda name: (order.index(name) if name in METHODS else len(order), name))
    pairs = range(len(rope))
    with style.styled():
        figure = style.new_figure(style.COLUMN + 1.0, 2.4)
        axis = figure.subplots()
        every = max(1, len(rope) // 8)
        for index, name in enumerate(names):
            # Markers at different pairs, so that coinciding curves remain visible.
            start = index * every // len(names)
            axis.plot(pairs, factors[name], label=name, markevery=(start, every), **plot_style_of(name).line())
        axis.axhline(1 / scale, color=style.FAINT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0,
                     label=f"1/s = {1 / scale:.3g}")  # fmt: skip
        turns = [original_length * value / (2 * math.pi) for value in rope]
        slow = next((pair for pair in pairs if turns[pair] < 1), None)
        if slow is not None and slow > 0:
            axis.axvline(slow - 0.5, color=style.FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
            axis.annotate("less than one turn\nin the training context", (slow - 0.5, 1.03), (3, 0),
                          textcoords="offset points", fontsize=6, color=style.FAINT, va="center")  # fmt: skip
        axis.set_xlabel("pair of dimensions (0 turns fastest)")
        axis.set_ylabel("frequency / RoPE's frequency")
        axis.set_ylim(0, max(1.1, *(max(values) * 1.05 for values in factors.values())))
        axis.set_xlim(-0.5, len(rope) - 0.5)
        axis.grid(visible=True, axis="y")
        figure.legend(loc="outside right center", title=f"{model}, s = {scale:g}", alignment="left", handlelength=3)
    return figure
