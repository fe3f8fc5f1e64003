"""Scripts and styles of the page: our own files, and DataTables from the package itables."""

from __future__ import annotations

import re
from importlib import resources

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.html.escaping import script_text

_SCRIPTS = ("text.js", "state.js", "heatmaps.js", "grid.js", "example.js", "main.js")
_HINT = "reinstall longctx-bench with its constraints.txt, or use --format md"
_EXPORTED = re.compile(r"export\s*\{([^}]*)\}\s*;?")


def own_style() -> str:
    """Return the page's style sheet."""
    return _read("page.css")


def own_script() -> str:
    """Return the page's scripts as one script; each file uses the ones before it."""
    return script_text("\n".join(_read(name) for name in _SCRIPTS))


def template() -> str:
    """Return the page's Jinja2 template."""
    return _read("page.html.j2")


def grid_library() -> str:
    """Return DataTables (MIT) as a script that sets ``globalThis.DataTable``.

    The package itables ships it as one module for offline pages. A page opened from disk cannot import a module, so
    the export list is replaced by an assignment.

    Raises:
        UserError: itables is incomplete, or ships DataTables in an unknown form.
    """
    try:
        bundle = resources.files("itables").joinpath("html", "dt_bundle.js").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; {_HINT}") from error
    exports = list(_EXPORTED.finditer(bundle))
    name = re.search(r"([\w$]+) as default\b", exports[-1][1]) if exports else None
    if name is None:
        raise UserError(f"the installed itables ships DataTables in an unknown form; {_HINT}")
    end = exports[-1]
    return script_text(f"{bundle[: end.start()]}globalThis.DataTable={name[1]};{bundle[end.end() :]}")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
