"""Results of an older version, written once as this version writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from longctx_bench.errors import UserError
from longctx_bench.files import write_json
from longctx_bench.store.cell_folders import refuse_links
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import (
    UnsupportedVersionError,
    parse_spec,
    upgraded,
    upgraded_certificate,
)
from longctx_bench.untrusted import read_object


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
                refuse_links(run, path)
                _migrate_file(path, done, note)
            for path in sorted((run / "parity").glob("*.json")):
                refuse_links(run, path)
                before = read_object(path) or {}
                after = upgraded_certificate(before)
                if after is not before:
                    write_json(path, after)
                _count(done, after is not before)
    if done == Migration():
        raise UserError(f"{folder}: holds no results; name the folder that a run wrote")
    return done


def _runs_below(folder: Path) -> list[Path]:
    """Return the folders below one, itself included, that a run or ``parity`` wrote to."""
    found = [Path(path) for path, folders, _ in os.walk(folder) if not {"runs", "parity"}.isdisjoint(folders)]
    # Cells that were replaced stand below a folder of their own, and are nobody's any more.
    return sorted(path for path in found if "superseded" not in path.relative_to(folder).parts)


def _migrate_file(path: Path, done: Migration, note: Callable[[str], None]) -> None:
    try:
        before = read_object(path)
        if before is None:
            return
        after = upgraded(before)
        parse_spec(after)
    except UserError as error:
        note(str(error))
    except (UnsupportedVersionError, msgspec.ValidationError) as error:
        note(f"{path}: {error}")
    else:
        if after is not before:
            write_json(path, after)
        _count(done, after is not before)
        return
    done.failed += 1


def _count(done: Migration, rewritten: bool) -> None:
    if rewritten:
        done.rewritten += 1
    else:
        done.current += 1
