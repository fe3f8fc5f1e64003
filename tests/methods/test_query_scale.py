"""The query scale against the formulas, transformers' Ministral 3, and attention that is given scaled queries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_types import build
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longctx_bench.analysis.probes.method_contract import check_method
from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.engines.hf.export import check_exportable
from longctx_bench.engines.openai_api.engine import require_served_as_is
from longctx_bench.engines.vllm_backend.hf_overrides import vllm_overrides
from longctx_bench.methods.base import BaseModelInfo, Method, QueryScale
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.query_scale import _MODEL_TYPES, query_factors, scale_queries
from longctx_bench.methods.rope_scaling import PI, RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

CONTEXT = 32
LAWS: tuple[QueryScale, ...] = ("log-n", "llama4")


def ids(rows: int = 1, tokens: int = 90) -> torch.Tensor:
    return torch.randint(5, 250, (rows, tokens), generator=torch.Generator().manual_seed(1))


def _sharpen(model: Any) -> None:
    """Make the attention of a random model far from even."""
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 4


def test_the_laws_are_the_formulas_and_1_within_the_training_context() -> None:
    positions = torch.arange(200)[None]
    found = query_factors("log-n", 0.1, CONTEXT, positions)[0].tolist()
    assert found == pytest.approx([max(1.0, math.log(place + 1) / math.log(CONTEXT)) for place in range(200)], rel=1e-6)
    assert found[:CONTEXT] == [1.0] * CONTEXT
    found = query_factors("llama4", 0.3, CONTEXT, positions)[0].tolist()
    assert found == pytest.approx([1 + 0.3 * math.log(1 + place // CONTEXT) for place in range(200)], rel=1e-6)
    assert found[:CONTEXT] == [1.0] * CONTEXT
    for law in LAWS:
        assert query_factors(law, 0.1, CONTEXT, torch.tensor([-3, 0])).tolist() == [1.0, 1.0], "padding is no error"


def test_llama4s_law_is_ministral_3() -> None:
    shape: dict[str, Any] = {
        "rms_norm_eps": 1e-5, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 260,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": None,
        "max_position_embeddings": 256,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4}
    torch.manual_seed(0)
    own = {**rope, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": CONTEXT}
    original = Ministral3ForCausalLM(Ministral3Config(**shape, rope_parameters=own)).eval()
    model: Any = MistralForCausalLM(MistralConfig(**shape, rope_parameters=rope)).eval()
    _sharpen(original)
    model.load_state_dict(original.state_dict())
    with torch.inference_mode():
        expected, plain = original(ids()).logits, model(ids()).logits
        with scale_queries(model, "llama4", 0.1, CONTEXT):
            found = model(ids()).logits
    assert torch.allclose(found, expected, atol=2e-5)
    assert torch.equal(found[:, :CONTEXT], plain[:, :CONTEXT])
    assert not torch.allclose(found[:, CONTEXT:], plain[:, CONTEXT:], atol=2e-4)


@contextmanager
def scaled_in_attention(model: Any, law: QueryScale) -> Iterator[None]:
    """Scale queries after their rotation, in the attention function."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        factors = query_factors(law, 0.1, CONTEXT, more["position_ids"])
        return sdpa_attention_forward(module, query * factors[:, None, :, None], key, value, mask, **more)

    AttentionInterface.register("scaled_here", attend)
    AttentionMaskInterface.register("scaled_here", sdpa_mask)
    model.config._attn_implementation = "scaled_here"
    yield
    model.config._attn_implementation = "sdpa"


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", [kind for kind in _MODEL_TYPES if not kind.endswith("_drope")])
def test_queries_of_a_model_type_are_found(kind: str, law: QueryScale, tiny_folder: Path, tmp_path: Path) -> None:
    config = build(tmp_path / "model", kind, {}, tiny_folder)
    model: Any = load_model(tmp_path / "model", "float32", "cpu")
    _sharpen(model)
    method = PI(query_scale=law)
    who = ModelUnderTest(BaseModelInfo("x", CONTEXT, config), method, 96)
    with torch.inference_mode():
        plain = model(ids(2)).logits
        with apply_method(model, ModelUnderTest(who.base, PI(), 96), 96):
            unscaled = model(ids(2)).logits
            with scaled_in_attention(model, law):
                expected = model(ids(2)).logits
        with apply_method(model, who, 96):
            found = model(ids(2)).logits
        assert (found - expected).abs().max() < 1e-3, "before the rotation or behind it is a matter of rounding"
        assert (found - unscaled)[:, CONTEXT:].abs().max() > 50 * (found - expected).abs().max()
        assert torch.equal(model(ids(2)).logits, plain), "it must be undone"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yarn+log-n", "mrrope-pro@2x+log-n", "nope+llama4"])
def test_it_keeps_to_what_every_run_relies_on(name: str, tiny_folder: Path) -> None:
    """Chunks, caches, left padding, drafts, batches; and at 1x nothing."""
    found = check_method(Registry().variant(f"{name}:{tiny_folder}"), "cpu", prompt_tokens=400)
    assert found.passed, found.checks
    assert max(found.prompts) > 256, "the training context, beyond which queries are scaled"
    judged = {check.name: check.result for check in found.checks}
    assert judged.pop("1x") == ("passed" if name.startswith("yarn") else "not applicable")
    assert {*judged.values()} == {"passed"}


def test_positions_behind_a_cache_and_beside_padding_are_the_tokens_own(tiny_folder: Path) -> None:
    model: Any = load_model(tiny_folder, "float32", "cpu")
    base = BaseModelInfo("tiny", CONTEXT, json.loads((tiny_folder / "config.json").read_text()))
    row = ids()
    with torch.inference_mode(), apply_method(model, ModelUnderTest(base, RoPE(query_scale="log-n"), 96), 96):
        whole = model(row).logits
        first = model(row[:, :50], use_cache=True)
        rest = model(row[:, 50:], past_key_values=first.past_key_values).logits
        padded = torch.cat([torch.zeros(1, 7, dtype=row.dtype), row], dim=1)
        mask = (torch.arange(97) >= 7)[None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        beside = model(padded, attention_mask=mask, position_ids=positions).logits
    assert torch.allclose(torch.cat([first.logits, rest], dim=1), whole, atol=1e-5)
    assert torch.allclose(beside[:, 7:], whole, atol=1e-5)


@pytest.mark.parametrize("method", [RoPE(), YaRN(), NoPE()], ids=lambda method: type(method).__name__)
def test_a_cell_measured_before_there_was_a_switch_is_still_that_cell(method: Method) -> None:
    assert not {"query_scale", "query_scale_beta"} & method.model_dump(mode="json").keys()
    on = method.model_copy(update={"query_scale": "log-n"})
    assert on.model_dump(mode="json") == method.model_dump(mode="json") | {"query_scale": "log-n"}
    on = method.model_copy(update={"query_scale": "llama4"})
    assert on.model_dump(mode="json").items() >= {"query_scale": "llama4", "query_scale_beta": 0.1}.items()
    assert type(method).model_validate(on.model_dump(mode="json")) == on


def test_what_cannot_scale_queries_refuses() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rope_theta": 10000.0}
    base, method = BaseModelInfo("small", 512, config), YaRN(query_scale="log-n")
    with pytest.raises(UserError, match="--engine vllm cannot run YaRN .* scale queries by their positions"):
        vllm_overrides(base, method, 1024, 1024)
    with pytest.raises(UserError, match="export: mine scales queries by their positions"):
        check_exportable(method, "mine")
    with pytest.raises(UserError, match="cannot apply RoPE"):
        require_served_as_is(ModelUnderTest(base, RoPE(query_scale="log-n"), 512))


def test_a_model_whose_queries_are_not_known_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    config = build(tmp_path / "model", "gpt_neox", {}, tiny_folder)
    model = load_model(tmp_path / "model", "float32", "cpu")
    who = ModelUnderTest(BaseModelInfo("x", CONTEXT, config), RoPE(query_scale="log-n"), 96)
    with pytest.raises(UserError, match="not known to work on a gpt_neox"), apply_method(model, who, 96):
        pass


@pytest.mark.parametrize("setting", ["yarn.query_scale=su", "yarn.query_scale_beta=0", "yarn.query_scale_beta=.inf"])
def test_bad_switches_are_one_line(call: Any, setting: str) -> None:
    code, out, error = call("run", "--model", "yarn-tiny", "--dry-run", "--device", "cpu", "--set", setting)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert setting.partition(".")[2].partition("=")[0] in error
