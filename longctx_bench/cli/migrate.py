"""``longctx-bench migrate``: old results to the current format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from longctx_bench.cli.output import say


@click.command("migrate")
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
def migrate_command(folders: tuple[Path, ...]) -> None:
    """Convert results of older versions in run FOLDERs to the current format.

    Reports and runs read old results too; migrate once for tools that expect one format. Records, scores and prompts
    do not change.
    """
    from longctx_bench.store.migrate import migrate

    failed = 0
    for folder in folders:
        counts = migrate(folder, say)
        failed += counts.failed
        unchanged = f", {counts.failed} left as they are" if counts.failed else ""
        print(f"{folder}: {counts.rewritten} files migrated, {counts.current} up to date{unchanged}")
    if failed:
        sys.exit(2)
