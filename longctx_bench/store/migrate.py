"""``longctx-bench migrate``: rewrite results of an older schema version."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import write_json
from longctx_bench.core.untrusted_files import read_object
from longctx_bench.store.cell_folders import reject_symlinks
from longctx_bench.store.run_store import ResultStore, require_folder
from longctx_bench.store.schema import (
    UnsupportedVersionError,
    parse_spec,
    upgrade,
    upgrade_certificate,
)


@dataclass
class MigrationCounts:
    """How many files were rewritten, current or failed."""

    rewritten: int = 0
    current: int = 0
    """Files already in the current schema."""
    failed: int = 0


def migrate(folder: Path, note: Callable[[str], None]) -> MigrationCounts:
    """Rewrite cells and certificates of older schema versions; records, scores and prompts do not change.

    Args:
        folder: a run's folder, or one with several below it.
        note: called with one line for each file that cannot be migrated.

    Raises:
        UserError: there are no results below the folder, or it is not writable.
    """
    require_folder(folder)
    counts = MigrationCounts()
    for run in _runs_below(folder):
        store = ResultStore(run)
        with store.locked():
            for path in (cell / name for cell in store.folders() for name in ("cell.json", "started.json")):
                _rewrite(run, path, _upgrade_cell, counts, note)
            for path in sorted((run / "parity").glob("*.json")):
                _rewrite(run, path, upgrade_certificate, counts, note)
    if counts == MigrationCounts():
        raise UserError(f"{folder}: holds no results; give the folder that a run wrote")
    return counts


def _runs_below(folder: Path) -> list[Path]:
    """Return the folders, ``folder`` itself included, that a run or ``parity`` wrote to."""
    run_folders = [Path(path) for path, folders, _ in os.walk(folder) if not {"runs", "parity"}.isdisjoint(folders)]
    # Superseded cells are not migrated.
    return sorted(path for path in run_folders if "superseded" not in path.relative_to(folder).parts)


def _upgrade_cell(values: dict[str, Any]) -> Mapping[str, Any]:
    upgraded = upgrade(values)
    # Raises where this is not a cell of any version.
    parse_spec(upgraded)
    return upgraded


def _rewrite(
    run: Path,
    path: Path,
    upgrade: Callable[[dict[str, Any]], Mapping[str, Any]],
    counts: MigrationCounts,
    note: Callable[[str], None],
) -> None:
    """Rewrite a file in the current schema, unless it has it already: ``upgrade`` then returns its argument."""
    try:
        reject_symlinks(run, path)
        before = read_object(path)
        after = None if before is None else upgrade(before)
    except UserError as error:
        note(str(error))
        counts.failed += 1
        return
    except (UnsupportedVersionError, msgspec.ValidationError) as error:
        note(f"{path}: {error}")
        counts.failed += 1
        return
    if after is before:
        counts.current += before is not None
    else:
        write_json(path, after)
        counts.rewritten += 1
