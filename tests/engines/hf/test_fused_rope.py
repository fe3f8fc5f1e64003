"""The kernel in Triton's interpreter, where there is Triton; on a GPU, where there is one; and when it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.llama import modeling_llama

from longctx_bench.engines.hf import fused_rope
from longctx_bench.engines.hf.fused_rope import is_llama_rope, use_fused_rope

COMPARED = """
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from longctx_bench.methods.kernels.rope import apply_rope

rows, heads, groups, tokens, size, dtype, tables = {case}
torch.manual_seed(0)
# Queries lie as a projection leaves them, keys as a cache does.
query = torch.randn(rows, tokens, heads, size).to(dtype).transpose(1, 2)
key = torch.randn(rows, groups, tokens, size).to(dtype)
cos, sin = (torch.randn(tables, tokens, size).to(dtype) for _ in range(2))
for one, other in zip(apply_rotary_pos_emb(query, key, cos, sin), apply_rope(query, key, cos, sin), strict=True):
    assert torch.equal(one, other), (one - other).abs().max()
    assert tokens == 1 or one.stride() == other.stride(), 'what attends to them finds them as it would have'
    assert torch.equal(apply_rope(query, query[:, :0], cos, sin)[0], apply_rotary_pos_emb(query, key, cos, sin)[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "2, 3, 1, 5, 8, torch.float32, 1",
        "3, 4, 2, 70, 64, torch.float32, 3",
        "1, 5, 5, 3, 80, torch.float16, 1",
        "4, 2, 1, 1, 16, torch.float16, 4",
    ],
)
def test_every_bit_is_that_of_transformers(case: str) -> None:
    pytest.importorskip("triton")
    # Triton asks for its interpreter when it is imported, which another test may have done.
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARED.format(case=case)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr


def _model(dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return made.to(device, dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_model_on_a_gpu_uses_it_and_gives_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(dtype, "cuda")
    assert is_llama_rope(modeling_llama.apply_rotary_pos_emb, model.device)
    ids = torch.randint(0, 60, (3, 40), device="cuda")
    expected = model(ids).logits
    calls: list[int] = []
    kernel: Any = fused_rope.apply_rope
    monkeypatch.setattr(fused_rope, "apply_rope", lambda *states: calls.append(1) or kernel(*states))
    with use_fused_rope(model):
        assert torch.equal(model(ids).logits, expected)
    assert len(calls) == 2
    assert torch.equal(model(ids).logits, expected)
    assert len(calls) == 2, "afterwards the model rotates as before"


@pytest.mark.slow
def test_on_a_cpu_nothing_changes_unless_it_is_compiled() -> None:
    own = modeling_llama.apply_rotary_pos_emb
    model = _model(torch.float32)
    with use_fused_rope(model):
        assert modeling_llama.apply_rotary_pos_emb is own
    with use_fused_rope(model, compiled=True):
        assert modeling_llama.apply_rotary_pos_emb is not own
    assert modeling_llama.apply_rotary_pos_emb is own


def test_only_llamas_rotation_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(fused_rope, "apply_rope", own)
    here = torch.device("cpu")
    is_llama_rope.cache_clear()

    def interleaved(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return tuple(each * cos[:, None] + torch.roll(each, 1, -1) * sin[:, None] for each in (q, k))

    def by_frequencies(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> Any:
        raise AssertionError("not asked")

    assert is_llama_rope(own, here)
    assert not is_llama_rope(interleaved, here)
    assert not is_llama_rope(by_frequencies, here)
    is_llama_rope.cache_clear()


@pytest.mark.parametrize("what", ["axis", "part", "precision", "fits"])
def test_what_the_kernel_does_not_compute_is_left_to_the_models_own(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(fused_rope, "apply_rope", lambda *states: used.append("kernel"))
    rotate = fused_rope._with_kernel(lambda *states, **named: used.append("own"))
    size, dtype = (4 if what == "part" else 8), (torch.float64 if what == "precision" else torch.float32)
    states, table = torch.zeros(2, 3, 5, 8), torch.zeros(1, 5, size, dtype=dtype)
    rotate(states, states, table, table, **({"unsqueeze_dim": 2} if what == "axis" else {}))
    assert used == ["kernel" if what == "fits" else "own"]


@pytest.mark.slow
def test_a_layer_in_another_module_than_its_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """DroPE's and other derived classes stand in a module of their own, their layers in the architecture's."""
    own = modeling_llama.apply_rotary_pos_emb
    model = _model(torch.float32)
    monkeypatch.setitem(sys.modules, "elsewhere", ModuleType("elsewhere"))
    monkeypatch.setattr(type(model), "__module__", "elsewhere")
    with use_fused_rope(model, compiled=True):
        assert modeling_llama.apply_rotary_pos_emb is not own
