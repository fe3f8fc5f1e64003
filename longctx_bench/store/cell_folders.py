"""Cell folders: path of a cell, legacy paths, and the refusal of symbolic links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import plain_name, safe_name
from longctx_bench.core.types import NATURAL, Cell, length_name
from longctx_bench.core.untrusted_files import read_object

_CELL_FILES = frozenset(("cell.json", "started.json", "records.jsonl"))
"""A folder with one of these is a cell's."""


def cell_path_parts(cell: Cell) -> tuple[str, str, str, str]:
    """Return the four folder names of a cell (model, method, task, length), unique to it."""
    return safe_name(cell.model), safe_name(cell.method), safe_name(cell.task), length_name(cell.length)


def legacy_cell_path_parts(cell: Cell) -> tuple[str, str, str, str]:
    """Return the folder names of earlier versions, which two cells could share; most are unchanged."""
    # File systems do not allow longer names.
    model, method, task = (plain_name(name)[:255] for name in (cell.model, cell.method, cell.task))
    return model, method, task, length_name(cell.length)


def is_cell_path(folder: Path, cell: Cell) -> bool:
    """Whether a folder's path is the cell's, current or legacy."""
    return folder.parts[-4:] in {cell_path_parts(cell), legacy_cell_path_parts(cell)}


def cell_folder(runs: Path, cell: Cell) -> Path:
    """Return a cell's folder: the current path, or the legacy one where this very cell lies there.

    Args:
        runs: the ``runs`` folder of a result store.
        cell: need not exist.
    """
    folder, legacy = runs.joinpath(*cell_path_parts(cell)), runs.joinpath(*legacy_cell_path_parts(cell))
    return legacy if legacy != folder and not folder.exists() and _holds_cell(legacy, cell) else folder


def cell_folders(runs: Path) -> list[Path]:
    """Return the folders of all cells, finished or not, in a stable order.

    Raises:
        UserError: a folder cannot be read.
    """
    natural = length_name(NATURAL)
    try:
        folders = [Path(path) for path, name in _subfolders(runs, 4) if name.isdecimal() or name == natural]
        folders = [path for path in folders if not _CELL_FILES.isdisjoint(os.listdir(path))]  # noqa: PTH208 (iterdir is slow)
    except OSError as error:
        raise UserError(f"{runs}: cannot be read: {error.strerror}") from error
    return sorted(
        folders, key=lambda folder: (*folder.parts[-4:-1], NATURAL if folder.name == natural else int(folder.name))
    )


def reject_symlinks(top: Path, path: Path) -> None:
    """Raise if ``path``, or a folder between it and ``top``, is a symbolic link.

    Raises:
        UserError: one is.
    """
    for part in (path, *path.parents):
        if part == top:
            return
        if part.is_symlink():
            raise UserError(
                f"{part}: is a symbolic link, and results are not written through links; give --out its target, or "
                f"replace the link by a folder"
            )


def _holds_cell(folder: Path, cell: Cell) -> bool:
    """Whether a folder holds this cell, and not another one with the same legacy path."""
    try:
        details = read_object(folder / "cell.json") or read_object(folder / "started.json") or {}
        fields = details.get("cell") or {
            "length": details["spec"]["length"],
            **{part: details["spec"][part]["name"] for part in ("model", "method", "task")},
        }
        return Cell(**fields) == cell
    except (UserError, KeyError, TypeError):
        return False


def _subfolders(folder: Path | str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield path and name of the folders ``depth`` levels below ``folder``; nothing where it does not exist."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return
    for entry in entries:
        if depth == 1:
            yield entry.path, entry.name
        else:
            yield from _subfolders(entry.path, depth - 1)
