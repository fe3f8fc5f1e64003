"""The command ``migrate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from longctx_bench.cli.output import say


@click.command("migrate")
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
def migrate_command(folders: tuple[Path, ...]) -> None:
    """Rewrite the results of an older version in run FOLDERs as this version writes them.

    Reports and runs read old results as they are; migrate once so that other tools find one format. Records, scores
    and prompts stay as they are.
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
