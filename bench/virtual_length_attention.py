"""``python -m bench.virtual_length_attention``: three ways to add virtual length's bias to causal attention, on a GPU.

Forward and backward pass of one layer, without the bias and with it: by two dimensions more of queries and keys (what
training does, :func:`longctx_bench.training.causal_attention.with_key_bias`), by FlexAttention's score modification,
and by a mask of floats.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from longctx_bench.training.causal_attention import causal_attention

SHAPES = {"tiny": (256, 5, 5, 512, 64), "135m": (16, 9, 3, 2048, 64)}
"""name -> (sequences, heads, key heads, tokens, head dimension) of a micro-batch."""
_WARM_UP = 5


def milliseconds(name: str, repeats: int) -> dict[str, float]:
    """Return the time of a forward and backward pass by way, in ms."""
    sequences, heads, key_heads, length, width = SHAPES[name]
    query, key, value = (
        torch.randn(sequences, each, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for each in (heads, key_heads, key_heads)
    )
    bias = torch.rand(sequences, length, device="cuda") * math.log(16)
    gradient = torch.randn(sequences, length, heads, width, device="cuda", dtype=torch.bfloat16)
    module = torch.nn.Module()
    ours = torch.compile(causal_attention)
    flex = torch.compile(flex_attention)
    causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cuda")
    mask = torch.full((length, length), -torch.inf, device="cuda").triu(1)

    def by_flex() -> torch.Tensor:
        def raised(*place: torch.Tensor) -> torch.Tensor:
            score, sequence, _head, _query, position = place
            return score + bias[sequence, position]

        out = flex(query, key, value, score_mod=raised, block_mask=causal, enable_gqa=heads != key_heads)
        return out.transpose(1, 2)

    def by_mask() -> torch.Tensor:
        keys, values = (each.repeat_interleave(heads // key_heads, dim=1) for each in (key, value))
        whole = (mask + bias[:, None, None, :]).to(query.dtype)
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=whole).transpose(1, 2)

    scaling = width**-0.5
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "no bias": lambda: ours(module, query, key, value, None, scaling=scaling)[0],
        "two dimensions more": lambda: ours(module, query, key, value, None, scaling=scaling, key_bias=bias)[0],
        "FlexAttention": by_flex,
        "float mask": by_mask,
    }
    return {way: _time(attend, gradient, repeats) for way, attend in ways.items()}


def _time(attend: Callable[[], torch.Tensor], gradient: torch.Tensor, repeats: int) -> float:
    began = 0.0
    for step in range(-_WARM_UP, repeats):
        if step == 0:
            torch.cuda.synchronize()
            began = time.perf_counter()
        attend().backward(gradient)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats * 1e3


def main() -> int:
    """Measure the shapes named on the command line, or all of them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.virtual_length_attention", description=__doc__)
    parser.add_argument("shape", nargs="*", metavar="SHAPE", help=" ".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=30)
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.shape) - set(SHAPES))
    if unknown or not torch.cuda.is_available():
        print(f"error: unknown shape {unknown[0]}" if unknown else "error: needs a GPU", file=sys.stderr)
        return 2
    for name in chosen.shape or SHAPES:
        times = milliseconds(name, chosen.repeats)
        for way, value in times.items():
            print(f"{name}, {way}: {value:.3f} ms, {value / times['no bias']:.2f} of no bias", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
