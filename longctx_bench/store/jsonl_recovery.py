"""Lines of a cell's files that are to be gone on with: which of them are sound, and where the others go."""

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
    """What a run needs of a line of ``records.jsonl``."""

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


Kind = type[RecordLine] | type[TimingLine]


def sound(line: dict[str, Any], kind: Kind) -> str | None:
    """Return what keeps an object from being a line of its file; None where nothing does."""
    try:
        msgspec.convert(line, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def put_aside(path: Path, kind: Kind, note: Callable[[str], None]) -> Mapping[str, str]:
    """Move the lines of a cell's file that cannot be gone on with into another file, ``records.damaged.jsonl``.

    Those are lines that are not of their kind, and lines of one example that contradict each other: none of them is
    believed. A line that is there again, the same to the byte, is dropped. Timings of one example may differ: it may
    have taken two runs.

    Args:
        path: of the file; it need not exist.
        kind: what its lines are.
        note: takes a line for each line that is put aside.

    Returns:
        The example's hash by its id, of the lines that stay, in the order of ids; empty for timings.

    Raises:
        UserError: the file cannot be read or written.
    """
    hashes = HashesById()
    refused: dict[int, str] = {}
    repeated: set[str] = set()
    for number, line in _numbered(path):
        loaded = parse_line(line)
        problem = loaded if isinstance(loaded, str) else sound(loaded, kind)
        if isinstance(loaded, str) or problem is not None:
            refused[number] = loaded if isinstance(loaded, str) else f"is damaged ({problem})"
        elif kind is TimingLine:
            continue
        elif loaded["id"] in hashes:
            repeated.add(loaded["id"])
        else:
            hashes[loaded["id"]] = loaded["hash"]
    # Read a second time: what every line says would take as much memory as the file.
    doubled, contradicting = _compared(path, repeated, refused.keys()) if repeated else (set(), {})
    for number, name in contradicting.items():
        refused[number] = f"contradicts another one of example {name!a:.40}"
        hashes.pop(name, None)
    if refused or doubled:
        _move(path, refused, doubled)
    for number, reason in sorted(refused.items()):
        runs = "; its example runs again" if kind is RecordLine else ""
        note(f"{path}: line {number} {reason}; kept in {_aside(path).name}{runs}")
    for number in sorted(doubled):
        note(f"{path}: line {number} was there twice; one is kept")
    return hashes


def _compared(path: Path, names: Set[str], refused: Set[int]) -> tuple[set[int], dict[int, str]]:
    """Return the lines that say again what the first of their example says, and those of examples that contradict."""
    contents: dict[str, tuple[int, bytes]] = {}
    doubled: set[int] = set()
    contradicting: dict[int, str] = {}
    for number, line in _numbered(path):
        loaded = None if number in refused else parse_line(line)
        if not isinstance(loaded, dict) or loaded["id"] not in names:
            continue
        digest = hashlib.sha256(line).digest()
        first, content = contents.setdefault(loaded["id"], (number, digest))
        if first != number and content == digest:
            doubled.add(number)
        elif first != number:
            contradicting[number] = contradicting[first] = loaded["id"]
    return doubled, contradicting


def _aside(path: Path) -> Path:
    return path.with_suffix(f".damaged{path.suffix}")


def _move(path: Path, refused: dict[int, str], doubled: set[int]) -> None:
    # First to where they go: whatever ends this in the middle, no line is lost.
    append(_aside(path), b"".join(line for number, line in _numbered(path) if number in refused))
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.writelines(line for number, line in _numbered(path) if number not in refused and number not in doubled)


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
