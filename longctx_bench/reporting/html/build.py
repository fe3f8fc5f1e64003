"""Builds the page from data, template, styles and scripts, with a strict Content-Security-Policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longctx_bench.core.provenance import now, package_version
from longctx_bench.core.sanitize import pluralize
from longctx_bench.reporting.html import assets
from longctx_bench.reporting.html.escaping import inert_json, source_hash
from longctx_bench.reporting.html.examples import PAGE_BYTES, example_columns
from longctx_bench.reporting.html.overview import overview, page_tables, shared_notes, sort_cells
from longctx_bench.reporting.results import Results
from longctx_bench.store.run_store import ResultStore

if TYPE_CHECKING:
    from jinja2 import Template


def html_page(results: Results, store: ResultStore, examples: int | None = None, budget: int = PAGE_BYTES) -> str:
    """Return a self-contained page that needs no network.

    Untrusted text reaches the page in two ways only: through Jinja2's escaping, and as inert JSON, which the scripts
    show as text nodes. Should either fail, the Content-Security-Policy allows only the page's own scripts, by hash, and
    no requests.

    Args:
        results: as :func:`~longctx_bench.reporting.results.read_cells` returns them.
        store: store of the same folder, for examples and prompt excerpts.
        examples: examples per cell in the page; by default as many as fit ``budget``.
        budget: maximum size of the examples in bytes, where their number is not given.

    Raises:
        UserError: the package itables is incomplete, or a file of the folder is damaged.
    """
    template = _template()
    cells = sort_cells(results.finished)
    columns = example_columns(cells, store, examples, budget)
    tables = page_tables(cells)
    style, library, script = assets.own_style(), assets.grid_library(), assets.own_script()
    num_shown, num_measured = sum(columns["shown"]), sum(summary.n for summary in cells)
    return template.render(
        title=_title(store.folder),
        folder=_folder_name(store.folder),
        made=now()[:10],
        version=package_version(),
        tables=tables,
        shared=shared_notes(tables),
        number=len(cells),
        unfinished=results.missing,
        shown=num_shown,
        measured=num_measured,
        most=max(columns["shown"], default=0),
        overview=inert_json(overview(cells, columns) | {"folder": _folder_name(store.folder)}),
        examples=inert_json({key: columns[key] for key in ("texts", "prompts", "rows")}),
        style=style,
        library=library,
        script=script,
        style_hash=source_hash(style),
        script_hashes=" ".join(map(source_hash, (library, script))),
    )


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["counted"] = pluralize
    return environment.from_string(assets.template())


def _folder_name(folder: Path) -> str:
    """Return the folder as in commands; of an absolute path only the last part, since pages are shared."""
    return folder.name if folder.is_absolute() else folder.as_posix()


def _title(folder: Path) -> str:
    return folder.resolve().name
