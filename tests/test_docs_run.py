"""Every block of commands, Python and YAML in the documentation is run, or says why not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.document_blocks import ROOT, Block, blocks

pytestmark = pytest.mark.slow

DOCUMENTS = (
    "README.md",
    *(
        f"docs/{path.name}"
        for path in sorted((ROOT / "docs").glob("*.md"))
        if "```" in path.read_text(encoding="utf-8")
    ),
    "tasks/README.md",
    "baselines/README.md",
    "results/published/README.md",
    "results/REPRODUCING.md",
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run_or_says_why_not(document: str) -> None:
    found = blocks(document)
    assert found
    for block in found:
        where = f"{document}: line {block.line}"
        assert block.kind in {"", "bash", "yaml", "python", "csv", "toml", "text"}, where
        if block.run_by is not None:
            assert Path(document).name in (ROOT / block.run_by).read_text(encoding="utf-8"), where
        elif block.why_not is None:
            assert block.kind in {"", "python"} or block.file, f"{where}: names no file that it is written to"
        for words, _ in block.left_out:
            assert words in block.text, f"{where}: no line with '{words}' is left"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_block_that_is_a_file_is_used_by_a_command_behind_it(document: str) -> None:
    found = [block for block in blocks(document) if block.why_not is None and block.run_by is None]
    for place, block in enumerate(found):
        if block.file is not None:
            later = " ".join(line for other in found[place + 1 :] for line in other.text.splitlines())
            parts = {block.file, Path(block.file).name, Path(block.file).parent.name} - {""}
            assert any(part in later for part in parts), f"{document}: line {block.line}: nothing reads {block.file}"


@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_run_in_their_order(document: str, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(document):
        if block.why_not is not None or block.run_by is not None:
            continue
        where = f"{document}: line {block.line}"
        if block.file is not None:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.text, where, "exec"), {"__name__": "__main__"})  # noqa: S102 (ours)
        else:
            for command in block.commands:
                _run(command, block, call)


def _run(command: str, block: Block, call: Any) -> None:
    program, *arguments = shlex.split(command)
    where = f"{block.document}: line {block.line}: {command}"
    if program == "longctx-bench":
        code, _, err = call(*arguments)
        assert code == 0, f"{where}\n{err}"
    else:
        beside = Path(sys.executable).with_name(program)
        _succeeds([str(beside) if beside.exists() else program, *arguments], where)


def _succeeds(command: list[str], where: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, f"{where}\n{done.stderr[-2000:]}"
