"""Tables as text: Markdown, LaTeX, CSV, JSON, HTML and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx_bench.reporting.rendering.csv_lines import csv_text, json_text
from longctx_bench.reporting.rendering.html_tables import html_text
from longctx_bench.reporting.rendering.latex import latex
from longctx_bench.reporting.rendering.markdown import markdown
from longctx_bench.reporting.rendering.terminal import print_tables
from longctx_bench.reporting.tables import Table

__all__ = ["FORMATS", "csv_text", "html_text", "json_text", "latex", "markdown", "print_tables"]

FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": markdown,
    "latex": latex,
    "csv": csv_text,
    "json": json_text,
    "html": html_text,
}
"""What the command line calls them."""
