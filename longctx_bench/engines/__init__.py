"""Engines by name; each is imported when it is asked for."""

from __future__ import annotations

from longctx_bench.engines.base import Engine
from longctx_bench.errors import UserError


def make_engine(name: str, device: str = "auto", dtype: str = "auto", batch_tokens: int | None = None) -> Engine:
    """Return an engine ready to load checkpoints.

    Args:
        name: ``hf`` or ``echo``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        batch_tokens: tokens a batch; from the free memory when None.

    Raises:
        UserError: no such engine, or it cannot run here.
    """
    if name == "echo":
        from longctx_bench.engines.echo import EchoEngine

        return EchoEngine(batch_tokens)
    if name == "hf":
        from longctx_bench.engines.hf import HFEngine

        return HFEngine(device, dtype, batch_tokens)
    raise UserError(f"--engine {name}: choose hf or echo")
