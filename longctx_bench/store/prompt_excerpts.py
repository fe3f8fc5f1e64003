"""Beginning, end and needles of each prompt: what a reader needs of it once the run is over.

A run writes ``<out>/prompts/<model>/<task>/<length>.jsonl``, one line for each example by its hash; the methods of a
base read the same examples and share the file. Prompts are made of fetched data: these files are not for publishing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import msgspec

from longctx_bench.core.io import append, atomic_write
from longctx_bench.core.types import Example
from longctx_bench.core.untrusted_files import UnreadableFile, read_line_blocks

_EDGE = 700
"""Characters of a prompt's beginning and end that are kept."""
_BEFORE, _AFTER = 80, 20
"""Characters around a reference that show what it was hidden in."""
_NEEDLES = 8
_REWRITTEN = 8 << 20
"""Bytes of a file that is written anew with what is added to it; a larger one is appended to."""


@dataclass(frozen=True)
class Excerpt:
    """What is kept of one example's prompt."""

    hash: str
    """Of the example (:attr:`longctx_bench.core.types.Example.hash`)."""
    begin: str
    end: str
    """With ``begin`` the whole prompt where ``hidden`` is 0."""
    hidden: int
    """Characters left out between them."""
    needles: tuple[str, ...]
    """What stands around the references in the part left out, white space made single; the first few of them."""
    answer_prefix: str
    n_tokens: int
    """Of the whole prompt and the answer prefix."""


def excerpt(example: Example) -> Excerpt:
    """Return what is kept of an example's prompt."""
    prompt, edge = example.prompt, _EDGE
    hidden = max(0, len(prompt) - 2 * edge)
    return Excerpt(
        hash=example.hash,
        begin=prompt[:edge],
        end=prompt[edge + hidden :],
        hidden=hidden,
        needles=tuple(islice(_hidden(prompt, example.references), _NEEDLES)),
        answer_prefix=example.answer_prefix,
        n_tokens=example.n_tokens,
    )


def read_excerpts(path: Path, hashes: Collection[str] | None = None) -> dict[str, Excerpt]:
    """Return a file's excerpts by hash; none when there is no such file.

    A damaged line counts as missing, as no number depends on it: the next run of such an example writes it again.

    Args:
        path: of the file.
        hashes: of the examples; all when None.
    """
    return {found.hash: found for _, found in _kept(path) if hashes is None or found.hash in hashes}


def add_excerpts(path: Path, examples: Iterable[Example]) -> None:
    """Add the examples that a file lacks: a kill leaves it as it was, or with a cut line that the next call removes.

    Raises:
        UserError: the file cannot be written.
    """
    missing = {example.hash: example for example in examples}
    whole = True
    for _, found in _lines(path):
        whole = whole and found is not None
        if found is not None:
            missing.pop(found.hash, None)
    if not missing:
        return
    added = (json.dumps(asdict(excerpt(example))).encode() + b"\n" for example in missing.values())
    if whole and path.exists() and not path.is_symlink() and path.stat().st_size > _REWRITTEN:
        append(path, b"".join(added))
        return
    known = set[str]()
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for line, found in _kept(path):
            if found.hash not in known:
                known.add(found.hash)
                file.write(line + b"\n")
        file.writelines(added)


def _hidden(prompt: str, references: Iterable[str]) -> Iterator[str]:
    """Yield what stands around references that the part left out holds, if only some characters of them."""
    last = len(prompt) - _EDGE
    for reference in filter(None, references) if last > _EDGE else ():
        overlap = len(reference) - 1
        for match in re.compile(re.escape(reference)).finditer(prompt, max(0, _EDGE - overlap), last + overlap):
            yield " ".join(prompt[max(0, match.start() - _BEFORE) : match.end() + _AFTER].split())


def _kept(path: Path) -> Iterator[tuple[bytes, Excerpt]]:
    """Yield the lines of a file that are excerpts, one after the other: all of a cell's may be more than the memory."""
    return ((line, found) for line, found in _lines(path) if found is not None)


def _lines(path: Path) -> Iterator[tuple[bytes, Excerpt | None]]:
    """Yield the lines of a file with what they are; the last is None where what follows cannot be read."""
    try:
        for block in read_line_blocks(path):
            for line in block.removesuffix(b"\n").split(b"\n"):
                try:
                    yield line, msgspec.json.decode(line, type=Excerpt)
                except (ValueError, RecursionError):
                    yield line, None
            if not block.endswith(b"\n"):
                # A line that was cut off, if only its end was.
                yield b"", None
    except FileNotFoundError:
        return
    except UnreadableFile:
        # What can be read of a file with a line that is too long is what stands before that line.
        yield b"", None
