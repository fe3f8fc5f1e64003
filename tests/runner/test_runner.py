"""What the runner writes into a cell, and which cells it refuses before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.engines.base import MemoryEstimate
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.registry import Registry


@pytest.mark.parametrize(
    ("length", "settings", "factor", "source"),
    [
        (256, {}, 1.0, "derived"),
        (512, {}, 1.0, "derived"),
        (768, {}, 1.5, "derived"),
        (1024, {}, 2.0, "derived"),
        (512, {"yarn": {"factor": 4.0}}, 4.0, "fixed"),
        (1024, {"yarn": {"factor": 4.0}}, 4.0, "fixed"),
    ],
)
def test_the_factor_of_a_cell(tmp_path: Path, length: int, settings: Any, factor: float, source: str) -> None:
    registry = Registry(settings=settings)
    run("yarn-tiny", "niah_single_1", length=[length], limit=1, engine="echo", out=tmp_path, registry=registry)
    cell = json.loads(next(tmp_path.rglob("cell.json")).read_text())
    assert (cell["factor"], cell["factor_source"]) == (factor, source)
    assert cell["original_length"] == 512
    assert cell["applied"]["rope_parameters"]["factor"] == factor


@pytest.fixture
def footprints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Tokens and chunk that the memory of a prompt is reckoned with; the echo has room for 100,000 bytes."""
    asked: list[tuple[int, int]] = []

    class Noted(MemoryEstimate):
        def peak(self, tokens: int, chunk: int) -> int:
            asked.append((tokens, chunk))
            return super().peak(tokens, chunk)

    made = Noted(
        weights=10_000, per_token=10, per_prefill_token=100, available=100_000, flops_per_token=1.0, flops_per_pair=1.0
    )
    monkeypatch.setattr(EchoEngine, "estimate_memory", lambda self, folder: made)
    return asked


def test_a_loss_takes_memory_for_its_whole_row(
    tiny_folder: Path, tmp_path: Path, essays: Path, footprints: list[tuple[int, int]]
) -> None:
    registry = Registry(local_data={"long-text": essays, "ruler-essays": essays})
    arguments: dict[str, Any] = {"limit": 2, "engine": "echo", "registry": registry}
    run(str(tiny_folder), "niah_single_1", length=[1024], out=tmp_path / "a", **arguments)
    assert {chunk for _, chunk in footprints} == {256}, "a prompt is prefilled in pieces"
    assert footprints[0] == (1024, 256)
    footprints.clear()
    with pytest.raises(UserError, match=r"length 1024 needs about .* GiB of memory for one prompt and .* are free"):
        run(str(tiny_folder), "perplexity", length=[1024], out=tmp_path / "b", **arguments)
    assert footprints == [(1024, 1024)]
    assert not list((tmp_path / "b").rglob("started.json")), "a cell that is refused leaves no trace"
    with pytest.raises(UserError, match="--engine echo gives no losses"):
        run(str(tiny_folder), "perplexity", length=[512], out=tmp_path / "c", **arguments)


def test_memory_that_just_suffices(
    tiny_folder: Path, tmp_path: Path, essays: Path, footprints: list[tuple[int, int]]
) -> None:
    arguments: dict[str, Any] = {"limit": 1, "engine": "echo", "registry": Registry()}
    # 10,000 + 10 x 6,440 + 256 x 100 is 100,000.
    run(str(tiny_folder), "niah_single_1", length=[6440], out=tmp_path / "a", **arguments)
    with pytest.raises(UserError, match="length 6441 needs about"):
        run(str(tiny_folder), "niah_single_1", length=[6441], out=tmp_path / "b", **arguments)


def test_what_a_cell_says_of_its_examples(tiny_folder: Path, tmp_path: Path) -> None:
    run(str(tiny_folder), "niah_single_1", length=[512], limit=4, engine="echo", out=tmp_path)
    cell = json.loads(next(tmp_path.rglob("cell.json")).read_text())
    records = [json.loads(line) for line in next(tmp_path.rglob("records.jsonl")).read_text().splitlines()]
    assert cell["n"] == len(records) == 4
    assert cell["score"] == sum(record["score"] for record in records) / 4
    for key in ("prompt_tokens", "new_tokens"):
        assert cell[key] == sum(record[key] for record in records) > 0
    assert cell["seconds"] >= 0
    assert cell["exhausted"] is False
    assert "peak_memory" not in cell, "what is not known is not there"
    assert "executor" not in cell
