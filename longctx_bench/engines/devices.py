"""Devices and dtypes by the names that users give."""

from __future__ import annotations

import torch

from longctx_bench.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: str) -> str:
    """Return the name of an available device; ``auto`` is CUDA where there is a GPU.

    Raises:
        UserError: torch does not have this device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not available on this machine; use cpu, cuda or cuda:N") from error
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """Return a key of :data:`DTYPES`; ``auto`` is bfloat16 where the device computes in it.

    Raises:
        UserError: no such dtype.
    """
    if dtype == "auto":
        native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else _cpu_has_bf16()
        return "bfloat16" if native else "float32"
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose auto, {' or '.join(DTYPES)}")
    return dtype


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; elsewhere bf16 is emulated and slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
