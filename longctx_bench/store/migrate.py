"""Results of an older version, written once as this version writes them."""

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
from longctx_bench.store.cell_folders import refuse_links
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import (
    UnsupportedVersionError,
    parse_spec,
    upgraded,
    upgraded_certificate,
)


@dataclass
class Migration:
    """What became of a folder's files."""

    rewritten: int = 0
    current: int = 0
    """Files that this version had written."""
    failed: int = 0


def migrate(folder: Path, note: Callable[[str], None]) -> Migration:
    """Rewrite cells and certificates that an older version wrote; records, scores and prompts stay as they are.

    Args:
        folder: of a run, or one that holds the folders of several.
        note: takes a line for each file that cannot be migrated.

    Raises:
        UserError: there are no results below it, or it cannot be written.
    """
    done = Migration()
    for run in _runs_below(folder):
        store = ResultStore(run)
        with store.locked():
            for path in (cell / name for cell in store.folders() for name in ("cell.json", "started.json")):
                _rewrite(run, path, _upgraded_cell, done, note)
            for path in sorted((run / "parity").glob("*.json")):
                _rewrite(run, path, upgraded_certificate, done, note)
    if done == Migration():
        raise UserError(f"{folder}: holds no results; name the folder that a run wrote")
    return done


def _runs_below(folder: Path) -> list[Path]:
    """Return the folders below one, itself included, that a run or ``parity`` wrote to."""
    found = [Path(path) for path, folders, _ in os.walk(folder) if not {"runs", "parity"}.isdisjoint(folders)]
    # Cells that were replaced stand below a folder of their own, and are nobody's any more.
    return sorted(path for path in found if "superseded" not in path.relative_to(folder).parts)


def _upgraded_cell(values: dict[str, Any]) -> Mapping[str, Any]:
    after = upgraded(values)
    # What the types refuse is no cell of any version, and left alone.
    parse_spec(after)
    return after


def _rewrite(
    run: Path,
    path: Path,
    upgrade: Callable[[dict[str, Any]], Mapping[str, Any]],
    done: Migration,
    note: Callable[[str], None],
) -> None:
    """Write a file as this version would, unless it is so already; ``upgrade`` then returns what it was given."""
    try:
        refuse_links(run, path)
        before = read_object(path)
        after = None if before is None else upgrade(before)
    except UserError as error:
        note(str(error))
        done.failed += 1
        return
    except (UnsupportedVersionError, msgspec.ValidationError) as error:
        note(f"{path}: {error}")
        done.failed += 1
        return
    if after is before:
        done.current += before is not None
    else:
        write_json(path, after)
        done.rewritten += 1
