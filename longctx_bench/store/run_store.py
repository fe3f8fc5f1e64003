"""The result store: one folder per cell, append-only records, a completion file written last.

Layout, below the output folder::

    runs/<model>/<method>/<task>/<length>/started.json    the specs, before the first record
                                          records.jsonl   one line per example
                                          timings.jsonl   seconds per example; records stay deterministic
                                          cell.json       written last: its existence means done
    prompts/<model>/<task>/<length>.jsonl                 start and end of each prompt, for readers
    superseded/...                                        cells replaced after their spec changed

A run may be killed and a machine may lose power at any moment. The next start drops a truncated last line, moves lines
that are not valid records to ``records.damaged.jsonl``, and runs what is missing. Nothing is written through a symbolic
link below the output folder.
"""

from __future__ import annotations

import errno
import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import (
    append,
    atomic_write,
    is_temporary,
    make_folder,
    plain_name,
    sync_folder,
    truncate_partial_line,
    write_error,
    write_json,
)
from longctx_bench.core.types import Cell, Example, SampleRecord
from longctx_bench.core.untrusted_files import read_object, read_objects, read_objects_at, read_objects_with_offsets
from longctx_bench.store.cell_folders import (
    cell_folder,
    cell_folders,
    cell_path_parts,
    legacy_cell_path_parts,
    reject_symlinks,
)
from longctx_bench.store.example_index import NumbersById
from longctx_bench.store.jsonl_recovery import RecordLine, TimingLine, line_error, quarantine_damaged_lines
from longctx_bench.store.prompt_excerpts import PromptExcerpt, add_excerpts, read_excerpts
from longctx_bench.store.schema import (
    SCHEMA_VERSION,
    CellResult,
    CellSpec,
    UnsupportedVersionError,
    to_builtins,
    upgrade,
)

_KEPT = "what was measured before is kept; run the same command again"


class ResultStore:
    """Cells below one output folder: reading, writing, resuming."""

    def __init__(self, folder: Path) -> None:
        """Name a folder, which need not exist.

        Raises:
            UserError: it is a file.
        """
        require_folder(folder)
        self.folder = folder
        """As the user named it."""
        self.files = folder
        """Where its files lie: the same, unless they were packed (:mod:`.bundle`)."""
        self.runs = folder / "runs"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for writing.

        Raises:
            UserError: another process holds the lock, or the folder is not writable.
        """
        try:
            make_folder(self.folder)
            path = self.folder / ".lock"
            # FileLock opens and truncates the file.
            if path.is_symlink():
                raise OSError(errno.ELOOP, ".lock is a symbolic link")
            lock = FileLock(path)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.folder}: another run is writing there; wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise write_error(self.folder, error, "choose another folder with --out") from error
        try:
            yield
        finally:
            lock.release()

    def path(self, cell: Cell) -> Path:
        """Return a cell's folder: the current path, or the legacy one where such a cell exists."""
        return cell_folder(self.runs, cell)

    def start(
        self, cell: Cell, spec: CellSpec, overwrite: bool = False, note: Callable[[str], None] = lambda line: None
    ) -> Mapping[str, str]:
        """Open a cell for writing and return the examples it already has under the same spec: hash by example id.

        Records of another spec, and with ``overwrite`` all records, move to ``superseded/``. Lines that are not valid
        records are moved aside, and their examples run again.

        Args:
            cell: the cell to open.
            spec: everything that its numbers depend on.
            overwrite: move existing records away and start over.
            note: called with one line for each problem found.

        Raises:
            UserError: the folder is not writable, is a symbolic link, or holds records of an unknown spec.
        """
        folder = self.path(cell)
        reject_symlinks(self.folder, folder)
        stored_hash = self._stored_hash(folder)
        superseded = overwrite or stored_hash != spec.hash
        # An interrupted start may have left nothing but a temporary file.
        if superseded and folder.exists() and not all(is_temporary(file.name) for file in folder.iterdir()):
            moved_to = self._supersede(folder, stored_hash or "unknown")
            folder = self.path(cell)
            note(f"{cell}: {'running again' if overwrite else 'its spec changed'}; previous results are in {moved_to}")
        started = {"schema_version": SCHEMA_VERSION, "spec_hash": spec.hash, "spec": to_builtins(spec)}
        write_json(folder / "started.json", started)
        if (folder / "cell.json").exists():
            # A cell that is being extended counts as unfinished until it is finished again.
            (folder / "cell.json").unlink()
            sync_folder(folder)
        records, timings = folder / "records.jsonl", folder / "timings.jsonl"
        truncate_partial_line(records, _KEPT)
        truncate_partial_line(timings, _KEPT)
        quarantine_damaged_lines(timings, TimingLine, note)
        return quarantine_damaged_lines(records, RecordLine, note)

    def done(self, cell: Cell, spec: CellSpec, n: int) -> bool:
        """Whether a cell is complete under this spec with at least ``n`` examples.

        False where ``cell.json`` is damaged; :meth:`start` reports that.
        """
        try:
            summary = self.summary(cell)
        except UserError:
            return False
        if summary is None or summary.get("spec_hash") != spec.hash:
            return False
        num_stored = summary.get("n")
        if not isinstance(num_stored, int) or num_stored >= n:
            return isinstance(num_stored, int)
        # Earlier versions mistook a duplicate record for the end of the data.
        return bool(summary.get("exhausted")) and _count_lines(self.path(cell) / "records.jsonl") == num_stored

    def summary(self, cell: Cell) -> Mapping[str, Any] | None:
        """Return a finished cell's ``cell.json`` in the current schema; None when the cell is not finished.

        Raises:
            UserError: the file is damaged, or a later version wrote it.
        """
        return _read(self.path(cell) / "cell.json")

    def append(self, cell: Cell, finished: Sequence[SampleRecord]) -> None:
        """Append one batch's records in a single write, so that a kill leaves whole batches.

        Raises:
            UserError: the disk is full or the folder is not writable; earlier records are kept.
        """
        folder = self.path(cell)
        records = "".join(_line(item.record) for item in finished)
        timings = "".join(_line({"id": item.record["id"], "seconds": round(item.seconds, 4)}) for item in finished)
        append(folder / "timings.jsonl", timings.encode(), _KEPT)
        append(folder / "records.jsonl", records.encode(), _KEPT)

    def finish(self, cell: Cell, result: CellResult) -> None:
        """Sort a cell's records by example id, then write ``cell.json`` atomically."""
        folder = self.path(cell)
        path = folder / "records.jsonl"
        offsets = _record_offsets(path)
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, _records_at(path, offsets.values())))
        write_json(folder / "cell.json", to_builtins(result))
        (folder / "started.json").unlink(missing_ok=True)

    def record_failure(self, cell: Cell, spec: CellSpec, reason: str) -> None:
        """Store why a started cell did not finish; the next start clears it.

        Raises:
            UserError: the folder is not writable.
        """
        path = self.path(cell) / "started.json"
        started = _read(path)
        if started is not None and started.get("spec_hash") == spec.hash:
            write_json(path, {**started, "failed": reason})

    def save_excerpts(self, cell: Cell, examples: Iterable[Example]) -> None:
        """Store excerpts of a cell's prompts; existing ones stay.

        Raises:
            UserError: the folder is not writable.
        """
        path = self.excerpts_path(cell)
        reject_symlinks(self.folder, path.parent)
        add_excerpts(path, examples)

    def load_excerpts(self, cell: Cell) -> dict[str, PromptExcerpt]:
        """Return the prompt excerpts by example hash; empty where none were stored.

        The methods of a base share one file, so there may be more excerpts than the cell has examples.
        """
        return read_excerpts(self.excerpts_path(cell))

    def excerpts_path(self, cell: Cell) -> Path:
        """Return the file of a cell's prompt excerpts, which need not exist; the methods of a base share it."""
        path, legacy = (
            self.files / "prompts" / model / task / f"{length}.jsonl"
            for model, _, task, length in (cell_path_parts(cell), legacy_cell_path_parts(cell))
        )
        # Excerpts are looked up by hash: two cells may share a legacy file.
        return legacy if legacy.exists() and not path.exists() else path

    def records(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """Yield a cell's records, ordered by example id, up to the first missing one.

        Records after a gap, left by a larger interrupted run, count only once the gap is filled: the longest prompts
        run first and would bias a mean.

        Raises:
            UserError: a line is not a record, or contradicts another line.
        """
        path = self.path(cell) / "records.jsonl"
        offsets = _record_offsets(path)
        return _records_at(path, islice(offsets.values(), count_before_gap(offsets)))

    def total_seconds(self, cell: Cell) -> float:
        """Return the wall time of a cell's examples in seconds, over all runs that it took."""
        rows, seconds = NumbersById(), array("d")
        for line in read_objects(self.path(cell) / "timings.jsonl"):
            if line_error(line, TimingLine) is not None:
                continue
            row = rows.setdefault(line["id"], len(seconds))
            # The last timing of an example counts.
            seconds[row : row + 1] = array("d", [line["seconds"]])
        return round(sum(seconds), 3)

    def folders(self) -> list[Path]:
        """Return the folders of all cells, finished or not, in a stable order.

        Raises:
            UserError: a folder cannot be read.
        """
        return cell_folders(self.runs)

    def _stored_hash(self, folder: Path) -> str | None:
        for name in ("cell.json", "started.json"):
            details = _read(folder / name)
            if details is not None:
                return str(details.get("spec_hash"))
        return None

    def _supersede(self, folder: Path, tag: str) -> Path:
        tag = plain_name(tag)[:40]
        target = self.folder / "superseded" / folder.relative_to(self.runs).parent / f"{folder.name}-{tag}"
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{folder.name}-{tag}-{number}")
        reject_symlinks(self.folder, target)
        try:
            make_folder(target.parent)
            folder.replace(target)
            sync_folder(target.parent)
            sync_folder(folder.parent)
        except OSError as error:
            raise write_error(target, error, "choose another folder with --out") from error
        return target


def require_folder(path: Path) -> None:
    """Raise where results cannot be written because there is a file, such as a bundle.

    Raises:
        UserError: it is a file.
    """
    if path.is_file():
        raise UserError(
            f"{path}: is a file, and results are written to a folder; `longctx-bench unpack` makes one of a bundle"
        )


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return the content of ``cell.json`` or ``started.json`` in the current schema; None when there is no file."""
    values = read_object(path)
    try:
        return None if values is None else upgrade(values)
    except UnsupportedVersionError as error:
        raise UserError(f"{path}: {error}") from error


def count_before_gap(ids: Collection[str]) -> int:
    """Return how many of the sorted example ids come before the first missing one."""
    gaps = (index for index, name in enumerate(ids) if name.isdigit() and int(name) != index)
    return next(gaps, len(ids))


def _record_offsets(path: Path) -> NumbersById:
    """Return the byte offset of each example's first record, by example id.

    Raises:
        UserError: a line is not a record, or contradicts another line.
    """
    offsets = NumbersById()
    for number, (offset, record) in enumerate(read_objects_with_offsets(path), 1):
        name = record.get("id")
        if not isinstance(name, str):
            raise UserError(f"{path}: line {number} has no id")
        first = offsets.setdefault(name, offset)
        if first != offset and next(read_objects_at(path, (first,))) != record:
            raise UserError(f"{path}: line {number} differs from another line of example {name!a:.40}")
    return offsets


def _records_at(path: Path, offsets: Iterable[int]) -> Iterator[dict[str, Any]]:
    # A cell without records has no file.
    return read_objects_at(path, offsets) if path.exists() else iter(())


def _line(value: dict[str, Any]) -> str:
    # Escape U+2028 and the like, so that a record is one line for every reader.
    return json.dumps(value, ensure_ascii=True) + "\n"


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0
