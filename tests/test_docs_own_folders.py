"""The blocks of docs/methods.md and docs/tasks.md that name a FOLDER of the reader's, run on a small model and rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.document_blocks import Block, blocks
from helpers.longbench_rows import row

pytestmark = pytest.mark.slow

SWEEP, SEARCH, LONGBENCH = (
    block
    for document in ("docs/methods.md", "docs/tasks.md")
    for block in blocks(document)
    if block.run_by == "tests/test_docs_own_folders.py"
)


def run(block: Block, call: Any, options: dict[str, str]) -> list[str]:
    """Run a block's commands with more options, by command; return what each printed."""
    printed = []
    for command in block.commands:
        program, name, *arguments = command.split()
        assert program == "longctx-bench"
        code, out, error = call(name, *arguments, *options.get(name, "").split())
        assert code == 0, f"{block.document}: line {block.line}: {command}\n{error}"
        printed.append(out)
    return printed


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a model in ``FOLDER``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "FOLDER")
    return tmp_path


def test_a_sweep_and_the_run_that_uses_it(
    folder: Path, call: Any, essays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights find nothing, of which no sweep could choose.
    monkeypatch.setattr(
        "longctx_bench.analysis.calibration.objectives.Retrieval.score",
        lambda self, model, n: 0.6 if model.method.group == 4 else 0.5,
    )
    data = f"--device cpu --data ruler-essays={essays}"
    _, table = run(SWEEP, call, {"calibrate": data, "run": f"--limit 1 {data}"})
    assert "parameters swept by retrieval: group 4" in table


def test_a_search_and_the_run_that_uses_it(folder: Path, call: Any, essays: Path) -> None:
    data = f"--device cpu --limit 1 --data ruler-essays={essays}"
    _, table = run(SEARCH, call, {"calibrate": f"{data} --population 4 --generations 1", "run": data})
    assert "factors searched by the loss of needles' answers" in table


def test_longbench_and_predictions_of_other_harnesses(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, line: dict[str, Any]) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    write("FOLDER/multi_news.jsonl", row("prose", 400, 1))
    write("pred/my-model/hotpotqa.jsonl", {"pred": "red", "answers": ["red"], "all_classes": None, "length": 3000})
    write("preds/qa_1.jsonl", {"index": 0, "pred": "In Oslo", "outputs": ["Oslo"], "input": "", "others": {"id": 0}})
    table, longbench, ruler = run(LONGBENCH, call, {"run": "--limit 1 --device cpu"})
    assert "multi_news" in table
    assert json.loads(longbench) == {"hotpotqa": 100.0}
    assert ruler.startswith("qa_1: 100.00 %")
