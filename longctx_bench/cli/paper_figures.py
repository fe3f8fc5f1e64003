"""``longctx-bench figures --paper``: a paper's tables and figures, measured next to published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longctx_bench.cli.output import say
from longctx_bench.core.io import write_text


def write_paper(name: str, folder: Path, models: Sequence[str], formats: Sequence[str], out: Path) -> None:
    """Write all tables of a paper as Markdown, LaTeX and CSV, and the figures that the folder has data for.

    Raises:
        UserError: there is no such paper, no results, or none on one of ``models``.
    """
    from longctx_bench.reporting.figures import style
    from longctx_bench.reporting.figures.registry import FigureInputs
    from longctx_bench.reporting.formats import FORMATS
    from longctx_bench.reporting.papers.paper_figures import paper_figures
    from longctx_bench.reporting.papers.paper_spec import read_paper
    from longctx_bench.reporting.papers.paper_tables import paper_tables

    paper = read_paper(name)
    material = FigureInputs(folder, models=tuple(models))
    tables = paper_tables(paper, material.results.finished, models)
    for number, parts in tables.items():
        write_text(out / f"table-{number}.tex", FORMATS["latex"](parts))
    all_tables = [table for parts in tables.values() for table in parts]
    write_text(out / "tables.md", FORMATS["md"](all_tables))
    write_text(out / "tables.csv", FORMATS["csv"](all_tables))
    say(f"wrote {out / 'tables.md'}, tables.csv and table-N.tex for N = {', '.join(map(str, tables))}")
    for stem, figure in paper_figures(paper, material):
        if isinstance(figure, str):
            say(f"left out: {stem}, {figure}", err=True)
            continue
        for path in style.save(figure, out / stem, formats):
            say(f"wrote {path}")
