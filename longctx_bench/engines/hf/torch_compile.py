"""torch.compile of decoder layers: fuses norms, residual sums and activations."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from longctx_bench.core.errors import UserError

_LAYER = "DecoderLayer"
"""Suffix of the class names of layers."""
_RECOMPILE_LIMIT = 64
"""Variants of a compiled layer: with and without a mask or a cache, one row or several, one token or more.

Beyond its default limit of 8, torch warns and runs uncompiled.
"""
_SUBMODULES = ("RMSNorm", "MLP")
"""Suffixes of the class names of modules that are compiled by themselves, in attention and outside of such layers."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile a model's layers except their attention, for any number of tokens; the first passes take some seconds.

    Results change in their last bits: intermediate results are not rounded to the model's dtype.

    Raises:
        UserError: torch cannot compile on this machine.
    """
    try:
        torch.compile(_increment)(torch.ones(2, device=model.device))
    except Exception as error:
        # torch has another error class for each thing that may be missing: a C compiler, its headers, Triton.
        message = " ".join(str(error).split())
        raise UserError(f"--compile: torch cannot compile here ({message:.160}); run without it") from error
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    compiled: set[torch.nn.Module] = set()
    for module in model.modules():
        class_name, attention = type(module).__name__, getattr(module, "self_attn", None)
        if class_name.endswith(_LAYER) and isinstance(attention, torch.nn.Module):
            # Caches, masks and kernels differ there, and torch would recompile for each of them.
            attention.forward = torch.compiler.disable(attention.forward)
            compiled |= {*module.modules()} - {*attention.modules()}
        elif not class_name.endswith(_SUBMODULES) or module in compiled:
            continue
        module.compile(dynamic=True)


def _increment(numbers: torch.Tensor) -> torch.Tensor:
    return numbers + 1
