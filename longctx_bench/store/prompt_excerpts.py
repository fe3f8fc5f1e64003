"""Prompt excerpts: start, end and needle context of each prompt, for reading results later.

A run writes ``<out>/prompts/<model>/<task>/<length>.jsonl``, one line per example hash. The methods of a base get
the same examples and share the file. Prompts contain downloaded data: do not publish these files.
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
"""Characters kept at the start and the end of a prompt."""
_BEFORE, _AFTER = 80, 20
"""Characters of context kept around a reference."""
_MAX_NEEDLES = 8
_MAX_REWRITE_BYTES = 8 << 20
"""Files up to this size are rewritten atomically; larger ones are appended to."""


@dataclass(frozen=True)
class PromptExcerpt:
    """Start, end and needle context of one example's prompt."""

    hash: str
    """Example hash (:attr:`longctx_bench.core.types.Example.hash`)."""
    begin: str
    end: str
    """``begin + end`` is the whole prompt where ``hidden`` is 0."""
    hidden: int
    """Characters left out between ``begin`` and ``end``."""
    needles: tuple[str, ...]
    """Context of the first few references in the part left out, with whitespace collapsed."""
    answer_prefix: str
    n_tokens: int
    """Tokens of the whole prompt and the answer prefix."""


def make_excerpt(example: Example) -> PromptExcerpt:
    """Return the excerpt of an example's prompt."""
    prompt, edge = example.prompt, _EDGE
    hidden = max(0, len(prompt) - 2 * edge)
    return PromptExcerpt(
        hash=example.hash,
        begin=prompt[:edge],
        end=prompt[edge + hidden :],
        hidden=hidden,
        needles=tuple(islice(_needle_contexts(prompt, example.references), _MAX_NEEDLES)),
        answer_prefix=example.answer_prefix,
        n_tokens=example.n_tokens,
    )


def read_excerpts(path: Path, hashes: Collection[str] | None = None) -> dict[str, PromptExcerpt]:
    """Return a file's excerpts by example hash; empty when there is no such file.

    Damaged lines are skipped, since no number depends on them: the next run of the example writes the excerpt again.

    Args:
        path: the excerpt file.
        hashes: hashes of the examples to return; all when None.
    """
    return {excerpt.hash: excerpt for _, excerpt in _valid_lines(path) if hashes is None or excerpt.hash in hashes}


def add_excerpts(path: Path, examples: Iterable[Example]) -> None:
    """Add the examples that a file lacks. A kill leaves at worst a truncated line, which the next call removes.

    Raises:
        UserError: the file cannot be written.
    """
    missing = {example.hash: example for example in examples}
    all_valid = True
    for _, excerpt in _lines(path):
        all_valid = all_valid and excerpt is not None
        if excerpt is not None:
            missing.pop(excerpt.hash, None)
    if not missing:
        return
    added = (json.dumps(asdict(make_excerpt(example))).encode() + b"\n" for example in missing.values())
    if all_valid and path.exists() and not path.is_symlink() and path.stat().st_size > _MAX_REWRITE_BYTES:
        append(path, b"".join(added))
        return
    written = set[str]()
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for line, excerpt in _valid_lines(path):
            if excerpt.hash not in written:
                written.add(excerpt.hash)
                file.write(line + b"\n")
        file.writelines(added)


def _needle_contexts(prompt: str, references: Iterable[str]) -> Iterator[str]:
    """Yield the context of each reference that lies, at least in part, in the part left out."""
    last = len(prompt) - _EDGE
    for reference in filter(None, references) if last > _EDGE else ():
        overlap = len(reference) - 1
        for match in re.compile(re.escape(reference)).finditer(prompt, max(0, _EDGE - overlap), last + overlap):
            yield " ".join(prompt[max(0, match.start() - _BEFORE) : match.end() + _AFTER].split())


def _valid_lines(path: Path) -> Iterator[tuple[bytes, PromptExcerpt]]:
    """Yield the valid lines of a file lazily: a cell's excerpts may not fit in memory."""
    return ((line, excerpt) for line, excerpt in _lines(path) if excerpt is not None)


def _lines(path: Path) -> Iterator[tuple[bytes, PromptExcerpt | None]]:
    """Yield each line of a file with its excerpt, None for invalid lines and where the rest cannot be read."""
    try:
        for block in read_line_blocks(path):
            for line in block.removesuffix(b"\n").split(b"\n"):
                try:
                    yield line, msgspec.json.decode(line, type=PromptExcerpt)
                except (ValueError, RecursionError):
                    yield line, None
            if not block.endswith(b"\n"):
                # A truncated line, even if only its line break is missing.
                yield b"", None
    except FileNotFoundError:
        return
    except UnreadableFile:
        # A line is too long: what comes before it has been read.
        yield b"", None
