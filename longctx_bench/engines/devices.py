"""Where a model runs and in which precision, by the names that users give."""

from __future__ import annotations

import torch

from longctx_bench.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(wanted: str) -> str:
    """Return a device's name for ``auto`` or one that is there.

    Raises:
        UserError: torch has no such device here.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {wanted}: torch sees no CUDA device here; use --device cpu")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {wanted}: not to be had here; use cpu, cuda or cuda:N") from error
    return wanted


def resolve_dtype(wanted: str, device: str) -> str:
    """Return a key of :data:`DTYPES`; ``auto`` is bfloat16 where the device computes in it.

    Raises:
        UserError: no such precision.
    """
    if wanted == "auto":
        native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else _cpu_has_bf16()
        return "bfloat16" if native else "float32"
    if wanted not in DTYPES:
        raise UserError(f"--dtype {wanted}: choose auto, {' or '.join(DTYPES)}")
    return wanted


def _cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 in hardware; elsewhere bf16 is emulated and slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
