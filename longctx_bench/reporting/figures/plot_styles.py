"""Plot styles: each method has the same colour, marker and dashes in every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longctx_bench.reporting.results import CellSummary

_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _VERMILLION, _PURPLE = "#0072B2", "#D55E00", "#CC79A7"
_OLIVE, _WINE, _GREY = "#999933", "#882255", "#767676"
_SOLID, _DASHED, _DOTTED, _MIXED = "-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2))


@dataclass(frozen=True)
class PlotStyle:
    """Colour, marker and dashes; distinguishable when printed in grey."""

    colour: str
    marker: str
    dashes: Any = _SOLID
    filled: bool = True
    """Hollow markers and bars mark a second base model."""
    family: int = 99
    """Methods of one family are drawn next to each other."""

    @property
    def hatch(self) -> str:
        """Hatch of bars, the counterpart of dashes."""
        return {_SOLID: "", _DASHED: "////", _DOTTED: "....", _MIXED: "xxxx"}[self.dashes]

    def line(self) -> dict[str, Any]:
        """Return keyword arguments of ``Axes.plot``."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dashes,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 0.8,
        }

    def bar(self) -> dict[str, Any]:
        """Return keyword arguments of ``Axes.bar``."""
        return {
            "facecolor": self.colour if self.filled else "white",
            "edgecolor": "white" if self.filled and self.hatch else self.colour,
            "hatch": self.hatch,
            "linewidth": 0.0 if self.filled else 0.8,
        }


METHODS: dict[str, PlotStyle] = {
    "rope": PlotStyle(_BLACK, "o", family=0),
    "crop": PlotStyle(_GREY, "X", _DASHED, family=0),
    "pi": PlotStyle(_SKY, "v", family=1),
    "ntk": PlotStyle(_GREEN, "^", family=1),
    "dynamic-ntk": PlotStyle(_GREEN, "<", _DASHED, family=1),
    "llama3": PlotStyle(_PURPLE, "P", family=1),
    "longrope": PlotStyle(_PURPLE, "p", _DASHED, family=1),
    "giraffe": PlotStyle(_OLIVE, "v", _DOTTED, family=1),
    "giraffe-truncated": PlotStyle(_OLIVE, "^", _DASHED, family=1),
    "yarn": PlotStyle(_BLUE, "s", family=2),
    "yarn-perplexity": PlotStyle(_BLUE, "d", _DOTTED, family=2),
    "yarn-retrieval": PlotStyle(_BLUE, "h", _DASHED, family=2),
    "yarn-heads": PlotStyle(_BLUE, "P", _MIXED, family=2),
    "mrrope-pro": PlotStyle(_SKY, "o", family=2),
    "mrrope-uni": PlotStyle(_SKY, "P", _DASHED, family=2),
    "resonance": PlotStyle(_GREEN, "H", _DOTTED, family=2),
    "resonance-yarn": PlotStyle(_GREEN, "D", family=2),
    "cope": PlotStyle(_WINE, "p", family=3),
    "cope-hard": PlotStyle(_WINE, "X", _DASHED, family=3),
    "p-rope": PlotStyle(_GREY, "d", _DOTTED, family=3),
    "alibi": PlotStyle(_OLIVE, ">", family=3),
    "rnope-swa": PlotStyle(_WINE, "H", family=3),
    "nope": PlotStyle(_ORANGE, "D", family=4),
    "nope-retrieval": PlotStyle(_ORANGE, "8", _DASHED, family=4),
    "nope-heads": PlotStyle(_ORANGE, "P", _MIXED, family=4),
    "nope-virtual": PlotStyle(_ORANGE, "v", _DOTTED, family=4),
    "drope": PlotStyle(_VERMILLION, "*", family=5),
    "drope-uniform": PlotStyle(_VERMILLION, "s", _MIXED, family=5),
    "drope-plain": PlotStyle(_VERMILLION, "^", _DASHED, family=5),
    "drope-plain-uniform": PlotStyle(_VERMILLION, "v", _DOTTED, family=5),
    "drope-perplexity": PlotStyle(_VERMILLION, "d", _DOTTED, family=5),
    "drope-paper": PlotStyle(_VERMILLION, "X", _DASHED, family=5),
    "self-extend": PlotStyle(_WINE, "v", _MIXED, family=6),
    "dca": PlotStyle(_WINE, "s", family=6),
    "jet-long": PlotStyle(_PURPLE, "s", family=6),
    "string": PlotStyle(_PURPLE, "^", _DOTTED, family=6),
    "rerope": PlotStyle(_OLIVE, "D", family=6),
    "leaky-rerope": PlotStyle(_OLIVE, "d", _DASHED, family=6),
    "lm-infinite": PlotStyle(_GREY, "v", family=7),
    "streaming-llm": PlotStyle(_GREY, "<", _DASHED, family=7),
}
"""Okabe and Ito's colours, without the yellow that is lost on white, and three of Paul Tol's muted ones."""

_OTHERS = [
    PlotStyle(colour, marker, _MIXED)
    for marker, colour in zip("ov^sDPp", (_SKY, _ORANGE, _GREEN, _PURPLE, _OLIVE, _WINE, _BLUE), strict=True)
]


def plot_style_of(method: str) -> PlotStyle:
    """Return a method's style; that of an unknown method depends on its name only."""
    style = METHODS.get(method)
    if style is not None:
        return style
    return _OTHERS[int(hashlib.sha256(method.encode()).hexdigest(), 16) % len(_OTHERS)]


def assign_plot_styles(cells: Sequence[CellSummary]) -> dict[str, PlotStyle]:
    """Return the style of each model, in drawing order.

    The order is by base, then by family of methods, the unmodified model first. Filled markers are the base with the
    most methods. Two unknown methods never get the same style.
    """
    methods = list(dict.fromkeys(s.cell.method for s in cells))
    styles = _distinct_styles(methods)
    bases = _sorted_bases(cells)
    variants = {s.variant: (bases.index(s.cell.model), s.cell.method) for s in cells}
    order_of_methods = list(METHODS)

    def order(name: str) -> tuple[int, int, int, str]:
        base, method = variants[name]
        index = order_of_methods.index(method) if method in METHODS else len(order_of_methods)
        return base, styles[method].family, index, method

    return {
        name: replace(styles[variants[name][1]], filled=variants[name][0] % 2 == 0)
        for name in sorted(variants, key=order)
    }


def labels(cells: Sequence[CellSummary]) -> dict[str, str]:
    """Return each model's label: its method where all share one base, which :func:`base_title` returns."""
    if len({s.cell.model for s in cells}) == 1:
        return {s.variant: s.cell.method for s in cells}
    return {s.variant: s.variant for s in cells}


def base_title(cells: Sequence[CellSummary]) -> str:
    """Return the base that all models share; empty where there are several."""
    bases = {s.cell.model for s in cells}
    return next(iter(bases)) if len(bases) == 1 else ""


def _sorted_bases(cells: Sequence[CellSummary]) -> list[str]:
    counts: dict[str, set[str]] = {}
    for summary in cells:
        counts.setdefault(summary.cell.model, set()).add(summary.cell.method)
    return sorted(counts, key=lambda base: (-len(counts[base]), base))


def _distinct_styles(methods: Iterable[str]) -> dict[str, PlotStyle]:
    styles: dict[str, PlotStyle] = {}
    used: set[PlotStyle] = set()
    for method in sorted(methods, key=lambda name: (name not in METHODS, name)):
        style = plot_style_of(method)
        if style in used:
            style = next((other for other in _OTHERS if other not in used), style)
        used.add(style)
        styles[method] = style
    return styles
