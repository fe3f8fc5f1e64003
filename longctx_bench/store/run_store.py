"""The result store: one folder a cell, records appended as they are made, completion written last.

Layout, below the output folder::

    runs/<model>/<method>/<task>/<length>/started.json    the specs, before the first record
                                          records.jsonl   one line an example
                                          timings.jsonl   seconds an example, apart so that records repeat exactly
                                          cell.json       written last: its existence means done
    prompts/<model>/<task>/<length>.jsonl                 beginning and end of each prompt, for readers
    superseded/...                                        cells that a changed spec replaced

A run can be killed at any moment, and a machine can lose its power. A line that was cut off is dropped on the next
start, one that is no record is put aside, into ``records.damaged.jsonl``, and what is missing is run again. Nothing is
written through a symbolic link below the output folder.
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
from longctx_bench.store.cell_folders import cell_folder, cell_folders, cell_parts, old_cell_parts, refuse_links
from longctx_bench.store.example_index import NumbersById
from longctx_bench.store.jsonl_recovery import RecordLine, TimingLine, put_aside, sound
from longctx_bench.store.prompt_excerpts import Excerpt, add_excerpts, read_excerpts
from longctx_bench.store.schema import SCHEMA_VERSION, CellResult, CellSpec, UnsupportedVersionError, plain, upgraded

_KEPT = "what was measured before is kept, run the same command again"


class ResultStore:
    """Reads and writes the cells below one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing.

        Raises:
            UserError: another process holds it, or it cannot be written.
        """
        try:
            make_folder(self.folder)
            path = self.folder / ".lock"
            # It is opened for writing, and emptied.
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
        """Return a cell's folder: where names are kept apart, or where it has been since before they were."""
        return cell_folder(self.runs, cell)

    def start(
        self, cell: Cell, spec: CellSpec, rerun: bool = False, note: Callable[[str], None] = lambda line: None
    ) -> Mapping[str, str]:
        """Open a cell for writing and return what it has already under the same spec: hashes by example id.

        Records under another spec, and with ``rerun`` all of them, are moved to ``superseded/``. A line that is no
        record is put aside, so that its example runs again.

        Args:
            cell: of this store.
            spec: everything that its numbers depend on.
            rerun: begin anew.
            note: takes a line for each thing that was not as it should be.

        Raises:
            UserError: the folder cannot be written, leads elsewhere, or does not say which spec its records are of.
        """
        folder = self.path(cell)
        refuse_links(self.folder, folder)
        found = self._existing_hash(folder)
        # A start that was cut off may have left a temporary file, and nothing that was measured.
        replaced = rerun or found != spec.hash
        if replaced and folder.exists() and not all(is_temporary(file.name) for file in folder.iterdir()):
            where = self._supersede(folder, found or "unknown")
            folder = self.path(cell)
            note(f"{cell}: {'is run again' if rerun else 'was measured otherwise'}; what was there is in {where}")
        begun = {"schema_version": SCHEMA_VERSION, "spec_hash": spec.hash, "spec": plain(spec)}
        write_json(folder / "started.json", begun)
        if (folder / "cell.json").exists():
            # Until it is finished again, a cell that is being extended is not done, whatever happens.
            (folder / "cell.json").unlink()
            sync_folder(folder)
        records, timings = folder / "records.jsonl", folder / "timings.jsonl"
        truncate_partial_line(records, _KEPT)
        truncate_partial_line(timings, _KEPT)
        put_aside(timings, TimingLine, note)
        return put_aside(records, RecordLine, note)

    def done(self, cell: Cell, spec: CellSpec, n: int) -> bool:
        """Tell whether a cell is complete under this spec, with at least ``n`` examples.

        One whose ``cell.json`` is damaged is not; what is to be done about it, :meth:`start` says.
        """
        try:
            summary = self.summary(cell)
        except UserError:
            return False
        if summary is None or summary.get("spec_hash") != spec.hash:
            return False
        have = summary.get("n")
        if not isinstance(have, int) or have >= n:
            return isinstance(have, int)
        # Versions before this one took a record that was there twice for the end of the data.
        return bool(summary.get("exhausted")) and _count_lines(self.path(cell) / "records.jsonl") == have

    def summary(self, cell: Cell) -> Mapping[str, Any] | None:
        """Return a finished cell's ``cell.json`` as this version writes it; None when the cell is not finished.

        Raises:
            UserError: it is damaged, or a later version wrote it.
        """
        return _read(self.path(cell) / "cell.json")

    def append(self, cell: Cell, finished: Sequence[SampleRecord]) -> None:
        """Add one batch's examples in a single write, so that a kill leaves whole batches.

        Raises:
            UserError: the disk is full or the folder has become unwritable; what was there before is kept.
        """
        folder = self.path(cell)
        records = "".join(_line(item.record) for item in finished)
        timings = "".join(_line({"id": item.record["id"], "seconds": round(item.seconds, 4)}) for item in finished)
        append(folder / "timings.jsonl", timings.encode(), _KEPT)
        append(folder / "records.jsonl", records.encode(), _KEPT)

    def finish(self, cell: Cell, result: CellResult) -> None:
        """Order a cell's records by example, one after the other, and write ``cell.json``, last and atomically."""
        folder = self.path(cell)
        path = folder / "records.jsonl"
        places = _places(path)
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, _records_at(path, places.values())))
        write_json(folder / "cell.json", plain(result))
        (folder / "started.json").unlink(missing_ok=True)

    def fail(self, cell: Cell, spec: CellSpec, reason: str) -> None:
        """Note why a cell that was begun was not finished; the next start forgets it.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.path(cell) / "started.json"
        started = _read(path)
        if started is not None and started.get("spec_hash") == spec.hash:
            write_json(path, {**started, "failed": reason})

    def keep_excerpts(self, cell: Cell, examples: Iterable[Example]) -> None:
        """Keep what readers want to see of a cell's prompts; what is there already is left alone.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self._prompts(cell)
        refuse_links(self.folder, path.parent)
        add_excerpts(path, examples)

    def excerpts(self, cell: Cell) -> dict[str, Excerpt]:
        """Return what was kept of a cell's prompts by the hash of the example; empty where nothing was.

        The methods of a base share them, so there may be more than the cell's own.
        """
        return read_excerpts(self._prompts(cell))

    def _prompts(self, cell: Cell) -> Path:
        path, old = (
            self.folder / "prompts" / model / task / f"{length}.jsonl"
            for model, _, task, length in (cell_parts(cell), old_cell_parts(cell))
        )
        # Excerpts go by their hashes: that an old file may be two cells' takes nothing away from either.
        return old if old.exists() and not path.exists() else path

    def records(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """Return a cell's records, ordered by example, up to the first that is missing; they are read one by one.

        What an interrupted larger run left behind a gap counts only once the gap is filled: the longest prompts
        are run first and would bias a mean.

        Raises:
            UserError: a line is no record, or contradicts another one.
        """
        path = self.path(cell) / "records.jsonl"
        places = _places(path)
        return _records_at(path, islice(places.values(), before_gap(places)))

    def seconds(self, cell: Cell) -> float:
        """Return the wall time that a cell's examples took, over all the runs that it needed."""
        rows, spent = NumbersById(), array("d")
        for line in read_objects(self.path(cell) / "timings.jsonl"):
            if sound(line, TimingLine) is not None:
                continue
            row = rows.setdefault(line["id"], len(spent))
            # The last one counts.
            spent[row : row + 1] = array("d", [line["seconds"]])
        return round(sum(spent), 3)

    def folders(self) -> list[Path]:
        """Return the folders of all cells, finished or not, in a stable order.

        Raises:
            UserError: a folder cannot be read.
        """
        return cell_folders(self.runs)

    def _existing_hash(self, folder: Path) -> str | None:
        for name in ("cell.json", "started.json"):
            found = _read(folder / name)
            if found is not None:
                return str(found.get("spec_hash"))
        return None

    def _supersede(self, folder: Path, tag: str) -> Path:
        tag = plain_name(tag)[:40]
        target = self.folder / "superseded" / folder.relative_to(self.runs).parent / f"{folder.name}-{tag}"
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{folder.name}-{tag}-{number}")
        refuse_links(self.folder, target)
        try:
            make_folder(target.parent)
            folder.replace(target)
            sync_folder(target.parent)
            sync_folder(folder.parent)
        except OSError as error:
            raise write_error(target, error, "choose another folder with --out") from error
        return target


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return what ``cell.json`` or ``started.json`` says, as this version writes it; None when there is none."""
    values = read_object(path)
    try:
        return None if values is None else upgraded(values)
    except UnsupportedVersionError as error:
        raise UserError(f"{path}: {error}") from error


def before_gap(ids: Collection[str]) -> int:
    """Return how many of a cell's example ids, in order, come before the first that is missing."""
    gaps = (place for place, name in enumerate(ids) if name.isdigit() and int(name) != place)
    return next(gaps, len(ids))


def _places(path: Path) -> NumbersById:
    """Return the byte that each example's first record begins at.

    Raises:
        UserError: a line is no record, or contradicts another one.
    """
    places = NumbersById()
    for number, (place, record) in enumerate(read_objects_with_offsets(path), 1):
        name = record.get("id")
        if not isinstance(name, str):
            raise UserError(f"{path}: line {number} has no id")
        first = places.setdefault(name, place)
        if first != place and next(read_objects_at(path, (first,))) != record:
            raise UserError(f"{path}: line {number} differs from another one of example {name!a:.40}")
    return places


def _records_at(path: Path, places: Iterable[int]) -> Iterator[dict[str, Any]]:
    # A cell may have no records, and then no file.
    return read_objects_at(path, places) if path.exists() else iter(())


def _line(value: dict[str, Any]) -> str:
    # U+2028 and the like stay escaped: a record is one line for every reader.
    return json.dumps(value, ensure_ascii=True) + "\n"


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0
