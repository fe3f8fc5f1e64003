"""The folders of cells: their names, where those of earlier versions are, and that none of them leads elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import plain_name, safe_name
from longctx_bench.core.types import NATURAL, Cell, length_name
from longctx_bench.core.untrusted_files import read_object

_CELL_FILES = frozenset(("cell.json", "started.json", "records.jsonl"))
"""What makes a folder a cell's."""


def cell_path_parts(cell: Cell) -> tuple[str, str, str, str]:
    """Return the names of the four folders that lead to a cell, which lead to no other."""
    return safe_name(cell.model), safe_name(cell.method), safe_name(cell.task), length_name(cell.length)


def legacy_cell_path_parts(cell: Cell) -> tuple[str, str, str, str]:
    """Return the folders' names from before they were kept apart; most are the same."""
    # Longer ones could never be made.
    model, method, task = (plain_name(name)[:255] for name in (cell.model, cell.method, cell.task))
    return model, method, task, length_name(cell.length)


def is_cell_path(folder: Path, cell: Cell) -> bool:
    """Tell whether a folder's path is one that a cell may have: today's, or an earlier version's."""
    return folder.parts[-4:] in {cell_path_parts(cell), legacy_cell_path_parts(cell)}


def cell_folder(runs: Path, cell: Cell) -> Path:
    """Return a cell's folder: where names are kept apart, or where it has been since before they were.

    Args:
        runs: holds the folders of all models.
        cell: that need not exist.
    """
    folder, old = runs.joinpath(*cell_path_parts(cell)), runs.joinpath(*legacy_cell_path_parts(cell))
    return old if old != folder and not folder.exists() and _is_of(old, cell) else folder


def cell_folders(runs: Path) -> list[Path]:
    """Return the folders of all cells, finished or not, in a stable order.

    Raises:
        UserError: a folder cannot be read.
    """
    natural = length_name(NATURAL)
    try:
        found = [Path(path) for path, name in _leaves(runs, 4) if name.isdecimal() or name == natural]
        found = [path for path in found if not _CELL_FILES.isdisjoint(os.listdir(path))]  # noqa: PTH208 (iterdir is slow)
    except OSError as error:
        raise UserError(f"{runs}: cannot be read: {error.strerror}") from error
    return sorted(
        found, key=lambda folder: (*folder.parts[-4:-1], NATURAL if folder.name == natural else int(folder.name))
    )


def reject_symlinks(top: Path, path: Path) -> None:
    """See to it that what is written at a path lies below a folder.

    Raises:
        UserError: a folder on the way to it is a symbolic link.
    """
    for each in (path, *path.parents):
        if each == top:
            return
        if each.is_symlink():
            raise UserError(
                f"{each}: is a symbolic link, which no result is written through; name the folder that it points "
                f"to with --out, or put that in its place"
            )


def _is_of(folder: Path, cell: Cell) -> bool:
    """Tell whether a folder holds this cell, and not another one whose name became the same."""
    try:
        details = read_object(folder / "cell.json") or read_object(folder / "started.json") or {}
        given = details.get("cell") or {
            "length": details["spec"]["length"],
            **{part: details["spec"][part]["name"] for part in ("model", "method", "task")},
        }
        return Cell(**given) == cell
    except (UserError, KeyError, TypeError):
        return False


def _leaves(folder: Path | str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield path and name of the folders ``depth`` levels below one; nothing when it does not exist."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return
    for entry in entries:
        if depth == 1:
            yield entry.path, entry.name
        else:
            yield from _leaves(entry.path, depth - 1)
