"""Reading LongBench's published rows: .jsonl, .jsonl.gz or .parquet files in a folder, or the zip from the hub."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from longctx_bench.core.decompression import open_decompressed_text, read_bounded_lines
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.parquet_reader import parquet_rows

_COLUMNS = ("context", "input", "answers", "length", "all_classes")
"""The columns that are read."""


@dataclass(frozen=True)
class LongBenchRow:
    """One row of a LongBench data set."""

    context: str
    question: str
    """The field ``input``."""
    answers: tuple[str, ...]
    length: int
    """Words of an English row, characters of a Chinese one."""
    classes: tuple[str, ...]


def read_rows(path: Path, name: str, n: int) -> list[LongBenchRow]:
    """Return the first ``n`` rows of a file of LongBench.

    Args:
        path: the folder or zip that holds the files, or one of the files.
        name: the file's name without its ending, such as ``hotpotqa_e``.
        n: how many.

    Raises:
        UserError: no such file, no row in it, or a broken one, named by file and line.
    """
    if path.is_file() and path.suffix == ".zip":
        rows = list(islice(_zipped(path, name), n))
    else:
        if path.is_file() and path.name.partition(".")[0] != name:
            raise UserError(f"{path}: is not the file of {name}; name the folder that holds all of them")
        files = [path] if path.is_file() else _find(path, name)
        rows = list(islice(chain.from_iterable(map(_rows_of, files)), n))
    if not rows:
        raise UserError(f"{path if path.is_file() else files[0]}: holds no rows of {name}; fetch it again")
    return rows


def _rows_of(file: Path) -> Iterator[LongBenchRow]:
    if file.suffix == ".parquet":
        yield from _parquet(file)
        return
    with _readable(file), _opened(file) as lines:
        yield from _jsonl(lines, str(file))


def _find(folder: Path, name: str) -> list[Path]:
    names = [f"{name}.jsonl", f"{name}.jsonl.gz", f"{name}.parquet"]
    for root in (folder, folder / "data"):
        for file_name in names:
            if (root / file_name).is_file():
                return [root / file_name]
        split = sorted((root / name).glob("**/*.parquet"))
        if split:
            return split
    present = [*folder.glob("*"), *(folder / "data").glob("*")]
    available = {file.name.partition(".")[0] for file in present if not file.name.startswith(".")} - {"data"}
    raise UserError(f"{folder}: has no {name}.jsonl (nor .jsonl.gz, .parquet){did_you_mean(name, sorted(available))}")


def _zipped(path: Path, name: str) -> Iterator[LongBenchRow]:
    with _readable(path), zipfile.ZipFile(path) as archive:
        members = {member.rpartition("/")[2]: member for member in archive.namelist()}
        if f"{name}.jsonl" not in members:
            available = {member.partition(".")[0] for member in members if member.endswith(".jsonl")}
            raise UserError(f"{path}: has no member {name}.jsonl{did_you_mean(name, available)}")
        member = members[f"{name}.jsonl"]
        packed = min(archive.getinfo(member).compress_size, path.stat().st_size)
        where = f"{path}: {member}"
        with archive.open(member) as raw, open_decompressed_text(raw, packed, where, newline=None) as lines:
            yield from _jsonl(lines, where)


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    if file.suffix == ".gz":
        with (
            gzip.open(file, "rb") as raw,
            open_decompressed_text(raw, file.stat().st_size, str(file), newline=None) as lines,
        ):
            yield lines
    else:
        with file.open(encoding="utf-8") as lines:
            yield lines


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError, EOFError, UnicodeDecodeError, zlib.error, zipfile.BadZipFile, RuntimeError,
    ) as error:  # fmt: skip
        raise UserError(f"{file}: cannot be read ({error}); fetch it again") from error


def _jsonl(lines: TextIO, file: str) -> Iterator[LongBenchRow]:
    # Text files split lines only at newlines, not at U+2028 and the like.
    for number, line in enumerate(read_bounded_lines(lines, file), 1):
        if not line.strip():
            continue
        try:
            loaded = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: line {number} is not JSON ({error})") from error
        yield _row(loaded, f"{file}: line {number}")


def _parquet(file: Path) -> Iterator[LongBenchRow]:
    with _readable(file):
        for number, row in enumerate(parquet_rows(file, _COLUMNS), 1):
            yield _row(row, f"{file}: row {number}")


def _row(loaded: Any, where: str) -> LongBenchRow:
    if not isinstance(loaded, dict):
        raise UserError(f"{where} is not a JSON object")
    for key in ("context", "input"):
        if not isinstance(loaded.get(key), str):
            raise UserError(f"{where} has no text under '{key}'")
    answers, classes = loaded.get("answers"), loaded.get("all_classes") or []
    for key, texts in (("answers", answers), ("all_classes", classes)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where} has no list of texts under '{key}'")
    if not answers:
        raise UserError(f"{where} has no list of texts under 'answers'")
    if not isinstance(loaded.get("length"), int):
        raise UserError(f"{where} has no whole number under 'length'")
    return LongBenchRow(loaded["context"], loaded["input"], tuple(answers), loaded["length"], tuple(classes))
