"""Beginning, end and needles of each prompt: what a reader needs of it once the run is over.

A run writes ``<out>/prompts/<model>/<task>/<length>.jsonl``, one line for each example by its hash; the methods of a
base read the same examples and share the file. Prompts are made of fetched data: these files are not for publishing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import msgspec

from longctx_bench.files import write_text
from longctx_bench.records import Example

_EDGE = 700
"""Characters of a prompt's beginning and end that are kept."""
_BEFORE, _AFTER = 80, 20
"""Characters around a reference that show what it was hidden in."""
_NEEDLES = 8


@dataclass(frozen=True)
class Excerpt:
    """What is kept of one example's prompt."""

    hash: str
    """Of the example (:attr:`longctx_bench.records.Example.hash`)."""
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


def read_excerpts(path: Path) -> dict[str, Excerpt]:
    """Return a file's excerpts by hash; none when there is no such file.

    A damaged line counts as missing, as no number depends on it: the next run of such an example writes it again.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    found = (_parsed(line) for line in lines)
    return {kept.hash: kept for kept in found if kept is not None}


def add_excerpts(path: Path, examples: Iterable[Example]) -> None:
    """Add the examples that a file lacks, all at once: a kill leaves the file as it was.

    Raises:
        UserError: the file cannot be written.
    """
    kept = read_excerpts(path)
    before = len(kept)
    for example in examples:
        if example.hash not in kept:
            found = excerpt(example)
            kept[found.hash] = found
    if len(kept) > before:
        write_text(path, "".join(json.dumps(asdict(one)) + "\n" for one in kept.values()))


def _hidden(prompt: str, references: Iterable[str]) -> Iterator[str]:
    """Yield what stands around references that the part left out holds, if only some characters of them."""
    last = len(prompt) - _EDGE
    for reference in filter(None, references) if last > _EDGE else ():
        overlap = len(reference) - 1
        for match in re.compile(re.escape(reference)).finditer(prompt, max(0, _EDGE - overlap), last + overlap):
            yield " ".join(prompt[max(0, match.start() - _BEFORE) : match.end() + _AFTER].split())


def _parsed(line: bytes) -> Excerpt | None:
    try:
        return msgspec.json.decode(line, type=Excerpt)
    except (ValueError, RecursionError):
        return None
