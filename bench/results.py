"""Benchmark results: a JSONL file of ratios, and a bar plot of it (``python -m bench.results FILE``)."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures.style import FAINT, PAGE, new_figure, save, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "LONGCTX_BENCH_RATIOS"
"""Environment variable with the path of the file; without it nothing is written."""


def keep(name: str, ratio: float) -> None:
    """Append a ratio to the file; values above 1 mean that this project is faster."""
    path = os.environ.get(FILE)
    if path:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"name": name, "ratio": ratio}) + "\n")


def read(path: Path) -> dict[str, float]:
    """Return ratios by name, the last of each, in the order of their first.

    Raises:
        UserError: there is no such file, or it is not what :func:`keep` writes.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        ratios = {str(line["name"]): float(line["ratio"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no ratios of `make benchmarks`") from error
    if not ratios:
        raise UserError(f"{path}: holds no ratios; run `make benchmarks`")
    return ratios


def draw(ratios: dict[str, float]) -> Figure:
    """Draw one bar per ratio on a logarithmic axis, starting at 1: slower points to the left."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    with styled():
        figure = new_figure(PAGE, 0.5 + 0.22 * len(ratios))
        axes = figure.subplots()
        beyond = [ratio - 1 for ratio in ratios.values()]
        bars = axes.barh(list(ratios), beyond, left=1, color="#3B6FA0", height=0.65)
        axes.bar_label(bars, [f"{ratio:.3g}x" for ratio in ratios.values()], padding=3, fontsize=7)
        axes.axvline(1, color=FAINT, linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("times as fast as what is named last")
        axes.margins(x=0.15)
        # Space for the labels of bars that point to the left.
        axes.set_xlim(left=min(0.45, 0.4 * min(ratios.values())))
        axes.invert_yaxis()
    return figure


def main() -> None:
    """Write the plot beside the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    chosen = parser.parse_args()
    save(draw(read(chosen.file)), chosen.file.with_suffix(""))


if __name__ == "__main__":
    main()
