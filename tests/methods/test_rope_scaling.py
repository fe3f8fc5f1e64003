"""The rotary frequencies of every method against transformers' own, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import NTK, PI, DynamicNTK, Llama3, LongRoPE, RoPE, YaRN
from longctx_bench.methods.scalar_schedule import ScalarSchedule, fit_slope
from longctx_bench.models.variant import ModelUnderTest

LENGTH = 1024  # four times the tiny model's training context
HALF = 6  # head_dim / 2 of the tiny model


def contestant(folder: Path, method: Method, length: int = LENGTH) -> ModelUnderTest:
    config = json.loads((folder / "config.json").read_text())
    return ModelUnderTest(BaseModelInfo("tiny", 256, config), method, length)


REFERENCES: list[tuple[Method, dict[str, Any]]] = [
    (PI(), {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    (PI(factor=2.5), {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
    (NTK(), {"rope_type": "default", "rope_theta": 10000.0 * 4.0 ** (12 / 10)}),
    (DynamicNTK(), {"rope_type": "default", "rope_theta": 10000.0 * 4.0 ** (12 / 10)}),
    (YaRN(), {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}),
    (
        YaRN(beta_fast=16, beta_slow=2, attention_factor=1.3),
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256,
         "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.3},
    ),
    (
        LongRoPE(short_factor=(1.0,) * HALF, long_factor=(1.0, 1.5, 2.0, 3.0, 3.5, 4.0)),
        {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256,
         "short_factor": [1.0, 1.5, 2.0, 3.0, 3.5, 4.0], "long_factor": [1.0, 1.5, 2.0, 3.0, 3.5, 4.0]},
    ),
    (
        Llama3(),
        {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256,
         "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("method", "reference"), REFERENCES, ids=lambda value: type(value).__name__)
def test_frequencies_and_logits_equal_transformers(
    tiny_folder: Path, method: Method, reference: dict[str, Any]
) -> None:
    expected = AutoModelForCausalLM.from_pretrained(
        tiny_folder, rope_parameters=reference, max_position_embeddings=LENGTH, dtype=torch.float32
    ).eval()
    model = load_model(tiny_folder, "float32", "cpu")
    ids = torch.randint(0, 500, (1, 700), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        untouched = model(ids).logits
        with apply_method(model, contestant(tiny_folder, method), LENGTH):
            assert torch.equal(model.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)
            assert model.model.rotary_emb.attention_scaling == expected.model.rotary_emb.attention_scaling
            changed = model(ids).logits
            assert torch.equal(changed, expected(ids).logits)
        assert not torch.equal(changed, untouched)
        assert torch.equal(model(ids).logits, untouched), "the method must be undone"


def test_up_to_the_training_context_nothing_is_scaled(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, "float32", "cpu")
    plain = model.model.rotary_emb.inv_freq
    for method in (PI(), NTK(), YaRN(), Llama3()):
        with apply_method(model, contestant(tiny_folder, method, 256), 256):
            assert torch.allclose(model.model.rotary_emb.inv_freq, plain, rtol=1e-6)


def test_longrope_chooses_one_list_by_the_length(tiny_folder: Path) -> None:
    method = LongRoPE(short_factor=(1.0,) * HALF, long_factor=(4.0,) * HALF)
    entries = [
        method.model_overrides(contestant(tiny_folder, method).base, length)["rope_parameters"]["short_factor"]
        for length in (256, 257)
    ]
    assert entries == [[1.0] * HALF, [4.0] * HALF]
    with pytest.raises(UserError, match="longrope needs 'short_factor', a list of 6 numbers"):
        LongRoPE().model_overrides(contestant(tiny_folder, method).base, 512)


class Identity(nn.Module):
    """A rotary module that turns nothing: cos 1, sin 0."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*position_ids.shape, 12)
        return torch.ones(shape, dtype=x.dtype), torch.zeros(shape, dtype=x.dtype)


def test_nope_equals_an_identity_rotation(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, "float32", "cpu")
    ids = torch.randint(0, 500, (2, 300), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        with apply_method(model, contestant(tiny_folder, NoPE()), LENGTH):
            nope = model(ids).logits
        model.model.rotary_emb = Identity()
        assert torch.equal(nope, model(ids).logits)


def test_drope_scales_the_softmax_and_undoes_it(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, "float32", "cpu")
    layers = [layer.self_attn for layer in model.model.layers]
    before = [layer.scaling for layer in layers]
    method = DroPE(temperature=ScalarSchedule(c=0.412))
    with apply_method(model, contestant(tiny_folder, method), LENGTH):
        beta = 1 + 0.412 * 1.3862943611198906
        assert [layer.scaling for layer in layers] == [pytest.approx(scaling * beta) for scaling in before]
    assert [layer.scaling for layer in layers] == before


def test_temperature_table_and_law() -> None:
    table = ScalarSchedule(c=0.5, table={2.0: 1.2, 8.0: 1.6})
    assert table.at(0.5) == table.at(1.0) == 1.0
    assert table.at(2.0) == 1.2
    assert table.at(4.0) == pytest.approx(1.4)  # half way in ln s
    assert table.at(16.0) == pytest.approx(1.6 + 0.5 * 0.6931471805599453)
    assert ScalarSchedule(c=0.412).at(8.0) == pytest.approx(1 + 0.412 * 2.0794415416798357)


def test_a_base_without_rotary_positions_is_refused() -> None:
    base = BaseModelInfo("gpt2", 1024, {"hidden_size": 48, "num_attention_heads": 4})
    with pytest.raises(UserError, match="no rope_theta"):
        YaRN().model_overrides(base, 2048)
    assert RoPE().model_overrides(base, 2048) == {}


def test_fit_slope() -> None:
    assert fit_slope({2.0: 1 + 0.3 * 0.6931471805599453, 8.0: 1 + 0.3 * 2.0794415416798357}) == pytest.approx(0.3)
