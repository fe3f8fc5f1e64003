"""Rounding with feedback: what it does to inputs that go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longctx_bench.core.errors import UserError
from longctx_bench.training.gptq import gptq_codes, input_moments

ROWS, INPUTS, LARGEST = 24, 200, 127


def _case(correlated: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mixing = torch.randn(INPUTS, INPUTS) if correlated else torch.eye(INPUTS)
    inputs = torch.randn(4000, 40) @ torch.randn(40, INPUTS) + 0.1 * torch.randn(4000, INPUTS) @ mixing
    moments = inputs.T @ inputs / len(inputs) if correlated else torch.eye(INPUTS)
    return torch.randn(ROWS, INPUTS), torch.rand(ROWS) * 0.2 + 0.1, moments


def _effect(off: torch.Tensor, moments: torch.Tensor) -> float:
    return float(((off @ moments) * off).sum())


def test_later_columns_make_up_for_earlier_ones() -> None:
    rest, steps, moments = _case(correlated=True)
    codes = gptq_codes(rest, steps, moments, LARGEST)
    plain = (rest / steps[:, None]).round()
    off, plain_off = codes * steps[:, None] - rest, plain * steps[:, None] - rest
    assert codes.dtype == torch.int8
    assert _effect(off, moments) < 0.25 * _effect(plain_off, moments)
    assert float(off.square().sum()) > float(plain_off.square().sum()), (
        "each weight alone is nearest when rounded plainly"
    )


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    rest, steps, moments = _case(correlated=False)
    assert torch.equal(gptq_codes(rest, steps, moments, LARGEST), (rest / steps[:, None]).round().to(torch.int8))


def test_codes_stay_within_what_can_be_stored() -> None:
    rest, steps, moments = _case(correlated=True)
    assert int(gptq_codes(rest * 1000, steps, moments, LARGEST).abs().max()) == LARGEST


def test_moments_are_those_of_the_inputs(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = tmp_path / "text.txt"
    text.write_text("The river went under the old house and the man saw a light. " * 40, encoding="utf-8")
    found = input_moments(tiny_folder, text, tokens=64, length=32)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tiny_folder).encode(text.read_text(encoding="utf-8"), add_special_tokens=False)[
        :64
    ]
    seen: list[torch.Tensor] = []
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    with torch.no_grad():
        for start in (0, 32):
            model(torch.tensor([ids[start : start + 32]]))
    inputs = torch.cat(seen)
    torch.testing.assert_close(found["model.layers.1.mlp.up_proj.weight"], inputs.T @ inputs / 64)
    matrices = {name for name, weight in model.state_dict().items() if weight.dim() == 2}
    assert set(found) >= matrices - {"lm_head.weight", "model.embed_tokens.weight"}


def test_too_little_text_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A few words.", encoding="utf-8")
    with pytest.raises(UserError, match="fewer than one sequence of 32"):
        input_moments(tiny_folder, tmp_path / "short.txt", tokens=64, length=32)
