"""Fused kernels for what a model does between its matrix products: norms, sums and activation."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from longctx_bench.core.errors import UserError

_LAYER = "DecoderLayer"
"""How the classes of layers end."""
_FORMS = 64
"""Forms that a layer may be compiled in: with and without a mask or a cache, one row or several, one token or more.

Beyond its own limit of 8, torch would say so and go on uncompiled.
"""
_PARTS = ("RMSNorm", "MLP")
"""How the classes of modules end that are compiled by themselves, in attention and where there is no such layer."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile a model's layers but their attention, for any number of tokens; first passes take some seconds longer.

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
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
    inside: set[torch.nn.Module] = set()
    for module in model.modules():
        kind, attention = type(module).__name__, getattr(module, "self_attn", None)
        if kind.endswith(_LAYER) and isinstance(attention, torch.nn.Module):
            # Caches, masks and kernels of all kinds stand there, and torch would compile it again for each.
            attention.forward = torch.compiler.disable(attention.forward)
            inside |= {*module.modules()} - {*attention.modules()}
        elif not kind.endswith(_PARTS) or module in inside:
            continue
        module.compile(dynamic=True)


def _one_more(numbers: torch.Tensor) -> torch.Tensor:
    return numbers + 1
