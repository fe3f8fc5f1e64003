"""``longctx-bench pack``: a results folder as one file."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.output import say
from longctx_bench.core.sanitize import pluralize


@click.command("pack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: FOLDER.bundle).")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option(
    "--without-texts",
    is_flag=True,
    help="Leave out texts of data sets, to publish the results: prompt excerpts, and references that are not "
    "generated, of which SHA-256 digests are kept. Scores and comparisons stay the same.",
)
def pack_command(folder: Path, out: Path | None, overwrite: bool, without_texts: bool) -> None:
    """Pack the results of a run's FOLDER into one file, a bundle, that reports read like the folder.

    Cells, records, timings, prompt excerpts and parity certificates go into it; figures, probes and superseded cells do
    not. The folder stays as it is.
    """
    from longctx_bench.store.bundle import default_bundle, pack

    bundle = out or default_bundle(folder)
    manifest = pack(folder, bundle, overwrite=overwrite, without_texts=without_texts)
    before, after = manifest.size, bundle.stat().st_size
    say(
        f"wrote {bundle}: {pluralize(manifest.num_cells, 'cell')}, {before / 1e6:,.2f} MB packed into "
        f"{after / 1e6:,.2f} MB ({100 * after / before:.1f} %)"
    )
    if any(file.path.startswith("prompts/") for file in manifest.files):
        say("it holds excerpts of prompts: mind their licences before you publish it, or pack it --without-texts")
