"""What vLLM is told for each method, and what is refused; none of it needs vLLM."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.engines import make_engine
from longctx_bench.engines.vllm_backend.hf_overrides import vllm_overrides
from longctx_bench.methods.alibi import ALiBi
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.jet_long import JetLong
from longctx_bench.methods.mrrope import MrRoPEPro
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rerope import ReRoPE
from longctx_bench.methods.rnope_swa import RNoPESWA
from longctx_bench.methods.rope_scaling import NTK, PI, Crop, DynamicNTK, Llama3, LongRoPE, RoPE, YaRN
from longctx_bench.methods.scalar_schedule import ScalarSchedule
from longctx_bench.methods.self_extend import SelfExtend

UNROTATED = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.0}


def base(kind: str = "llama", **more: Any) -> BaseModelInfo:
    config = {"model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "rope_theta": 10000.0}
    return BaseModelInfo("small", 512, config | more)


def overrides(method: Method, length: int = 2048, room: int = 0, **config: Any) -> dict[str, Any]:
    return vllm_overrides(base(**config), method, length, room or length)


@pytest.mark.parametrize("method", [NTK(), YaRN(), Llama3()], ids=lambda method: type(method).__name__)
def test_a_rotary_method_is_told_whole_and_as_transformers_is_told(method: Method) -> None:
    found = overrides(method)
    assert found == method.model_overrides(base(), 2048)
    assert {"rope_type", "rope_theta"} <= found["rope_parameters"].keys()
    assert found["max_position_embeddings"] == 2048


@pytest.mark.parametrize("method", [RoPE(), Crop()], ids=lambda method: type(method).__name__)
def test_the_base_as_it_is_keeps_its_own_positions_beyond_its_context(method: Method) -> None:
    assert overrides(method) == {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": 2048,
    }
    llama3 = Llama3().model_overrides(base(), 4096)["rope_parameters"]
    assert overrides(method, rope_parameters=llama3)["rope_parameters"] == llama3


@pytest.mark.parametrize("length", [513, 1000, 1337, 2048, 3001, 65536])
def test_interpolations_table_holds_every_position_and_no_more_than_it_must(length: int) -> None:
    found = overrides(PI(), length)
    factor = found["rope_parameters"]["factor"]
    assert isinstance(factor, float)
    rows = found["max_position_embeddings"] * factor
    assert length <= rows < length + 2 * factor


def test_yarn_is_refused_where_its_table_would_end_before_the_prompt() -> None:
    assert overrides(YaRN(factor=4.0), 2048)["rope_parameters"]["factor"] == 4.0
    with pytest.raises(UserError, match="ends at 1024 tokens, not 2048"):
        overrides(YaRN(factor=2.0), 2048)
    with pytest.raises(UserError, match="ends at 2048 tokens, not 2049"):
        overrides(YaRN(), 2048, room=2049)


@pytest.mark.parametrize("length", [512, 2048])
def test_a_list_of_factors_is_told_with_its_factor_on_cos_and_sin_where_vllm_looks(length: int) -> None:
    method = MrRoPEPro(attention_factor=1.25)
    found = overrides(method, length, room=length + 7)
    told = method.model_overrides(base(), length)["rope_parameters"]
    assert found["rope_parameters"] == told | {"short_mscale": 1.25, "long_mscale": 1.25}
    assert told["short_factor"] == told["long_factor"]
    assert len(told["short_factor"]) == 8
    # Rows of vLLM's table of the long list, which it takes once it may read more than the training context.
    assert found["max_position_embeddings"] == length + 7


def test_without_positions_nothing_turns() -> None:
    found = overrides(NoPE())
    assert set(found) == {"rope_parameters", "max_position_embeddings"}
    rope = found["rope_parameters"]
    assert rope["rope_type"] == "llama3"
    # Even the longest waves of it are beyond the low-frequency bound, where every frequency is divided by the factor.
    assert 2 * math.pi > rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    assert 2**24 / rope["factor"] < 1e-20


def test_a_sharpened_softmax_asks_for_the_plug_in() -> None:
    sharpened = NoPE(temperature=ScalarSchedule(table={1.0: 1.0, 4.0: 1.5}))
    found = overrides(sharpened)
    assert found["architectures"] == ["LlamaDropeForCausalLM"]
    assert found["softmax_scale"] == pytest.approx(1.5 / 4)
    assert overrides(sharpened, kind="qwen2")["architectures"] == ["Qwen2DropeForCausalLM"]


def test_a_published_scale_is_multiplied_by_the_temperature() -> None:
    method = DroPE(temperature=ScalarSchedule(table={1.0: 1.0, 4.0: 1.5}))
    found = overrides(method, kind="llama_drope", softmax_scale=0.2, rope_parameters=UNROTATED)
    assert found["softmax_scale"] == pytest.approx(0.3)
    plain = overrides(DroPE(), kind="llama_drope", rope_parameters=UNROTATED)
    assert plain["softmax_scale"] == pytest.approx(0.25)
    assert plain["architectures"] == ["LlamaDropeForCausalLM"]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("method", [SelfExtend(), JetLong(), ReRoPE()], ids=lambda method: type(method).__name__)
def test_a_method_by_distance_asks_for_the_plug_in_and_no_rotation(method: Method, kind: str) -> None:
    found = overrides(method, kind=kind)
    assert found["architectures"] == [f"{kind.title()}BandedForCausalLM"]
    assert found["rope_parameters"] == overrides(NoPE(), kind=kind)["rope_parameters"]
    assert found["max_position_embeddings"] == 2048


def test_a_method_by_distance_that_changes_nothing_is_the_base() -> None:
    assert overrides(JetLong(), 512) == overrides(RoPE(), 512)


class Patches(RoPE):
    """A method of someone's own that rewrites the loaded model."""

    def patch(self, model: Any, base: BaseModelInfo, length: int) -> Any:
        raise AssertionError("must be refused before")


class PatchedBands(SelfExtend):
    """Bands, and something besides that vLLM knows nothing of."""

    def patch(self, model: Any, base: BaseModelInfo, length: int) -> Any:
        raise AssertionError("must be refused before")


class Strange(RoPE):
    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        return {"attention_sinks": 4}


LISTS = LongRoPE(short_factor=(1.0,) * 8, long_factor=(2.0,) * 8)


@pytest.mark.parametrize(
    ("method", "config", "why"),
    [
        (DynamicNTK(), {}, "set once for all prompts"),
        (LISTS, {}, "longrope"),
        (ALiBi(), {"rope_parameters": UNROTATED}, "changes a loaded model"),
        (Patches(), {}, "changes a loaded model"),
        (PatchedBands(), {}, "changes a loaded model"),
        (SelfExtend(query_scale="llama4"), {}, "do not scale queries"),
        (SelfExtend(), {"kind": "mistral"}, "mistral"),
        (Strange(), {}, "attention_sinks"),
        (RNoPESWA(), {"kind": "smollm3"}, "smollm3"),
        (RoPE(), {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        (RoPE(), {"rope_scaling": {"type": "su"}}, "'su'"),
        (RoPE(), {"kind": "qwen2", "use_sliding_window": True}, "sliding window"),
        (RoPE(), {"kind": "qwen2", "head_dim": 32}, "head_dim"),
    ],
)
def test_what_vllm_would_run_differently_is_refused_with_a_reason(
    method: Method, config: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=f"--engine vllm.*{why}"):
        overrides(method, **config)


def test_without_vllm_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx_bench.engines.vllm_backend.engine.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"longctx-bench\[vllm\]"):
        make_engine("vllm")


def test_the_switch_that_reads_past_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx_bench.engines.vllm_backend.engine.find_spec", lambda name: name)
    monkeypatch.setattr(os, "environ", {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})
    with pytest.raises(UserError, match="silently wrong"):
        make_engine("vllm")


def test_only_vllm_shares_layers_between_devices() -> None:
    with pytest.raises(UserError, match="--engine vllm"):
        make_engine("hf", tensor_parallel=2)
