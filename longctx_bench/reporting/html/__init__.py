"""Self-contained HTML page of a run's results: tables, heatmaps, and the examples behind each number."""

from longctx_bench.reporting.html.build import html_page

__all__ = ["html_page"]
