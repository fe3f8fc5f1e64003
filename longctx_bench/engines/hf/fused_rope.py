"""Fused rotary embedding: one kernel in place of the ten that transformers' function launches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

try:
    from longctx_bench.methods.kernels.rope import apply_rope
except ImportError:  # Triton comes with torch where there is one for the GPU.
    apply_rope = None  # type: ignore[assignment]

NAME = "apply_rotary_pos_emb"
"""The rotary function of transformers' Llama-like models, in the module of each architecture."""


@contextmanager
def use_fused_rope(model: PreTrainedModel, compiled: bool = False) -> Iterator[None]:
    """Replace the rotary function of a model's architecture by a fused kernel, for the duration of a block.

    On a GPU it is this project's own, with the same bits; elsewhere, if ``compiled``, one that torch compiles.
    """
    originals: dict[Any, Callable[..., Any]] = {}
    try:
        for namespace in {sys.modules[type(module).__module__] for module in model.modules()}:
            original = getattr(namespace, NAME, None)
            if original is None:
                continue
            if model.device.type == "cuda" and apply_rope is not None and is_llama_rope(original, model.device):
                fused = _with_kernel(original)
            elif compiled:
                fused = _compiled(original)
            else:
                continue
            originals[namespace] = original
            setattr(namespace, NAME, fused)
        yield
    finally:
        for namespace, original in originals.items():
            setattr(namespace, NAME, original)


@cache
def is_llama_rope(function: Callable[..., Any], device: torch.device) -> bool:
    """Whether a function is the rotation that the kernel computes: same bits on examples in fp32 and bf16."""
    if [*inspect.signature(function).parameters][:4] != ["q", "k", "cos", "sin"]:
        return False
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        shapes = ((2, 3, 5, 8), (2, 1, 5, 8), (1, 5, 8), (1, 5, 8))
        inputs = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
        if not all(map(torch.equal, function(*inputs), apply_rope(*inputs))):
            return False
    return True


@cache
def _with_kernel(original: Callable[..., Any]) -> Callable[..., Any]:
    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        states, tables = (q, k), (cos, sin)
        shaped = all(each.dim() == 4 and each.shape[2:] == cos.shape[1:] for each in states) and sin.shape == cos.shape
        dense = all(each.stride(-1) == 1 and each.dtype == q.dtype for each in (*states, *tables))
        # Another axis, a part of each head or tables of another dtype are left to the original function.
        if args or kwargs or not shaped or not dense or q.shape[-1] % 2:
            return original(q, k, cos, sin, *args, **kwargs)
        return apply_rope(q, k, cos, sin)

    return rotate


@cache
def _compiled(original: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(original, dynamic=True)
