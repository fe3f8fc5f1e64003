"""Files that somebody else may have written: read up to a size, without waiting for them, and not too deep.

Result folders are passed on. What lies in one may be a pipe that nobody writes to, a device without an end, one line
of gigabytes or JSON that is nested until a reader runs out of stack.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import msgspec

from longctx_bench.core.errors import UserError

MAX_JSON_BYTES = 16 << 20
"""Bytes of a file that holds one JSON object: a thousand times the usual."""
MAX_LINE_BYTES = 16 << 20
"""Bytes of one line of a JSON-lines file."""
MAX_DEPTH = 32
"""Levels of lists and objects in each other: five times what a ``cell.json`` has."""
_BLOCK = 1 << 20


class UnreadableFile(Exception):
    """A file that cannot be read, or not as what it should be; the message says why, without its name."""


@contextmanager
def open_regular_file(path: Path | str) -> Iterator[FileIO]:
    """Open a regular file for reading; of anything else nothing is read.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: it is something else than a file, or cannot be read.
    """
    try:
        # A pipe is opened without waiting for somebody who writes to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except OSError as error:
        raise UnreadableFile(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UnreadableFile("cannot be read (its name holds a NUL)") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnreadableFile("cannot be read (it is no regular file)")
    with FileIO(handle) as file:
        yield file


def read_content(path: Path | str, largest: int = MAX_JSON_BYTES) -> bytes:
    """Return a file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: it is larger than ``largest``, or as :func:`open_regular_file`.
    """
    with open_regular_file(path) as file:
        parts, size = list[bytes](), 0
        for block in _blocks(file):
            parts.append(block)
            size += len(block)
            if size > largest:
                raise UnreadableFile(f"is larger than {largest >> 20} MiB")
    return b"".join(parts)


def read_line_blocks(path: Path | str, longest: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield a file in pieces of about a MiB that end where a line ends; the last as the file ends.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: a line is longer than ``longest`` bytes, or as :func:`open_regular_file`.
    """
    number = 0
    with open_regular_file(path) as file:
        left = list[bytes]()
        size = 0
        for block in _blocks(file):
            end = block.rfind(b"\n") + 1
            if end:
                piece = b"".join((*left, block[:end]))
                yield piece
                number += piece.count(b"\n")
                left, size = [], 0
            left.append(block[end:])
            size += len(block) - end
            if size > longest:
                raise UnreadableFile(f"line {number + 1} is longer than {longest >> 20} MiB")
        if size:
            yield b"".join(left)


def read_lines(path: Path | str, longest: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield a file's lines without their ends; raises as :func:`read_line_blocks`."""
    for block in read_line_blocks(path, longest):
        # Not splitlines: other signs than the newline are part of a line.
        yield from block.removesuffix(b"\n").split(b"\n")


def parse_json(content: bytes) -> Any:
    """Return the value of JSON, in which Python's NaN and Infinity count as numbers.

    Raises:
        UnreadableFile: it is not JSON, or nested deeper than :data:`MAX_DEPTH` levels.
    """
    try:
        try:
            value = msgspec.json.decode(content)
        except ValueError:
            value = json.loads(content)
            # Halves of characters, which no file and no terminal takes.
            json.dumps(value, ensure_ascii=False).encode()
        _require_shallow(value, MAX_DEPTH)
    except RecursionError as error:
        raise UnreadableFile(f"is not valid JSON (nested deeper than {MAX_DEPTH} levels)") from error
    except ValueError as error:
        raise UnreadableFile(f"is not valid JSON ({error})") from error
    return value


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the object of JSON; raises as :func:`parse_json`, also where it is another value."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise UnreadableFile("is not a JSON object")
    return value


def parse_line(line: bytes) -> dict[str, Any] | str:
    """Return a line's object, or what is wrong with the line."""
    try:
        return parse_object(line)
    except UnreadableFile as error:
        return str(error)


def read_object(path: Path, advice: str = "delete its folder and run again") -> dict[str, Any] | None:
    """Return the JSON object that a file holds, or None when there is no such file.

    Args:
        path: of the file.
        advice: what to do if it cannot be read.

    Raises:
        UserError: it is no regular file, larger than :data:`MAX_JSON_BYTES`, no JSON object, or nested too deeply.
    """
    try:
        return parse_object(read_content(path))
    except FileNotFoundError:
        return None
    except UnreadableFile as error:
        raise UserError(f"{path}: {error}; {advice}") from error


def require_object(path: Path, advice: str) -> dict[str, Any]:
    """Return the JSON object that a file holds; raises as :func:`read_object`, also where there is no such file."""
    loaded = read_object(path, advice)
    if loaded is None:
        raise UserError(f"{path}: is not there; {advice}")
    return loaded


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; nothing when there is no such file.

    Raises:
        UserError: a line is longer than :data:`MAX_LINE_BYTES` or not a JSON object (with its number), or the
            file cannot be read.
    """
    for _, loaded in read_objects_with_offsets(path):
        yield loaded


def read_objects_with_offsets(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file, each behind the byte that its line begins at; else as `read_objects`."""
    place = 0
    try:
        for number, line in enumerate(read_lines(path), 1):
            loaded = parse_line(line)
            if isinstance(loaded, str):
                raise UserError(f"{path}: line {number} {loaded}")
            yield place, loaded
            place += len(line) + 1
    except FileNotFoundError:
        return
    except UnreadableFile as error:
        raise UserError(f"{path}: {error}") from error


def read_objects_at(path: Path, places: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the objects whose lines begin at some bytes, in that order, out of a file that was read a moment ago.

    Raises:
        UserError: the file cannot be read, or is no longer what it was.
    """
    try:
        with open_regular_file(path) as raw, BufferedReader(raw) as file:
            for place in places:
                file.seek(place)
                yield parse_object(file.readline(MAX_LINE_BYTES + 1))
    except (FileNotFoundError, UnreadableFile) as error:
        raise UserError(f"{path}: was changed while it was read") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _blocks(file: FileIO) -> Iterator[bytes]:
    try:
        while block := file.read(_BLOCK):
            yield block
    except OSError as error:
        raise UnreadableFile(f"cannot be read ({error.strerror})") from error


def _require_shallow(value: Any, levels: int) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise RecursionError
        for inner in value.values() if isinstance(value, dict) else value:
            _require_shallow(inner, levels - 1)
