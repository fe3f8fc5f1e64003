"""Bounded decompression: read text line by line, protected against decompression bombs.

A compressed megabyte may expand to terabytes, and a single line may fill the memory. These readers take one line at a
time and raise where the size is implausible for text.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Protocol

from longctx_bench.core.errors import UserError

MAX_LINE_CHARS = 1 << 26
"""Maximum characters per line: a hundred times the longest document of any benchmark here."""
_UNSUSPICIOUS = 1 << 26
"""Decompressed bytes below which the compression ratio does not matter."""
_RATIO = 200
"""Maximum compression ratio of text: prose reaches 3 to 5, repetitive rows 50."""


def max_decompressed_size(packed: int) -> int:
    """Return the maximum plausible size in bytes of text compressed to ``packed`` bytes."""
    return max(_UNSUSPICIOUS, _RATIO * packed)


class _Bytes(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes."""


class _Text(Protocol):
    """A text stream."""

    def readline(self, size: int, /) -> str:
        """Return at most ``size`` characters of the next line."""


class BoundedDecompressor(io.RawIOBase):
    """A decompressed stream with a limit on its size.

    Raises:
        UserError: while reading, when the size is implausible for compressed text.
    """

    def __init__(self, content: _Bytes, packed: int, where: str) -> None:
        self._content = content
        self._max_size = max_decompressed_size(packed)
        self._where = where
        self._size = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return the number of bytes."""
        part = self._content.read(len(buffer))
        self._size += len(part)
        if self._size > self._max_size:
            raise UserError(
                f"{self._where}: decompresses to more than {self._max_size >> 20} MiB, which is implausible for "
                f"text; remove it"
            )
        buffer[: len(part)] = part
        return len(part)


def open_decompressed_text(content: _Bytes, packed: int, where: str, newline: str | None = "") -> io.TextIOWrapper:
    """Return the text of a compressed file as a stream; see :class:`BoundedDecompressor`.

    Args:
        content: the decompressed bytes.
        packed: the size of the compressed file in bytes.
        where: names the file in messages.
        newline: as in :func:`open`.
    """
    return io.TextIOWrapper(
        io.BufferedReader(BoundedDecompressor(content, packed, where)), encoding="utf-8", newline=newline
    )


def read_bounded_lines(stream: _Text, where: str) -> Iterator[str]:
    """Yield the lines of a text stream.

    Raises:
        UserError: a line is longer than :data:`MAX_LINE_CHARS` characters (with its number).
    """
    number = 0
    while line := stream.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise UserError(f"{where} line {number}: longer than {MAX_LINE_CHARS >> 20} million characters; remove it")
        yield line
