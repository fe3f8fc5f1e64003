"""The fenced blocks of a Markdown file, and what the comments right before them say of running them.

- ``<!-- not run: WHY -->``: no part of the block.
- ``<!-- not run, lines with WORDS: WHY -->``: not those lines.
- ``<!-- run by: tests/FILE.py -->``: that test reads the document and runs the block.
- ``<!-- run with: OPTIONS -->``: appended to each ``longctx-bench run``, ``calibrate``, ``check`` and ``examples``, to
  be short.

A YAML, CSV or Python block whose last line before it ends in ```NAME`:`` is written to that file, for the commands
that follow; any other Python block is run. A ``text`` block shows something and is not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_COMMENT = re.compile(r"<!-- (not run|run by|run with)(?:, lines with ([^:]+))?: (.+) -->")
_FILE = re.compile(r"`([\w./-]+\.(?:yaml|py|csv))`:$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    document: str
    line: int
    """Of its fence, from 1."""
    kind: str
    """What stands behind the fence: ``yaml``, ``python``, ``csv``, or nothing for commands."""
    text: str
    file: str | None
    """The file that it is the content of."""
    why_not: str | None
    """Why no part of it is run."""
    left_out: tuple[tuple[str, str], ...]
    """Words of lines that are not run, and why."""
    run_by: str | None
    options: str

    @property
    def commands(self) -> list[str]:
        """The lines to run, continued ones joined, without those that are left out and without comments."""
        lines = [re.sub(r"\s+#\s.*", "", line) for line in self.text.replace("\\\n", "").splitlines()]
        kept = [line for line in lines if line.strip() and not any(words in line for words, _ in self.left_out)]
        short = re.compile(r"longctx-bench (run|calibrate|check|examples) ")
        return [f"{line} {self.options}".strip() if short.match(line) else line for line in kept]


def blocks(document: str) -> list[Block]:
    """Return the blocks of a file, in order; a comment before a fence that says none of the above is an error."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        found.append(_block(document, lines, start, number))
        start = None
    assert start is None, f"{document}: line {start}: the block has no end"
    return found


def _block(document: str, lines: list[str], start: int, end: int) -> Block:
    before = start - 1
    said: list[tuple[str, str, str]] = []
    while before >= 0 and lines[before].startswith("<!--"):
        comment = _COMMENT.fullmatch(lines[before])
        assert comment, f"{document}: line {before + 1}: none of the comments that say how a block is run"
        said.append((comment[1], comment[2] or "", comment[3]))
        before -= 1
    while before >= 0 and not lines[before].strip():
        before -= 1
    named = _FILE.search(lines[before]) if before >= 0 else None
    whole = {what: value for what, words, value in said if not words}
    return Block(
        document,
        start + 1,
        lines[start].removeprefix("```"),
        "\n".join(lines[start + 1 : end]) + "\n",
        named[1] if named else None,
        whole.get("not run") or ("is a picture" if lines[start] == "```text" else None),
        tuple((words, value) for what, words, value in said if what == "not run" and words),
        whole.get("run by"),
        whole.get("run with", ""),
    )
