"""The page itself: data, template, styles and scripts brought together under a strict Content-Security-Policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longctx_bench.core.provenance import now, package_version
from longctx_bench.core.sanitize import pluralize
from longctx_bench.reporting.html import assets
from longctx_bench.reporting.html.escaping import inert_json, source_hash
from longctx_bench.reporting.html.examples import PAGE_BYTES, example_columns
from longctx_bench.reporting.html.overview import in_order, overview, shared_notes, task_tables
from longctx_bench.reporting.results import Results
from longctx_bench.store.run_store import ResultStore

if TYPE_CHECKING:
    from jinja2 import Template


def html_page(results: Results, store: ResultStore, examples: int | None = None, budget: int = PAGE_BYTES) -> str:
    """Return a page that needs no other file and no network.

    Text of models, tasks and documents reaches the page in two ways only: through jinja2's escaping, and as JSON
    that no HTML parser sees through, which the scripts show as text nodes. Should either fail, the
    Content-Security-Policy allows no script but the page's own, by their hashes, and no request to anywhere.

    Args:
        results: what :func:`~longctx_bench.reporting.results.read_cells` found.
        store: of the same folder, for the examples and the excerpts of their prompts.
        examples: examples of each cell in the page; as many as ``budget`` allows by default.
        budget: bytes that the examples may take where their number is not given.

    Raises:
        UserError: the package itables is not whole, or a file of the folder is damaged.
    """
    template = _template()
    cells = in_order(results.finished)
    columns = example_columns(cells, store, examples, budget)
    tables = task_tables(cells)
    style, library, script = assets.own_style(), assets.grid_library(), assets.own_script()
    shown, measured = sum(columns["shown"]), sum(summary.n for summary in cells)
    return template.render(
        title=_title(store.folder),
        folder=_named(store.folder),
        made=now()[:10],
        version=package_version(),
        tables=tables,
        shared=shared_notes(tables),
        number=len(cells),
        unfinished=results.missing,
        shown=shown,
        measured=measured,
        most=max(columns["shown"], default=0),
        overview=inert_json(overview(cells, columns) | {"folder": _named(store.folder)}),
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


def _named(folder: Path) -> str:
    """Return how commands name the folder; of an absolute path the last part: a page is passed on to others."""
    return folder.name if folder.is_absolute() else folder.as_posix()


def _title(folder: Path) -> str:
    return folder.resolve().name
