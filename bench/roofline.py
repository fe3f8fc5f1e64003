"""``python -m bench.roofline``: share of the machine's roofline that the transformers engine reaches.

Random weights of a shape and random prompts: speed does not depend on what stands in them. The ceiling of a prefill is
the time of its matrix products and attention alone, measured in the same run; that of a decoding step the bytes of
weights and cache at the measured rate of memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from bench.results import keep
from longctx_bench.core.types import Request
from longctx_bench.engines import memory
from longctx_bench.engines.base import MemoryEstimate
from longctx_bench.engines.hf.engine_core import EngineCore
from longctx_bench.engines.hf.fused_rope import use_fused_rope
from longctx_bench.engines.hf.torch_compile import compile_layers

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "num_key_value_heads": 5,
             "intermediate_size": 640, "vocab_size": 5504, "tie_word_embeddings": True},
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
           "intermediate_size": 11008, "vocab_size": 32000, "tie_word_embeddings": False},
}  # fmt: skip
"""SmolLM2-135M's and Llama 2 7B's, and this project's tiny family's."""


@dataclass(frozen=True)
class Measured:
    """One shape at one length."""

    prompts: int
    length: int
    prefill: float
    """Seconds for all prompts."""
    prefill_ceiling: float
    """Seconds of the matrix products and attention alone (compute bound)."""
    step: float
    """Seconds of one decode step of all prompts."""
    step_ceiling: float
    """Seconds to read weights and KV cache at the measured bandwidth (memory bound)."""
    read: float
    """Bytes of weights and KV cache."""
    peak: int | None
    planned: int

    def line(self, new_tokens: int) -> str:
        """Return the result as a line; ``new_tokens`` is the budget per example."""
        whole = self.prefill + new_tokens * self.step
        read, ceiling = self.prompts * self.length / self.prefill, self.prefill_ceiling / self.prefill
        share, rate = self.step_ceiling / self.step, self.read / self.step / 1e9
        planned = f"plan {self.planned / 2**30:.2f} GiB"
        parts = (
            f"{self.prompts} x {self.length:,} tokens: prefill {read:,.0f} tokens/s ({ceiling:.0%} of its ceiling),",
            f"decoding {self.prompts / self.step:,.1f} tokens/s ({share:.0%}, {rate:,.0f} GB/s),",
            f"{self.prompts / whole:.3f} examples/s with {new_tokens} new tokens each,",
            f"{self.prompts / self.prefill:.3f} with right answers;",
            planned if self.peak is None else f"memory {self.peak / 2**30:.2f} GiB ({planned})",
        )
        return " ".join(parts)


def build(shape: str, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model of a shape with random weights, made where it will run."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=131072, bos_token_id=0, eos_token_id=1)
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()  # type: ignore[no-any-return]
    finally:
        torch.set_default_dtype(before)


def decoding(
    model: LlamaForCausalLM, prompts: int, length: int
) -> tuple[EngineCore, MemoryEstimate, Callable[[int], float]]:
    """Return an engine core, its memory estimate, and a function from new tokens to seconds on random prompts."""
    device = str(model.device)
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "")
    core = EngineCore.for_model(model, tokenizer, frozenset())
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.vocab_size
    ids = [tuple(torch.randint(2, vocab_size, (length,), generator=generator).tolist()) for _ in range(prompts)]
    found = memory.estimate(model.config.to_dict(), SimpleNamespace(name="model"), _name(model.dtype), device)  # type: ignore[arg-type]

    def run(new_tokens: int) -> float:
        batch = [Request(str(place), own, new_tokens) for place, own in enumerate(ids)]
        room = memory.prefill_token_budget(found, prompts * (length + new_tokens), device)
        return _seconds(lambda: core.generate(batch, lambda *_: False, room), device)

    return core, found, run


def measure(model: LlamaForCausalLM, prompts: int, length: int, steps: int, bandwidth: float) -> Measured:
    """Prefill and decode random prompts with the engine's scheduler."""
    device = str(model.device)
    core, found, run = decoding(model, prompts, length)
    run(1 + steps)
    memory.peak(device)
    prefill = min(run(1) for _ in range(3))
    step = (min(run(1 + steps) for _ in range(2)) - prefill) / steps
    peak = memory.peak(device)
    read_at_once = max(length, min(prompts * length, core.config.max_prefill_tokens))
    planned = found.weights + prompts * (length + steps) * found.per_token + read_at_once * found.per_prefill_token
    read = found.weights + prompts * length * found.per_token
    return Measured(
        prompts, length, prefill, ceiling(model, prompts, length), step, read / bandwidth, read, peak, planned
    )


def profiled(model: LlamaForCausalLM, prompts: int, length: int) -> str:
    """Return a profile of the prefill, kernel by kernel, the longest first; after :func:`measure` of the same."""
    cuda = model.device.type == "cuda"
    run = decoding(model, prompts, length)[2]
    run(1)
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        run(1)
    time = f"self_{activity.name.lower()}_time_total"
    return str(profiler.key_averages().table(sort_by=time, row_limit=14, max_name_column_width=60))


def ceiling(model: LlamaForCausalLM, prompts: int, length: int) -> float:
    """Return the seconds of one layer's matrix products and causal attention, times the layers."""
    config, device, dtype = model.config, str(model.device), model.dtype
    head = config.hidden_size // config.num_attention_heads
    kv = int(config.num_key_value_heads or config.num_attention_heads)
    hidden = torch.randn(prompts, length, config.hidden_size, device=device).to(dtype)
    inner = torch.randn(prompts, length, config.intermediate_size, device=device).to(dtype)
    query = torch.randn(prompts, config.num_attention_heads, length, head, device=device).to(dtype)
    key, value = (torch.randn(prompts, kv, length, head, device=device).to(dtype) for _ in range(2))
    layer: Any = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp

    def once() -> None:
        for linear in (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.o_proj,
            mlp.gate_proj,
            mlp.up_proj,
        ):
            linear(hidden)
        mlp.down_proj(inner)
        functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=kv != query.shape[1])

    with torch.inference_mode():
        once()
        return config.num_hidden_layers * min(_seconds(once, device) for _ in range(5))


def _seconds(work: Callable[[], Any], device: str) -> float:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
    began = perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return perf_counter() - began


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Measure shapes at lengths; a GPU takes larger ones."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="135m,7b" if cuda else "tiny,135m")
    parser.add_argument("--lengths", default="4096,16384,65536" if cuda else "2048")
    parser.add_argument(
        "--tokens", type=int, default=262144 if cuda else 8192, help="of prompts together, at least one"
    )
    parser.add_argument("--new-tokens", type=int, default=128, help="of each example")
    parser.add_argument("--compile", action="store_true", help="as `run --compile` does")
    parser.add_argument("--profile", action="store_true", help="also what a prefill's time goes to")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    bandwidth = memory.measure_speed(dtype, chosen.device).bandwidth
    for shape in chosen.shapes.split(","):
        model = build(shape, chosen.device, dtype)
        if chosen.compile:
            compile_layers(model)
        how = f"{shape}, {chosen.dtype}{', compiled' if chosen.compile else ''}"
        with use_fused_rope(model, chosen.compile):
            for length in map(int, chosen.lengths.split(",")):
                prompts = max(1, chosen.tokens // length)
                found = measure(model, prompts, length, chosen.new_tokens, bandwidth)
                share = found.prefill_ceiling / found.prefill
                keep(f"prefill of {shape}, {length} tokens, its matrix products alone", share)
                print(f"{how}: {found.line(chosen.new_tokens)}", flush=True)
                if chosen.profile:
                    print(profiled(model, prompts, length), flush=True)
        del model
        if cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
