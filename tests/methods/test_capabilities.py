"""What methods ask of engines, and which engine refuses what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.engines.base import ALL_CAPABILITIES
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.engines.hf.export import check_exportable
from longctx_bench.engines.openai_api.engine import OpenAIEngine, require_served_as_is
from longctx_bench.engines.vllm_backend.hf_overrides import SUPPORTED, vllm_overrides
from longctx_bench.methods.base import BaseModelInfo, Capability, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import RoPE
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
BASE = BaseModelInfo("small", 512, CONFIG)


class CutsPrompts(RoPE):
    def prompt(self, base: BaseModelInfo, ids: Sequence[int], new_tokens: int) -> Sequence[int]:
        return ids[-8:]


class PatchesModels(RoPE):
    @contextmanager
    def patch(self, model: Any, base: BaseModelInfo, length: int) -> Iterator[None]:
        yield


class PatchesTemperature(NoPE):
    @contextmanager
    def patch(self, model: Any, base: BaseModelInfo, length: int) -> Iterator[None]:
        yield


class FollowsPrompts(RoPE):
    per_prompt: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("kind", "capabilities"),
    [
        (RoPE, set()),
        (NoPE, {"attention_temperature"}),
        (DroPE, {"attention_temperature"}),
        (CutsPrompts, {"prompt"}),
        (PatchesModels, {"model_patch"}),
        (PatchesTemperature, {"attention_temperature", "model_patch"}),
        (FollowsPrompts, {"per_prompt"}),
    ],
)
def test_what_a_class_overrides_is_what_it_asks_for(kind: type[Method], capabilities: set[Capability]) -> None:
    assert kind.capabilities == capabilities
    assert type("Child", (kind,), {}).capabilities == capabilities  # type: ignore[attr-defined]


def test_engines_say_what_they_support() -> None:
    assert HFEngine.supports == EchoEngine.supports == ALL_CAPABILITIES
    assert {"prompt", "attention_temperature", "banded_attention"} == SUPPORTED
    assert OpenAIEngine.supports == {"prompt", "sliding_window"}


@pytest.mark.parametrize("kind", [PatchesModels, PatchesTemperature, FollowsPrompts])
def test_vllm_servers_and_exports_refuse_what_they_cannot_do(kind: type[Method]) -> None:
    with pytest.raises(UserError, match=kind.__name__):
        vllm_overrides(BASE, kind(), 512, 512)
    with pytest.raises(UserError, match="export: mine"):
        check_exportable(kind(), "mine")
    with pytest.raises(UserError, match=kind.__name__):
        require_served_as_is(ModelUnderTest(BASE, kind(), 512))


def test_a_cut_prompt_goes_everywhere_but_into_a_checkpoint() -> None:
    vllm_overrides(BASE, CutsPrompts(), 512, 512)
    require_served_as_is(ModelUnderTest(BASE, CutsPrompts(), 512))
    with pytest.raises(UserError, match="prompts"):
        check_exportable(CutsPrompts(), "mine")


def test_no_shipped_method_asks_for_what_transformers_cannot_do() -> None:
    registry = Registry()
    asked = {name: registry._loaded(name).kind.capabilities for name in registry.methods}
    assert all(found <= HFEngine.supports for found in asked.values())
    assert asked["dynamic-ntk"] == {"per_prompt"}
    assert asked["crop"] == {"prompt"}
    assert asked["alibi"] == {"model_patch"}
    assert asked["self-extend"] == asked["jet-long"] == {"banded_attention"}
    assert asked["yarn"] == asked["rope"] == set()
