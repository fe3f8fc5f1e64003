"""Text of any size out of files, packed or not, without believing that it is text of a sensible size.

A packed file of a megabyte may unpack to terabytes, and one line may be as long as the memory. What reads here takes
one line at a time and refuses what no text does.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Protocol

from longctx_bench.core.errors import UserError

MAX_LINE_CHARS = 1 << 26
"""Characters of a line: a hundred times the longest document of any benchmark here."""
_UNSUSPICIOUS = 1 << 26
"""Bytes up to which a file may have been packed as well as one likes."""
_RATIO = 200
"""How many times smaller than itself text can be packed: prose 3 to 5, rows that repeat each other 50."""


def max_decompressed_size(packed: int) -> int:
    """Return how many bytes text may have that was packed into so many."""
    return max(_UNSUSPICIOUS, _RATIO * packed)


class _Bytes(Protocol):
    """What can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes."""


class _Text(Protocol):
    """What has lines."""

    def readline(self, size: int, /) -> str:
        """Return a line, or as much of it as that many characters."""


class BoundedDecompressor(io.RawIOBase):
    """What a packed file holds, read no further than text goes.

    Raises:
        UserError: while reading, where it unpacks to far more than packed text does.
    """

    def __init__(self, content: _Bytes, packed: int, where: str) -> None:
        self._content = content
        self._most = max_decompressed_size(packed)
        self._where = where
        self._size = 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes."""
        part = self._content.read(len(buffer))
        self._size += len(part)
        if self._size > self._most:
            raise UserError(f"{self._where}: unpacks to more than {self._most >> 20} MiB, which is no text; remove it")
        buffer[: len(part)] = part
        return len(part)


def open_decompressed_text(content: _Bytes, packed: int, where: str, newline: str | None = "") -> io.TextIOWrapper:
    """Return the text of a packed file as a stream; see :class:`BoundedDecompressor`.

    Args:
        content: the unpacked bytes.
        packed: the size of the file in bytes.
        where: it is, for messages.
        newline: as :func:`open` has it.
    """
    return io.TextIOWrapper(
        io.BufferedReader(BoundedDecompressor(content, packed, where)), encoding="utf-8", newline=newline
    )


def read_bounded_lines(stream: _Text, where: str) -> Iterator[str]:
    """Yield the lines of a text stream.

    Raises:
        UserError: one is longer than :data:`MAX_LINE_CHARS` characters, with its number.
    """
    number = 0
    while line := stream.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise UserError(f"{where} line {number}: longer than {MAX_LINE_CHARS >> 20} million characters; remove it")
        yield line
