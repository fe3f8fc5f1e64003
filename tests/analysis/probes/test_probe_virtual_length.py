"""How well a bias on the keys stands for tokens that are repeated: exact in the first layer, not in deeper ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from longctx_bench.analysis.probes.virtual_length import FIRST, LAST, agreement
from longctx_bench.cli.main import cli
from longctx_bench.training.models import fresh_model, without_positions
from longctx_bench.training.recipe import Shape


def test_the_first_layer_is_exact_and_deeper_ones_are_not() -> None:
    shape = Shape(hidden_size=64, layers=3, heads=4, kv_heads=2, ffn=96, vocab_size=300)
    model = without_positions(fresh_model(shape, "rope", 256, 300, 0, seed=1), qk_norm=True).eval()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(20)
    before = model.config._attn_implementation
    ids = torch.randint(0, 300, (2, FIRST + LAST + 40), generator=torch.Generator().manual_seed(0)).tolist()
    result = agreement(model, ids, 4)
    assert model.config._attn_implementation == before
    assert result.hidden_states[0] < 1e-4
    assert 1e-3 < result.hidden_states[-1] < 1
    assert result.divergence < result.divergence_without
    assert 0 <= result.same_token_without <= result.same_token <= 1


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    words = ["probe", "virtual-length", "drope-tiny", "--factor", "2", "--limit", "1", "--device", "cpu", "--out"]
    result = CliRunner().invoke(cli, [*words, str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "KL divergence" in result.output
    made = json.loads((tmp_path / "probes/virtual-length/drope-tiny.json").read_text())
    assert made["factors"][0]["factor"] == 2
    assert len(made["factors"][0]["hidden_states"]) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["rope-tiny"],
        ["nope-smollm2-135m"],
        *(["drope-tiny", "--factor", each] for each in ("1", "x", "", "2,-3", "1e9")),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["probe", "virtual-length", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2 or type(result.exception).__name__ == "UserError"
