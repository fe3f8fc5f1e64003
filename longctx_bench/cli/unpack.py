"""``longctx-bench unpack``: a bundle as a results folder."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.output import say
from longctx_bench.core.sanitize import pluralize


@click.command("unpack")
@click.argument("bundle", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write (default: FILE without its suffix).")
def unpack_command(bundle: Path, out: Path | None) -> None:
    """Unpack FILE, which `longctx-bench pack` wrote, into a folder in which runs resume.

    The folder may hold figures and the like already, but no results.
    """
    from longctx_bench.store.bundle import companion_folder, unpack

    folder = out or companion_folder(bundle)
    manifest = unpack(bundle, folder)
    left_out = ", without texts of data sets" if manifest.without_texts else ""
    say(f"wrote {folder}: {pluralize(manifest.num_cells, 'cell')}, {manifest.size / 1e6:,.2f} MB{left_out}")
