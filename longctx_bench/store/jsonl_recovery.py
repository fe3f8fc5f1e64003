"""Recovery of damaged JSONL files before a run resumes: invalid lines move to ``*.damaged.jsonl``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Annotated, Any

import msgspec

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import append, atomic_write
from longctx_bench.core.untrusted_files import parse_line
from longctx_bench.store.example_index import HashesById


class RecordLine(msgspec.Struct):
    """The fields of a line of ``records.jsonl`` that a resumed run needs."""

    id: str
    hash: str
    score: float
    prompt_tokens: int
    new_tokens: int
    scored: Annotated[int, msgspec.Meta(ge=1)] = 1


class TimingLine(msgspec.Struct):
    """A line of ``timings.jsonl``."""

    id: str
    seconds: Annotated[float, msgspec.Meta(ge=0)]


LineType = type[RecordLine] | type[TimingLine]


def line_error(line: dict[str, Any], line_type: LineType) -> str | None:
    """Return why an object is not a valid line of its file; None where it is."""
    try:
        msgspec.convert(line, line_type)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def quarantine_damaged_lines(path: Path, line_type: LineType, note: Callable[[str], None]) -> Mapping[str, str]:
    """Move invalid lines of a cell's file to ``records.damaged.jsonl`` (``timings.damaged.jsonl``).

    Lines that do not parse as ``line_type`` move, and so do all lines of an example that contradict each other. A
    byte-identical duplicate is dropped. Timings of one example may differ, since it may have taken two runs.

    Args:
        path: the file; need not exist.
        line_type: what its lines hold.
        note: called with one message for each line moved or dropped.

    Returns:
        Hash by example id of the lines that stay, in id order; empty for timings.

    Raises:
        UserError: the file cannot be read or written.
    """
    hashes = HashesById()
    invalid: dict[int, str] = {}
    repeated: set[str] = set()
    for number, line in _numbered_lines(path):
        loaded = parse_line(line)
        problem = loaded if isinstance(loaded, str) else line_error(loaded, line_type)
        if isinstance(loaded, str) or problem is not None:
            invalid[number] = loaded if isinstance(loaded, str) else f"is damaged ({problem})"
        elif line_type is TimingLine:
            continue
        elif loaded["id"] in hashes:
            repeated.add(loaded["id"])
        else:
            hashes[loaded["id"]] = loaded["hash"]
    # A second pass, as keeping every line would take as much memory as the file.
    duplicates, contradicting = _compare_repeated(path, repeated, invalid.keys()) if repeated else (set(), {})
    for number, name in contradicting.items():
        invalid[number] = f"contradicts another line of example {name!a:.40}"
        hashes.pop(name, None)
    if invalid or duplicates:
        _move_lines(path, invalid, duplicates)
    for number, reason in sorted(invalid.items()):
        rerun = "; its example runs again" if line_type is RecordLine else ""
        note(f"{path}: line {number} {reason}; moved to {_damaged_path(path).name}{rerun}")
    for number in sorted(duplicates):
        note(f"{path}: line {number} is a duplicate and was dropped")
    return hashes


def _compare_repeated(path: Path, names: Set[str], invalid: Set[int]) -> tuple[set[int], dict[int, str]]:
    """Return the lines that equal the first of their example, and the example id of each line that contradicts one."""
    first_lines: dict[str, tuple[int, bytes]] = {}
    duplicates: set[int] = set()
    contradicting: dict[int, str] = {}
    for number, line in _numbered_lines(path):
        loaded = None if number in invalid else parse_line(line)
        if not isinstance(loaded, dict) or loaded["id"] not in names:
            continue
        digest = hashlib.sha256(line).digest()
        first, first_digest = first_lines.setdefault(loaded["id"], (number, digest))
        if first != number and first_digest == digest:
            duplicates.add(number)
        elif first != number:
            contradicting[number] = contradicting[first] = loaded["id"]
    return duplicates, contradicting


def _damaged_path(path: Path) -> Path:
    return path.with_suffix(f".damaged{path.suffix}")


def _move_lines(path: Path, invalid: dict[int, str], duplicates: set[int]) -> None:
    # Append first: if this is interrupted, no line is lost.
    append(_damaged_path(path), b"".join(line for number, line in _numbered_lines(path) if number in invalid))
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.writelines(
            line for number, line in _numbered_lines(path) if number not in invalid and number not in duplicates
        )


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
