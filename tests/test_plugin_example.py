"""The examples of README, docs/extending.md and tasks/README.md are run as they stand there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.cli import main
from longctx_bench.metrics import get_metric
from longctx_bench.registry import Registry

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


BLOCK = re.compile(r"`(mine/[a-z_-]+\.(?:yaml|py))`:\n\n```\w+\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/extending.md"])
def test_documented_plugin_runs(
    document: str,
    tiny_folder: Path,
    tmp_path: Path,
    essays: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = dict(BLOCK.findall((ROOT / document).read_text(encoding="utf-8")))
    assert set(blocks) >= {"mine/half-pi.yaml", "mine/half_pi.py"}
    (tmp_path / "mine").mkdir()
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    command = ["longctx-bench", "run", "--include-path", str(tmp_path / "mine"), "--model", f"half-pi:{tiny_folder}"]
    command += ["--tasks", "niah", "--scale", "2x", "--limit", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--data", f"ruler-essays={essays}"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "half-pi-tiny" in capsys.readouterr().out
    cell = (tmp_path / "out/runs/tiny/half-pi/niah/512/cell.json").read_text()
    assert '"factor": 1.5' in cell


def test_tasks_readme_examples_are_tasks(tmp_path: Path, essays: Path, tiny_encoder: Any) -> None:
    text = (ROOT / "tasks" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("\n".join(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)))
    rows = tmp_path / "rows"
    rows.mkdir()
    row = {"context": "It rained.", "input": "", "answers": ["Rain."], "length": 2, "all_classes": None}
    (rows / "multi_news.jsonl").write_text(json.dumps(row) + "\n")
    registry = Registry(include_paths=[tmp_path], local_data={"ruler-essays": essays, "longbench": rows})
    spec = registry.tasks["niah_eight_keys"]
    [example] = registry.benchmark(spec).examples(tiny_encoder, 1024, spec.max_new_tokens, 1, 42)
    assert example.prompt.count("One of the special magic numbers") == 8
    google = registry.tasks["multi_news_google"]
    [example] = registry.benchmark(google).examples(tiny_encoder, 1024, google.max_new_tokens, 5, 42)
    assert example.prompt == "News:\nIt rained.\n\nSummary:"
    assert get_metric(google.metric).score("Rain.", example.references) == 1.0


def test_an_installed_package_offers_a_method(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "longctx_third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: longctx-third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[longctx_bench.methods]\nthird = longctx_third_party:Third\n")
    (tmp_path / "longctx_third_party.py").write_text(
        "from longctx_bench.methods.rope_scaling import PI\n\n\nclass Third(PI):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    variant = Registry().variant(f"third:{tiny_folder}")
    assert variant.name == "third-tiny"
    assert type(variant.method).__name__ == "Third"
