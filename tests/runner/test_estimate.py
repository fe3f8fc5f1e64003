"""Times that ``--dry-run`` estimates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.engines.base import MemoryEstimate, Speed
from longctx_bench.engines.echo import EchoEngine


def test_attention_takes_the_time_that_attention_was_measured_at(
    call: Any, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path, essays: Path
) -> None:
    footprint = MemoryEstimate(0, 1, 1, available=1 << 30, flops_per_token=1.0, flops_per_pair=1.0)
    monkeypatch.setattr(EchoEngine, "estimate_memory", lambda self, folder: footprint)
    # Of 1,024 tokens the products take 10 s at the measured rate, of which half is reached, and attention 40 s.
    speed = Speed(matmul=1024 / 10, attention=1024**2 / 2 / 40, bandwidth=math.inf)
    monkeypatch.setattr(EchoEngine, "measure_speed", lambda self: speed)
    code, shown, error = call(
        "run", "--model", tiny_folder, "--tasks", "niah_single_1", "--length", "1024", "--limit", "2", "--dry-run",
        "--engine", "echo", "--out", tmp_path, "--data", f"ruler-essays={essays}",
    )  # fmt: skip
    assert code == 0, error
    assert "1 cell, about 2 min at most" in shown
