"""Engines by name; each is imported when it is asked for."""

from __future__ import annotations

from longctx_bench.engines.base import Engine
from longctx_bench.errors import UserError


def make_engine(
    name: str, device: str = "auto", dtype: str = "auto", batch_tokens: int | None = None, tensor_parallel: int = 1
) -> Engine:
    """Return an engine ready to load checkpoints.

    Args:
        name: ``hf``, ``vllm`` or ``echo``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        batch_tokens: tokens a batch; from the free memory when None.
        tensor_parallel: devices that share each layer; vllm alone.

    Raises:
        UserError: no such engine, or it cannot run here.
    """
    if tensor_parallel != 1 and name != "vllm":
        raise UserError(f"--tensor-parallel: --engine {name} runs on one device; use --engine vllm")
    if name == "echo":
        from longctx_bench.engines.echo import EchoEngine

        return EchoEngine(batch_tokens)
    if name == "hf":
        from longctx_bench.engines.hf import HFEngine

        return HFEngine(device, dtype, batch_tokens)
    if name == "vllm":
        from longctx_bench.engines.vllm import VLLMEngine

        return VLLMEngine(device, dtype, batch_tokens, tensor_parallel)
    raise UserError(f"--engine {name}: choose hf, vllm or echo")
