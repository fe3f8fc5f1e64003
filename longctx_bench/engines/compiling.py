"""Fused kernels for what a model does between its matrix products: norms, rotation and activation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from longctx_bench.errors import UserError

_PARTS = ("RMSNorm", "MLP")
"""How the classes of modules that are compiled end; of a whole layer, torch compiles no more than these."""
_ROTATION = "apply_rotary_pos_emb"
"""What transformers' Llama-like models call their rotation, in the module of each architecture."""


def compile_parts(model: PreTrainedModel) -> None:
    """Compile a model's norms and MLPs for any number of tokens; the first passes take some seconds longer.

    Numbers change in their last bits: intermediate results are not rounded to the model's precision.

    Raises:
        UserError: torch cannot compile on this machine.
    """
    try:
        torch.compile(_one_more)(torch.ones(2, device=model.device))
    except Exception as error:
        # Whatever is missing, a C compiler, its headers or Triton, torch has another class of error for it.
        said = " ".join(str(error).split())
        raise UserError(f"--compile: torch cannot compile here ({said:.160}); run without it") from error
    for module in model.modules():
        if type(module).__name__.endswith(_PARTS):
            module.compile(dynamic=True)


@contextmanager
def compiled_rotation(model: PreTrainedModel) -> Iterator[None]:
    """Let a model rotate queries and keys by one kernel inside, where its architecture has a function for it."""
    home = sys.modules[type(model).__module__]
    own = getattr(home, _ROTATION, None)
    if own is None:
        yield
        return
    setattr(home, _ROTATION, _compiled(own))
    try:
        yield
    finally:
        setattr(home, _ROTATION, own)


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


def _one_more(numbers: torch.Tensor) -> torch.Tensor:
    return numbers + 1
