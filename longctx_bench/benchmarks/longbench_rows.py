"""Rows of LongBench's published files: .jsonl, .jsonl.gz or .parquet in a folder, or the zip that the hub holds."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from longctx_bench.errors import UserError, near_miss


@dataclass(frozen=True)
class Row:
    """One row, with what LongBench's procedure reads of it."""

    context: str
    question: str
    """The field ``input``."""
    answers: tuple[str, ...]
    length: int
    """Words of an English row, characters of a Chinese one."""
    classes: tuple[str, ...]


def read_rows(path: Path, name: str, n: int) -> list[Row]:
    """Return the first ``n`` rows of a file of LongBench.

    Args:
        path: the folder or zip that holds the files, or one of the files.
        name: the file's name without its ending, such as ``hotpotqa_e``.
        n: how many.

    Raises:
        UserError: no such file, or a broken row, named by file and line.
    """
    if path.is_file() and path.suffix == ".zip":
        return list(_zipped(path, name, n))
    if path.is_file() and path.name.partition(".")[0] != name:
        raise UserError(f"{path}: is not the file of {name}; name the folder that holds all of them")
    files = [path] if path.is_file() else _find(path, name)
    if files[0].suffix == ".parquet":
        return list(islice((row for file in files for row in _parquet(file)), n))
    file = files[0]
    with _opened(file) as lines:
        return list(islice(_jsonl(lines, str(file)), n))


def _find(folder: Path, name: str) -> list[Path]:
    """Return the file of that name, or the parts of a parquet dataset."""
    places = [f"{name}.jsonl", f"{name}.jsonl.gz", f"{name}.parquet"]
    for root in (folder, folder / "data"):
        for place in places:
            if (root / place).is_file():
                return [root / place]
        split = sorted((root / name).glob("**/*.parquet"))
        if split:
            return split
    here = {file.name.partition(".")[0] for file in folder.glob("*") if not file.name.startswith(".")}
    raise UserError(f"{folder}: has no {name}.jsonl (nor .jsonl.gz, .parquet){near_miss(name, sorted(here))}")


def _zipped(path: Path, name: str, n: int) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.namelist() if member.rpartition("/")[2] == f"{name}.jsonl"]
            if not members:
                raise UserError(f"{path}: has no member {name}.jsonl")
            with archive.open(members[0]) as raw, io.TextIOWrapper(raw, encoding="utf-8") as lines:
                yield from islice(_jsonl(lines, f"{path}: {members[0]}"), n)
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable zip ({error}); fetch it again") from error


@contextmanager
def _opened(file: Path) -> Iterator[Iterable[str]]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            yield lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch it again") from error


def _jsonl(lines: Iterable[str], file: str) -> Iterator[Row]:
    # No splitting at U+2028 and the like: an open text file ends its lines at newlines alone.
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            loaded = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not JSON ({error})") from error
        yield _row(loaded, f"{file}: line {number}")


def _parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{file}: .parquet needs the package 'pyarrow': pip install pyarrow") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
        for number, row in enumerate((row for batch in table.iter_batches(64) for row in batch.to_pylist()), 1):
            yield _row(row, f"{file}: row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable parquet file ({error}); fetch it again") from error


def _row(loaded: Any, where: str) -> Row:
    if not isinstance(loaded, dict):
        raise UserError(f"{where} is not a JSON object")
    for key in ("context", "input"):
        if not isinstance(loaded.get(key), str):
            raise UserError(f"{where} has no text under '{key}'")
    answers, classes = loaded.get("answers"), loaded.get("all_classes") or ()
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where} has no list of texts under 'answers'")
    if not isinstance(loaded.get("length"), int):
        raise UserError(f"{where} has no whole number under 'length'")
    return Row(loaded["context"], loaded["input"], tuple(answers), loaded["length"], tuple(map(str, classes)))
