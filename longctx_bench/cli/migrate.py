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
        done = migrate(folder, say)
        failed += done.failed
        left = f", {done.failed} left as they are" if done.failed else ""
        print(f"{folder}: {done.rewritten} files migrated, {done.current} up to date{left}")
    if failed:
        sys.exit(2)
