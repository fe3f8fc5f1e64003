"""Rotating queries and keys by one kernel, where transformers' own function for it takes ten."""

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
    from longctx_bench.engines.hf.kernels.rope import rotated
except ImportError:  # Triton comes with torch where there is one for the GPU.
    rotated = None  # type: ignore[assignment]

NAME = "apply_rotary_pos_emb"
"""What transformers' Llama-like models call their rotation, in the module of each architecture."""


@contextmanager
def use_fused_rope(model: PreTrainedModel, compiled: bool = False) -> Iterator[None]:
    """Let a model rotate by one kernel inside, where its architecture has a function for it.

    On a GPU it is one of the project's own, which gives the same bits; elsewhere, if asked for, one torch compiles.
    """
    before: dict[Any, Callable[..., Any]] = {}
    try:
        for home in {sys.modules[type(module).__module__] for module in model.modules()}:
            own = getattr(home, NAME, None)
            if own is None:
                continue
            if model.device.type == "cuda" and rotated is not None and as_llama(own, model.device):
                other = _by_kernel(own)
            elif compiled:
                other = _compiled(own)
            else:
                continue
            before[home] = own
            setattr(home, NAME, other)
        yield
    finally:
        for home, own in before.items():
            setattr(home, NAME, own)


@cache
def as_llama(rotation: Callable[..., Any], device: torch.device) -> bool:
    """Tell whether a function is the rotation that the kernel computes, by every bit of two examples."""
    if [*inspect.signature(rotation).parameters][:4] != ["q", "k", "cos", "sin"]:
        return False
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        shapes = ((2, 3, 5, 8), (2, 1, 5, 8), (1, 5, 8), (1, 5, 8))
        made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
        if not all(map(torch.equal, rotation(*made), rotated(*made))):
            return False
    return True


@cache
def _by_kernel(own: Callable[..., Any]) -> Callable[..., Any]:
    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any) -> Any:
        states, tables = (q, k), (cos, sin)
        shaped = all(each.dim() == 4 and each.shape[2:] == cos.shape[1:] for each in states) and sin.shape == cos.shape
        dense = all(each.stride(-1) == 1 and each.dtype == q.dtype for each in (*states, *tables))
        # Another axis, a part of a head or tables in another precision: that is what the model's own function is for.
        if more or named or not shaped or not dense or q.shape[-1] % 2:
            return own(q, k, cos, sin, *more, **named)
        return rotated(q, k, cos, sin)

    return rotate


@cache
def _compiled(own: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(own, dynamic=True)
