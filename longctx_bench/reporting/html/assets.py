"""The page's scripts and styles: our own small files, and DataTables out of an installed package."""

from __future__ import annotations

import re
from importlib import resources

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.html.escaping import script_text

_SCRIPTS = ("text.js", "state.js", "heatmaps.js", "grid.js", "example.js", "main.js")
_AGAIN = "install longctx-bench again with its constraints.txt, or take --format md"
_EXPORTED = re.compile(r"export\s*\{([^}]*)\}\s*;?")


def own_style() -> str:
    """Return the page's style sheet."""
    return _read("page.css")


def own_script() -> str:
    """Return the page's scripts as one module; each file uses what those before it define."""
    return script_text("\n".join(_read(name) for name in _SCRIPTS))


def template() -> str:
    """Return the jinja2 template of the page."""
    return _read("page.html.j2")


def grid_library() -> str:
    """Return DataTables (MIT) as a script that leaves its class in ``globalThis.DataTable``.

    It comes out of the package itables, which ships it as one module for pages that work without a network. A page
    from disk cannot import a module, so its list of exports becomes an assignment.

    Raises:
        UserError: itables is not whole, or ships something else than expected.
    """
    try:
        bundle = resources.files("itables").joinpath("html", "dt_bundle.js").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; {_AGAIN}") from error
    exported = list(_EXPORTED.finditer(bundle))
    name = re.search(r"([\w$]+) as default\b", exported[-1][1]) if exported else None
    if name is None:
        raise UserError(f"the installed itables ships DataTables in another form than this version reads; {_AGAIN}")
    end = exported[-1]
    return script_text(f"{bundle[: end.start()]}globalThis.DataTable={name[1]};{bundle[end.end() :]}")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
