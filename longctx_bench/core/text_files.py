"""Reading documents from text files: .txt .md .jsonl .parquet, also compressed (.xz, .zst)."""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longctx_bench.core.decompression import open_decompressed_text, read_bounded_lines
from longctx_bench.core.errors import UserError
from longctx_bench.core.parquet_reader import parquet_rows

TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
COMPRESSED_SUFFIXES = (".xz", ".zst")
_CHUNK = 1 << 22
"""Characters read at a time."""
_LONGEST = 1 << 28
"""Maximum characters of a plain-text document; a whole corpus may be one file without separators."""


def read_documents(file: Path, text_field: str = "text") -> Iterator[str]:
    """Yield a file's documents; in plain text they are separated by NUL bytes.

    Raises:
        UserError: the file is binary, has no text, or a row lacks the text column.
    """
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(text_suffix(file))
    count = 0
    try:
        for document in reader(file, text_field) if reader else _plain_documents(file):
            if document.strip():
                count += 1
                yield document
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); remove binary files from the corpus") from error
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{file}: damaged .xz file: {error}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if count == 0:
        raise UserError(f"{file}: holds no text; remove it from the corpus")


def text_suffix(file: Path) -> str:
    """Return the suffix that determines the format, ignoring .xz and .zst."""
    suffixes = file.suffixes
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


@contextmanager
def _opened(file: Path) -> Iterator[io.TextIOBase]:
    if file.suffix == ".xz":
        with lzma.open(file, "rb") as packed:
            yield open_decompressed_text(packed, file.stat().st_size, str(file))
    elif file.suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"{file}: .zst needs the package 'zstandard': pip install zstandard") from error
        try:
            with file.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as binary:
                yield open_decompressed_text(binary, file.stat().st_size, str(file))
        except zstandard.ZstdError as error:
            raise UserError(f"{file}: damaged .zst file: {error}") from error
    else:
        with file.open(encoding="utf-8", newline="") as plain:
            yield plain


def _plain_documents(file: Path) -> Iterator[str]:
    parts, size = list[str](), 0
    with _opened(file) as stream:
        while chunk := stream.read(_CHUNK):
            # Old texts may have a stray control character; binary files that happen to decode have many.
            if sum(chunk.count(chr(code)) for code in range(1, 7)) > len(chunk) // 1000:
                raise UserError(f"{file}: binary file, not text; remove it from the corpus")
            tail, *next_documents = chunk.split("\0")
            parts.append(tail)
            for part in next_documents:
                yield "".join(parts)
                parts, size = [part], 0
            size += len(parts[-1])
            if size > _LONGEST:
                raise UserError(
                    f"{file}: a document of more than {_LONGEST >> 20} million characters; separate documents by NULs"
                )
    yield "".join(parts)


def _jsonl_rows(file: Path, text_field: str) -> Iterator[str]:
    with _opened(file) as stream:
        for number, line in enumerate(read_bounded_lines(stream, str(file)), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file} line {number}: not JSON: {error}") from error
            yield row_text(row, text_field, f"{file} line {number}")


def _parquet_rows(file: Path, text_field: str) -> Iterator[str]:
    for number, row in enumerate(parquet_rows(file, [text_field], needed=[text_field]), start=1):
        if row[text_field]:
            yield row_text(row, text_field, f"{file} row {number}")


def row_text(row: Any, name: str, where: str) -> str:
    """Return the document in a column of a row.

    Raises:
        UserError: the column has no text.
    """
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        raise UserError(f"{where}: no text under '{name}'; set text_field to the column that holds the document")
    return str(row[name])
