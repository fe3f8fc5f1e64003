"""README's plug-in example is run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from longctx_bench.cli import main

README = Path(__file__).parent.parent / "README.md"


BLOCK = re.compile(r"`(mine/[a-z_-]+\.(?:yaml|py))`:\n\n```\w+\n(.*?)```", re.DOTALL)


def test_readme_plugin_runs(
    tiny_folder: Path,
    tmp_path: Path,
    essays: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = dict(BLOCK.findall(README.read_text(encoding="utf-8")))
    assert set(blocks) == {"mine/half-pi.yaml", "mine/half_pi.py"}
    (tmp_path / "mine").mkdir()
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    command = ["longctx-bench", "run", "--baselines", str(tmp_path / "mine"), "--model", f"half-pi:{tiny_folder}"]
    command += ["--tasks", "niah", "--scale", "2x", "--limit", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--data", f"ruler-essays={essays}"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "half-pi-tiny" in capsys.readouterr().out
    cell = (tmp_path / "out/runs/tiny/half-pi/niah/512/cell.json").read_text()
    assert '"factor": 1.5' in cell
