from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.llama import modeling_llama

from longctx_bench.core.errors import UserError
from longctx_bench.engines import make_engine
from longctx_bench.engines.hf import torch_compile
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.engines.hf.fused_rope import use_fused_rope
from longctx_bench.engines.hf.torch_compile import compile_layers
from longctx_bench.methods.modeling_drope import LlamaDropeConfig

pytestmark = pytest.mark.slow


def _model(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=60, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return made


def _drope() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 6}
    config = LlamaDropeConfig(vocab_size=60, attention_type="qk_norm_nope", **shape)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return made


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@torch.inference_mode()
def test_logits_are_the_same_whatever_the_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = _model(), _model()
    rotations: list[int] = []
    own = modeling_llama.apply_rotary_pos_emb

    def counted(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rotations.append(1)
        found: tuple[torch.Tensor, torch.Tensor] = own(*args)
        return found

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", counted)
    compile_layers(compiled)
    for rows, tokens in ((2, 30), (3, 17), (2, 1)):
        ids = torch.randint(0, 60, (rows, tokens))
        rotations.clear()
        expected = plain(ids).logits
        assert len(rotations) == 2
        with use_fused_rope(compiled, compiled=True):
            torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-5, rtol=1e-5)
            assert modeling_llama.apply_rotary_pos_emb is not counted
        assert modeling_llama.apply_rotary_pos_emb is counted


def test_layers_are_compiled_whole_and_norms_in_attention_by_themselves() -> None:
    model = _drope()
    compile_layers(model)
    found = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    assert found == {
        "model.layers.0",
        "model.layers.0.self_attn.q_norm",
        "model.layers.0.self_attn.k_norm",
        "model.norm",
    }


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@torch.inference_mode()
def test_norms_in_attention_run_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = _drope(), _drope()
    compile_layers(compiled)
    eager: list[int] = []
    norm = modeling_llama.LlamaRMSNorm.forward

    def counted(self: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            eager.append(1)
        found: torch.Tensor = norm(self, states)
        return found

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", counted)
    ids = torch.randint(0, 60, (2, 9))
    expected = plain(ids).logits
    assert len(eager) == 5
    torch.testing.assert_close(compiled(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert len(eager) == 5, "none of them ran as it stands"


def test_a_machine_that_cannot_compile_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(torch_compile.torch, "compile", broken)
    with pytest.raises(UserError, match=r"^--compile: torch cannot compile here \(Failed to find C compiler. Please"):
        compile_layers(_model())


@pytest.mark.parametrize("name", ["vllm", "echo", "openai"])
def test_only_the_transformers_engine_compiles(name: str) -> None:
    with pytest.raises(UserError, match="--compile: goes with --engine hf"):
        make_engine(name, compiled=True)
    engine = make_engine("hf", device="cpu", compiled=True)
    assert isinstance(engine, HFEngine)
    assert engine.settings()["compiled"] is True


def test_a_model_is_compiled_when_it_is_asked_for(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("longctx_bench.engines.hf.engine.compile_layers", compiled.append)
    HFEngine("cpu", "float32").load(tiny_folder)
    assert not compiled
    engine = HFEngine("cpu", "float32", compiled=True)
    engine.load(tiny_folder)
    assert compiled == [engine.model]
