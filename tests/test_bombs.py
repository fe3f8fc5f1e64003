"""Data files that mean harm: what unpacks without end, lines as long as the memory, JSON without a floor."""

from __future__ import annotations

import gzip
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longctx_bench import documents, unpacking
from longctx_bench.benchmarks.longbench_rows import read_rows
from longctx_bench.documents import documents_of_file
from longctx_bench.errors import UserError
from longctx_bench.registry import ALL

ROW = json.dumps({"context": "Some words. " * 90, "input": "?", "answers": ["a"], "length": 9, "all_classes": None})
MB = 1 << 20


def spaces(megabytes: int) -> Iterator[bytes]:
    return (b" " * MB for _ in range(megabytes))


def by_gzip(path: Path, parts: Iterator[bytes]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.writelines(parts)


def by_xz(path: Path, parts: Iterator[bytes]) -> None:
    with lzma.open(path, "wb", preset=0) as file:
        file.writelines(parts)


def by_zstd(path: Path, parts: Iterator[bytes]) -> None:
    zstandard = pytest.importorskip("zstandard")
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for part in parts:
            file.write(part)


def by_zip(path: Path, parts: Iterator[bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("lcc.jsonl", "w") as file:
        file.writelines(parts)


def plainly(path: Path, parts: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(parts)


def rows(path: Path) -> list[Any]:
    return read_rows(path, "lcc", ALL)


def texts(path: Path) -> list[str]:
    return list(documents_of_file(path))


def one_line(read: Callable[[Path], list[Any]], path: Path, said: str) -> int:
    """Read a file that is refused, and return the bytes that this took at most."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=said) as found:
            read(path)
        assert path.name in str(found.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "pack", "read"),
    [
        ("lcc.jsonl.gz", by_gzip, rows),
        ("lcc.zip", by_zip, rows),
        ("a.jsonl.xz", by_xz, texts),
        ("a.txt.xz", by_xz, texts),
        ("a.txt.zst", by_zstd, texts),
        ("a.jsonl.zst", by_zstd, texts),
    ],
)
def test_what_unpacks_to_far_more_than_text_does_is_refused(
    tmp_path: Path, name: str, pack: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_UNSUSPICIOUS", 2 * MB)
    pack(tmp_path / name, spaces(200))
    assert (tmp_path / name).stat().st_size < MB
    assert one_line(read, tmp_path / name, "unpacks to more than|longer than") < 400 * MB


@pytest.mark.parametrize(("name", "pack"), [("lcc.jsonl.gz", by_gzip), ("lcc.zip", by_zip)])
def test_a_bomb_of_blank_lines_is_refused(
    tmp_path: Path, name: str, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_UNSUSPICIOUS", 2 * MB)
    monkeypatch.setattr(unpacking, "_RATIO", 20)
    pack(tmp_path / name, (b" " * 999 + b"\n" for _ in range(20_000)))
    assert one_line(rows, tmp_path / name, "unpacks to more than") < 16 * MB


@pytest.mark.parametrize(("name", "read"), [("lcc.jsonl", rows), ("a.jsonl", texts)])
def test_a_line_of_a_hundred_megabytes_is_refused_by_its_number(tmp_path: Path, name: str, read: Any) -> None:
    text = ROW if name.startswith("lcc") else '{"text": "a word"}'
    plainly(tmp_path / name, iter([text.encode(), b"\n", b'{"text": "', *([b"x" * MB] * 100), b'"}\n']))
    one_line(read, tmp_path / name, "line 2: longer than 64 million characters")


def test_a_document_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_LONGEST", 8 * MB)
    plainly(tmp_path / "a.txt", (b"words and " * 100_000 for _ in range(10)))
    one_line(texts, tmp_path / "a.txt", "a document of more than 8 million characters")
    plainly(tmp_path / "b.txt", (b"words and " * 100_000 + b"\0" for _ in range(10)))
    assert len(texts(tmp_path / "b.txt")) == 10, "many that are shorter"


@pytest.mark.parametrize(("name", "read"), [("lcc.jsonl", rows), ("a.jsonl", texts)])
def test_json_without_a_floor_is_refused_by_its_line(tmp_path: Path, name: str, read: Any) -> None:
    (tmp_path / name).write_text("\n" + "[" * 200_000)
    one_line(read, tmp_path / name, "line 2")


@pytest.mark.parametrize("name", ["a.txt.zst", "a.txt.xz"])
def test_a_damaged_packed_file_is_one_line(tmp_path: Path, name: str) -> None:
    pytest.importorskip("zstandard")
    (tmp_path / name).write_bytes(b"no")
    one_line(texts, tmp_path / name, "damaged")


def test_text_that_repeats_itself_is_read(tmp_path: Path) -> None:
    by_gzip(tmp_path / "lcc.jsonl.gz", (f"{ROW}\n".encode() for _ in range(1000)))
    assert len(rows(tmp_path / "lcc.jsonl.gz")) == 1000
    by_xz(tmp_path / "a.jsonl.xz", (b'{"text": "the same"}\n' for _ in range(1000)))
    assert len(texts(tmp_path / "a.jsonl.xz")) == 1000


def test_a_table_of_something_else_is_one_line(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [1, 2, 3]}), tmp_path / "a.parquet")
    one_line(texts, tmp_path / "a.parquet", "row 1: no text under 'text'")
