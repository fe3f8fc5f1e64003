"""Temperatures by head: their table over scales, their effect on attention, what stays, and who refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import validate
from longctx_bench.engines.openai_api.engine import require_served_as_is
from longctx_bench.engines.vllm_backend.hf_overrides import vllm_overrides
from longctx_bench.methods.attention_override import override_attention
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.head_temperatures import HeadGrid, HeadTemperatures, geometric_mean, scale_heads
from longctx_bench.methods.modeling_drope import LlamaDropeConfig, LlamaDropeForCausalLM
from longctx_bench.methods.rope_scaling import PI, RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

LAYERS, HEADS = 3, 4
SHAPE: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 160, "initializer_range": 0.2,
    "max_position_embeddings": 64,
}  # fmt: skip
GRID = tuple(tuple(0.5 + 0.25 * layer + 0.4 * head for head in range(HEADS)) for layer in range(LAYERS))
INFO = BaseModelInfo("small", 64, {"model_type": "llama", "rope_theta": 10000.0, **SHAPE})


def table() -> HeadTemperatures:
    squared = tuple(tuple(value * value for value in layer) for layer in GRID)
    return HeadTemperatures.from_grids({2.0: GRID, 4.0: squared})


def test_the_logarithm_is_interpolated_between_scales_and_goes_on_beyond_the_last() -> None:
    temperatures = table()
    assert temperatures.at(1.0) is None
    for scale, power in ((2.0, 1.0), (4.0, 2.0), (2.0**1.5, 1.5), (2.0**0.5, 0.5), (8.0, 3.0)):
        grid = temperatures.at(scale)
        assert grid is not None
        expected = [[value**power for value in layer] for layer in GRID]
        # Four decimals are kept.
        torch.testing.assert_close(torch.tensor(grid), torch.tensor(expected), rtol=2e-3, atol=0)
    assert geometric_mean(((2.0, 8.0),)) == pytest.approx(4.0)


@pytest.mark.parametrize("lines", [["1 1", "1"], ["1 0"], ["1 -2"], ["1 nan"], ["1 inf"], ["1 x"], [""], [], ["1e9 1"]])
def test_a_table_that_is_none_is_refused_in_one_line(lines: list[str]) -> None:
    with pytest.raises(UserError) as error:
        validate(HeadTemperatures, {"table": {"2": ["1 1", "1 1"], "4": lines}}, "calibration.json: heads")
    assert "calibration.json" in str(error.value)
    assert "\n" not in str(error.value)


@contextmanager
def scaled_logits(model: Any) -> Iterator[None]:
    """The definition: attention whose logits are multiplied by their head's temperature, without touching weights."""

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
        logits = query @ key.transpose(-1, -2) * scaling * torch.tensor(GRID[module.layer_idx])[None, :, None, None]
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        weights = functional.softmax(logits.masked_fill(~causal, -torch.inf), dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    with override_attention(model, "test_scaled_logits", attention):
        yield


def build(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    else:
        model = LlamaDropeForCausalLM(LlamaDropeConfig(attention_type=kind, **SHAPE))
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qk_norm_nope", "k_norm_nope", "nope"])
def test_the_attention_logits_of_each_head_are_multiplied_and_the_weights_come_back(kind: str) -> None:
    model, ids = build(kind), torch.arange(3, 43)[None]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        plain = model(ids).logits
        with scaled_logits(model):
            expected = model(ids).logits
    with torch.inference_mode(), scale_heads(model, GRID):
        actual = model(ids).logits
    with pytest.raises(IndexError), scale_heads(model, GRID):
        _ = GRID[LAYERS]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert (actual - plain).abs().max() > 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_heads_that_share_a_norm_or_a_projection_are_refused() -> None:
    small = {key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "head_dim")}
    for model in (Qwen3ForCausalLM(Qwen3Config(**SHAPE)), GPTNeoXForCausalLM(GPTNeoXConfig(**small))):
        with pytest.raises(UserError, match=model.config.model_type), scale_heads(model, GRID):
            pass


def test_temperatures_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="2 layers"), scale_heads(build("llama"), GRID[:2]):
        pass


def test_drope_takes_the_heads_where_the_checkpoint_has_them() -> None:
    lines = {f"{scale:g}": list(rows) for scale, rows in table().table.items()}
    fits = {"heads": {"table": lines}, "retrieval": {"c": 0.3, "table": {"2": 1.2}}}
    both, uniform, scalar = (DroPE(calibration=kind).with_calibration(fits) for kind in ("auto", "retrieval", "none"))
    assert both.head_temperatures(INFO, 128) == table().at(2.0)
    assert both.attention_temperature(INFO, 128) == 1.0
    assert both.head_temperatures(INFO, 64) is None
    applied = both.applied_scalar(INFO, 128)
    assert applied is not None
    assert applied.scalar == "mean_head_temperature"
    assert applied.value == pytest.approx(geometric_mean(GRID), abs=1e-3)
    assert uniform.head_temperatures(INFO, 128) is None
    assert uniform.attention_temperature(INFO, 128) == 1.2
    assert scalar.temperature is None
    assert DroPE().with_calibration({"retrieval": fits["retrieval"]}).attention_temperature(INFO, 128) == 1.2
    with pytest.raises(UserError, match="--per-head"):
        DroPE(calibration="heads").with_calibration({"retrieval": fits["retrieval"]})


def test_a_method_comes_back_from_what_a_cell_stores() -> None:
    # Ray workers and `variant_from_parts` build it from its dump.
    for method in (DroPE().with_head_temperatures(table()), YaRN().with_head_temperatures(table())):
        again = type(method).model_validate(method.model_dump(mode="json"))
        assert again == method
        assert again.head_temperatures(INFO, 256) == table().at(4.0)


def test_yarn_keeps_its_own_attention_factor_beside_them() -> None:
    plain, heads = YaRN(), YaRN().with_head_temperatures(table())
    assert heads.model_overrides(INFO, 256) == plain.model_overrides(INFO, 256)
    assert heads.head_temperatures(INFO, 64) is None


class HeadsAlone(RoPE):
    """Temperatures by head, and no other change of the base."""

    def head_temperatures(self, base: BaseModelInfo, length: int) -> HeadGrid | None:
        return table().at(self.scale(base, length))


def test_methods_and_engines_without_them_say_so() -> None:
    with pytest.raises(UserError, match="drope"):
        PI().with_head_temperatures(table())
    with pytest.raises(UserError, match="export"):
        vllm_overrides(INFO, DroPE().with_head_temperatures(table()), 128, 128)
    with pytest.raises(UserError, match="export"):
        require_served_as_is(ModelUnderTest(INFO, HeadsAlone(), 128))
    require_served_as_is(ModelUnderTest(INFO, HeadsAlone(), 64))
    # Within the training context there is nothing to apply.
    assert "rope_parameters" in vllm_overrides(INFO, DroPE().with_head_temperatures(table()), 64, 64)


def test_the_shipped_temperatures_are_those_of_its_heads() -> None:
    variant = Registry().variant("drope-smollm")
    grid = variant.method.head_temperatures(BaseModelInfo("smollm", 2048, {}), 16384)
    assert grid is not None
    assert [len(layer) for layer in grid] == [9] * 30
