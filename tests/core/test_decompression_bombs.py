"""Data files that mean harm: what unpacks without end, lines as long as the memory, JSON without a floor."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as hypothesis

from longctx_bench.benchmarks.longbench.reader import read_rows
from longctx_bench.core import decompression, text_files
from longctx_bench.core.errors import UserError
from longctx_bench.core.text_files import read_documents
from longctx_bench.registry import ALL_EXAMPLES

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
    return read_rows(path, "lcc", ALL_EXAMPLES)


def texts(path: Path) -> list[str]:
    return list(read_documents(path))


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


@pytest.mark.slow
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
    monkeypatch.setattr(decompression, "_UNSUSPICIOUS", 2 * MB)
    pack(tmp_path / name, spaces(200))
    assert (tmp_path / name).stat().st_size < MB
    assert one_line(read, tmp_path / name, "unpacks to more than|longer than") < 400 * MB


@pytest.mark.parametrize(("name", "pack"), [("lcc.jsonl.gz", by_gzip), ("lcc.zip", by_zip)])
def test_a_bomb_of_blank_lines_is_refused(
    tmp_path: Path, name: str, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "_UNSUSPICIOUS", 2 * MB)
    monkeypatch.setattr(decompression, "_RATIO", 20)
    pack(tmp_path / name, (b" " * 999 + b"\n" for _ in range(20_000)))
    assert one_line(rows, tmp_path / name, "unpacks to more than") < 16 * MB


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("lcc.jsonl", rows), ("a.jsonl", texts)])
def test_a_line_of_a_hundred_megabytes_is_refused_by_its_number(tmp_path: Path, name: str, read: Any) -> None:
    text = ROW if name.startswith("lcc") else '{"text": "a word"}'
    plainly(tmp_path / name, iter([text.encode(), b"\n", b'{"text": "', *([b"x" * MB] * 100), b'"}\n']))
    one_line(read, tmp_path / name, "line 2: longer than 64 million characters")


def test_a_document_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_LONGEST", 8 * MB)
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


# -- parquet ----------------------------------------------------------------------------------------------------------


def table(path: Path, text: Any, **options: Any) -> Path:
    """Write a parquet file of one column."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": text}), path, **options)
    return path


def shared(text: str, count: int) -> Any:
    """Return a column in which one text stands many times and is stored once."""
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))


WHOLE_DICTIONARY = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30}
PREFIXES = {"compression": "zstd", "use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}


@pytest.mark.slow
def test_a_text_that_a_table_stores_once_and_repeats_without_end_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", shared("y" * 30 * MB, 10_000), **WHOLE_DICTIONARY)
    assert path.stat().st_size < 10_000
    assert one_line(texts, path, "unpacks to more than 64 MiB") < 400 * MB


@pytest.mark.slow
@pytest.mark.parametrize("options", [WHOLE_DICTIONARY, PREFIXES])
def test_a_row_of_more_than_any_document_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = table(tmp_path / "a.parquet", ["y" * 100 * MB], **options)
    assert one_line(texts, path, "longer than|a row of more than") < 400 * MB


@pytest.mark.slow
def test_texts_that_continue_the_one_before_are_read_and_their_bombs_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", [f"the same {number}" for number in range(5000)], **PREFIXES)
    assert texts(path)[4999] == "the same 4999"
    path = table(tmp_path / "b.parquet", ["y" * MB + str(number) for number in range(1000)], **PREFIXES)
    assert path.stat().st_size < 10_000
    assert one_line(texts, path, "unpacks to more than 64 MiB") < 400 * MB


@pytest.mark.slow
def test_pages_that_unpack_to_far_more_than_text_does_are_refused(tmp_path: Path) -> None:
    letters = [chr(97 + number % 26) * 4 * MB + str(number) for number in range(60)]
    path = table(tmp_path / "a.parquet", letters, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < MB
    assert one_line(texts, path, "unpacks to more than 64 MiB") < 400 * MB


@pytest.mark.slow
def test_rows_without_text_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr(decompression, "_UNSUSPICIOUS", 2 * MB)
    path = table(tmp_path / "a.parquet", pyarrow.nulls(10_000_000, pyarrow.string()))
    one_line(texts, path, "unpacks to more than")


@pytest.mark.slow
def test_a_list_of_more_texts_than_any_row_has_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"context": "c", "input": "?", "answers": ["a" * 1000] * 100_000, "length": 1, "all_classes": None}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "lcc.parquet")
    assert (tmp_path / "lcc.parquet").stat().st_size < 10_000
    one_line(rows, tmp_path / "lcc.parquet", "a row of more than 64 MiB")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1, 2, 3], "row 1: no text under 'text'"),
        ([["a"]], "row 1: no text under 'text'"),
        ([{"a": "x"}], "column 'text' holds no text but struct"),
        ([[["a"]]], "column 'text' holds no text but list"),
        ([[{"a": "x"}]], "column 'text' holds no text but list"),
        ([b"a"], "column 'text' holds no text but binary"),
    ],
)
def test_a_table_of_something_else_is_one_line(tmp_path: Path, column: Any, said: str) -> None:
    one_line(texts, table(tmp_path / "a.parquet", column), said)


@pytest.mark.slow
def test_a_table_without_the_column_or_with_two_is_one_line(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    one_line(texts, path, r"no column 'text' among \['body'\]")
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"]), path)
    one_line(texts, path, "two columns are called 'text'")


@pytest.mark.slow
@given(data=hypothesis.data())
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_table_is_read_or_one_line(tmp_path: Path, data: hypothesis.DataObject) -> None:
    path = tmp_path / "a.parquet"
    content = bytearray(table(path, ["some words " * n for n in range(1, 9)]).read_bytes())
    # Behind a footer is its length, which decides whether anything else of it is looked at.
    places = hypothesis.integers(4, len(content) - 9)
    for place in data.draw(hypothesis.lists(places, max_size=6)):
        content[place] = data.draw(hypothesis.integers(0, 255))
    path.write_bytes(content[: data.draw(hypothesis.sampled_from([len(content)] * 3 + [len(content) // 2, 9, 0]))])
    try:
        found = texts(path)
    except UserError as error:
        found = [str(error)]
    assert all("\n" not in text for text in found), "a damaged text is one of the right words, or none"


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def footer(path: Path, schema: list[bytes], row_groups: bytes, said: int | None = None) -> Path:
    """Write a parquet file that is a footer and nothing else, in Thrift's compact protocol."""
    content = b"\x15\x02\x19\xfc" + varint(len(schema)) + b"".join(schema)
    content += b"\x16" + varint(2 << 60) + b"\x19" + row_groups + b"\0"
    length = len(content) if said is None else said
    path.write_bytes(b"PAR1" + content + length.to_bytes(4, "little") + b"PAR1")
    return path


GROUP, COLUMN = b"\x35\x02\x18\x01a\x15\x02\0", b"\x15\x0c\x25\x02\x18\x04text\x25\x00\0"
"""A group of one column, and a column of texts."""


@pytest.mark.slow
def test_footers_that_promise_anything_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    empty_group = b"\x19\x0c\x16\0\x16\0\0"
    for schema, groups, said in [
        ([GROUP, COLUMN], b"\x0c", None),
        ([GROUP, COLUMN], b"\x0c", 0xFFFFFFF0),
        ([GROUP, COLUMN], b"\x0c", 3),
        ([GROUP] * 100_000 + [COLUMN], b"\x0c", None),
        ([GROUP, COLUMN], b"\xfc" + varint(1 << 60), None),
        ([GROUP, COLUMN], b"\xfc" + varint(500_000) + empty_group * 500_000, None),
        ([GROUP, COLUMN], b"\xfc" + varint(2_000_000) + empty_group * 2_000_000, None),
    ]:
        one_line(texts, footer(path, schema, groups, said), "parquet file|holds no text")


def test_a_file_that_ends_the_process_that_reads_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.parquet", ["some words"])
    (tmp_path / "crash.py").write_text('import os\nprint(\'{"text": "a"}\', flush=True)\nos.abort()\n')
    monkeypatch.setattr("longctx_bench.core.parquet_reader._PROGRAM", tmp_path / "crash.py")
    one_line(texts, path, "not a readable parquet file")


@pytest.mark.slow
def test_the_process_that_reads_a_table_ends_with_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Process(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    path = table(tmp_path / "a.parquet", ["some words " * 100] * 100_000)
    monkeypatch.setattr("longctx_bench.core.parquet_reader.subprocess.Popen", Process)
    text_files = read_documents(path)
    assert next(text_files).startswith("some words")
    [process] = started
    assert process.poll() is None
    text_files.close()  # type: ignore[attr-defined]
    assert process.poll() is not None
