"""``python -m bench.banded_attention``: what the methods by distance cost, beside plain causal attention.

In one attention layer: time of a prompt and of one more token, and the memory that a prompt takes beyond its queries,
keys and values. On a GPU the fused way is compared, in the precision of the model, with the one that goes block by
block. In whole layers (``--layers``): time of a prompt and of one more token, on a GPU a replayed CUDA graph, through a
model of Qwen3-1.7B's width, as the transformers engine runs it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from longctx_bench.engines.hf.cuda_graph import CudaGraphDecoder
from longctx_bench.engines.hf.engine import apply_method
from longctx_bench.engines.hf.kv_cache import KVCache
from longctx_bench.engines.hf.model_runner import ModelRunner
from longctx_bench.methods import METHODS, banded_attention
from longctx_bench.methods.banded import BandedAttention
from longctx_bench.methods.banded_attention import BandedRotation
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.models.variant import ModelUnderTest

NAMES = ("self-extend", "rerope", "leaky-rerope", "jet-long", "string", "lm-infinite", "streaming-llm", "dca")
HEADS, KEY_HEADS, WIDTH, HIDDEN, FFN = 16, 8, 128, 2048, 6144
"""Of Qwen3-1.7B."""
_REPEATS = 5


def measure(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Return the shortest time of a call in ms, and on a GPU its peak memory in MiB."""
    run()
    times = []
    for _ in range(_REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if device.type == "cuda" else float("nan")
    return 1000 * min(times), peak


def attention(name: str, tokens: int, context: int) -> Callable[..., torch.Tensor]:
    """Return a method's attention for a length, as the layers of a model call it."""
    method = METHODS[name]()
    assert isinstance(method, BandedAttention)
    base = BaseModelInfo("layer", context, {"model_type": "llama"})
    frequencies = (1e6 ** (-torch.arange(0, WIDTH, 2).double() / WIDTH)).tolist()
    module: Any = SimpleNamespace(config=object())
    rotation = BandedRotation(method.bands(base, tokens), frequencies, 1.0, context if method.log_n else None)
    banded_attention._ACTIVE[id(module.config)] = banded_attention._Active(rotation)
    return lambda q, k, v: banded_attention.banded_attention(module, q, k, v, None)[0]


def print_whole_layers(names: list[str], tokens: int, context: int, layers: int, device: torch.device) -> None:
    """Print the times of a prompt and of a token through a model of some layers, without a method and with each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, head_dim=WIDTH, vocab_size=1024, max_position_embeddings=context,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(device, torch.bfloat16).eval()
    runner = ModelRunner(model, frozenset())
    ids = torch.randint(config.vocab_size, (1, tokens), device=device)
    base = BaseModelInfo("layers", context, config.to_dict())

    length = tokens + 1 + _REPEATS

    def prefill() -> KVCache:
        cache = KVCache(model.config, length)
        runner.forward(cache, ids, None, logits_to_keep=1)
        return cache

    print(f"\n{layers} whole layers, {tokens} tokens; ms a prompt, MiB, times plain, ms a token, times plain")
    plain: tuple[float, float] | None = None
    for name in ("rope", *names):
        with apply_method(model, ModelUnderTest(base, METHODS[name](), length), length), torch.inference_mode():
            prompt, peak = measure(prefill, device)
            cache = prefill()
            if device.type == "cuda":
                filled = torch.ones(1, tokens, dtype=torch.bool, device=device)
                token, _ = measure(CudaGraphDecoder(model, cache, filled, [0], 1 + _REPEATS).step, device)
            else:
                token, _ = measure(partial(runner.forward, cache, ids[:, :1], None, 1), device)
        plain = plain or (prompt, token)
        ratios = prompt / plain[0], token / plain[1]
        print(f"{name:14} {prompt:9.2f} {peak:9.1f} {ratios[0]:9.2f} {token:9.3f} {ratios[1]:9.2f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=4096, help="training context")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--layers", type=int, default=0, help="also time this many whole layers")
    options = parser.parse_args(arguments)
    device, tokens = torch.device(options.device), options.tokens
    query, key, value = (
        torch.randn(1, heads, tokens, WIDTH, device=device, dtype=torch.bfloat16)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)

    print(f"{tokens} tokens, training context {options.context}; ms a prompt, MiB, ms a token, difference between ways")
    with torch.inference_mode():
        for name in ("plain", *options.methods.split(",")):
            attend = plain if name == "plain" else attention(name, tokens, options.context)
            prompt, peak = measure(partial(attend, query, key, value), device)
            token, _ = measure(partial(attend, query[:, :, -1:], key, value), device)
            apart = 0.0
            if name != "plain" and device.type == "cuda":
                fused = attend(query, key, value)
                with patch.object(banded_attention, "_FUSED_FROM", tokens + 1):
                    by_block = attention(name, tokens, options.context)(query, key, value)
                apart = float((fused - by_block).abs().max())
            print(f"{name:14} {prompt:9.2f} {peak:9.1f} {token:9.3f} {apart:9.1e}", flush=True)
    if options.layers:
        print_whole_layers(options.methods.split(","), tokens, options.context, options.layers, device)


if __name__ == "__main__":
    main(sys.argv[1:])
