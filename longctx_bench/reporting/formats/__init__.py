"""Output formats of tables: Markdown, LaTeX, CSV, JSON, HTML and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx_bench.reporting.formats.csv_json import csv_text, json_text
from longctx_bench.reporting.formats.html_tables import html_text
from longctx_bench.reporting.formats.latex import latex
from longctx_bench.reporting.formats.markdown import markdown
from longctx_bench.reporting.formats.terminal import print_tables
from longctx_bench.reporting.tables.base import Table

__all__ = ["FORMATS", "csv_text", "html_text", "json_text", "latex", "markdown", "print_tables"]

FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": markdown,
    "latex": latex,
    "csv": csv_text,
    "json": json_text,
    "html": html_text,
}
"""Renderers by the name that ``--format`` takes."""
