"""The result store: one folder a cell, records appended as they are made, completion written last.

Layout, below the output folder::

    runs/<model>/<method>/<task>/<length>/started.json    the specs, before the first record
                                          records.jsonl   one line an example
                                          timings.jsonl   seconds an example, apart so that records repeat exactly
                                          cell.json       written last: its existence means done
    prompts/<model>/<task>/<length>.jsonl                 beginning and end of each prompt, for readers
    superseded/...                                        cells that a changed spec replaced

A run can be killed at any moment. A line that was cut off is dropped on the next start, and what is missing
is run again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longctx_bench.errors import UserError
from longctx_bench.excerpts import Excerpt, add_excerpts, read_excerpts
from longctx_bench.files import not_written, safe_name, write_json, write_text
from longctx_bench.records import NATURAL, Cell, Example, Finished, length_name

_CELL_FILES = frozenset(("cell.json", "started.json", "records.jsonl"))
"""What makes a folder a cell's."""


def spec_hash(spec: dict[str, Any]) -> str:
    """Identify everything that a cell's numbers depend on."""
    canonical = json.dumps(spec, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def cell_parts(cell: Cell) -> tuple[str, str, str, str]:
    """Return the names of the four folders that lead to a cell."""
    return safe_name(cell.model), safe_name(cell.method), safe_name(cell.task), length_name(cell.length)


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
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.folder}: another run is writing there; wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise not_written(self.folder, error, "choose another folder with --out") from error
        try:
            yield
        finally:
            lock.release()

    def path(self, cell: Cell) -> Path:
        """Return a cell's folder."""
        return self.runs.joinpath(*cell_parts(cell))

    def start(self, cell: Cell, spec: dict[str, Any], rerun: bool = False) -> dict[str, dict[str, Any]]:
        """Open a cell for writing and return the records that it already has under the same spec, by example id.

        Records under another spec, and with ``rerun`` all of them, are moved to ``superseded/``.
        """
        folder = self.path(cell)
        wanted = spec_hash(spec)
        found = self._existing_hash(folder)
        if folder.exists() and (rerun or found != wanted) and any(folder.iterdir()):
            self._supersede(folder, found or "unknown")
        write_json(folder / "started.json", {"spec_hash": wanted, "spec": spec})
        # Until it is finished again, a cell that is being extended is not done.
        (folder / "cell.json").unlink(missing_ok=True)
        _drop_cut_line(folder / "records.jsonl")
        _drop_cut_line(folder / "timings.jsonl")
        return {record["id"]: record for record in read_lines(folder / "records.jsonl")}

    def done(self, cell: Cell, spec: dict[str, Any], n: int) -> bool:
        """Tell whether a cell is complete under this spec, with at least ``n`` examples."""
        summary = self.summary(cell)
        if summary is None or summary.get("spec_hash") != spec_hash(spec):
            return False
        return bool(summary.get("n", 0) >= n or summary.get("exhausted"))

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """Return a finished cell's ``cell.json``; None when the cell is not finished."""
        return read_json(self.path(cell) / "cell.json")

    def append(self, cell: Cell, finished: Sequence[Finished]) -> None:
        """Add one batch's examples in a single write, so that a kill leaves whole batches.

        Raises:
            UserError: the disk is full or the folder has become unwritable; what was there before is kept.
        """
        folder = self.path(cell)
        records = "".join(_line(item.record) for item in finished)
        timings = "".join(_line({"id": item.record["id"], "seconds": round(item.seconds, 4)}) for item in finished)
        _append(folder / "timings.jsonl", timings)
        _append(folder / "records.jsonl", records)

    def finish(self, cell: Cell, summary: dict[str, Any]) -> None:
        """Order a cell's records by example and write ``cell.json``, last and atomically."""
        folder = self.path(cell)
        write_text(folder / "records.jsonl", "".join(_line(record) for record in self._all_records(cell)))
        write_json(folder / "cell.json", summary)
        (folder / "started.json").unlink(missing_ok=True)

    def fail(self, cell: Cell, spec: dict[str, Any], reason: str) -> None:
        """Note why a cell that was begun was not finished; the next start forgets it.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.path(cell) / "started.json"
        started = read_json(path)
        if started is not None and started.get("spec_hash") == spec_hash(spec):
            write_json(path, started | {"failed": reason})

    def keep_excerpts(self, cell: Cell, examples: Iterable[Example]) -> None:
        """Keep what readers want to see of a cell's prompts; what is there already is left alone.

        Raises:
            UserError: the folder cannot be written.
        """
        add_excerpts(self._prompts(cell), examples)

    def excerpts(self, cell: Cell) -> dict[str, Excerpt]:
        """Return what was kept of a cell's prompts by the hash of the example; empty where nothing was.

        The methods of a base share them, so there may be more than the cell's own.
        """
        return read_excerpts(self._prompts(cell))

    def _prompts(self, cell: Cell) -> Path:
        model, _, task, length = cell_parts(cell)
        return self.folder / "prompts" / model / task / f"{length}.jsonl"

    def records(self, cell: Cell) -> list[dict[str, Any]]:
        """Return a cell's records, ordered by example, up to the first that is missing.

        What an interrupted larger run left behind a gap counts only once the gap is filled: the longest prompts
        are run first and would bias a mean.
        """
        found = self._all_records(cell)
        return found[: before_gap([record["id"] for record in found])]

    def _all_records(self, cell: Cell) -> list[dict[str, Any]]:
        return sorted(read_lines(self.path(cell) / "records.jsonl"), key=lambda record: str(record["id"]))

    def seconds(self, cell: Cell) -> float:
        """Return the wall time that a cell's examples took, over all the runs that it needed."""
        spent = {line["id"]: float(line["seconds"]) for line in read_lines(self.path(cell) / "timings.jsonl")}
        return round(sum(spent.values()), 3)

    def folders(self) -> list[Path]:
        """Return the folders of all cells, finished or not, in a stable order.

        Raises:
            UserError: a folder cannot be read.
        """
        natural = length_name(NATURAL)
        try:
            found = [Path(path) for path, name in _leaves(self.runs, 4) if name.isdecimal() or name == natural]
            found = [path for path in found if not _CELL_FILES.isdisjoint(os.listdir(path))]  # noqa: PTH208 (iterdir is slow)
        except OSError as error:
            raise UserError(f"{self.runs}: cannot be read: {error.strerror}") from error
        return sorted(
            found, key=lambda folder: (*folder.parts[-4:-1], NATURAL if folder.name == natural else int(folder.name))
        )

    def _existing_hash(self, folder: Path) -> str | None:
        for name in ("cell.json", "started.json"):
            found = read_json(folder / name)
            if found is not None:
                return str(found.get("spec_hash"))
        return None

    def _supersede(self, folder: Path, tag: str) -> None:
        target = self.folder / "superseded" / folder.relative_to(self.runs).parent / f"{folder.name}-{tag}"
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{folder.name}-{tag}-{number}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.replace(target)
        except OSError as error:
            raise not_written(target, error, "choose another folder with --out") from error


def before_gap(ids: Sequence[str]) -> int:
    """Return how many of a cell's example ids, in order, come before the first that is missing."""
    gaps = (place for place, name in enumerate(ids) if name.isdigit() and int(name) != place)
    return next(gaps, len(ids))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None when there is no such file, or a file in place of its folder.

    Raises:
        UserError: the file is not JSON, or not an object.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); delete its folder and run again") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: is not a JSON object; delete its folder and run again")
    return loaded


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; nothing when there is no such file.

    Raises:
        UserError: a line is not JSON, with its number.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                loaded = json.loads(line.encode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not valid JSON ({error})") from error
            if not isinstance(loaded, dict):
                raise UserError(f"{path}: line {number} is not a JSON object")
            yield loaded


def _line(value: dict[str, Any]) -> str:
    # U+2028 and the like stay escaped: a record is one line for every reader.
    return json.dumps(value, ensure_ascii=True) + "\n"


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


def _append(path: Path, text: str) -> None:
    left = memoryview(text.encode())
    try:
        # Without a buffer: closing the file would write what is left in one, after the file was cut.
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise not_written(path, error, "what was measured before is kept, run the same command again") from error


def _drop_cut_line(path: Path) -> None:
    """Cut off a last line that a killed process did not finish."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
