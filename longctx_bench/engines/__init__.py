"""Engines by name; each is imported when it is asked for."""

from __future__ import annotations

from longctx_bench.engines.base import Engine, EngineFacts
from longctx_bench.engines.servers import Server
from longctx_bench.errors import UserError


def make_engine(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    server: Server | None = None,
    tensor_parallel: int = 1,
    compiled: bool = False,
) -> Engine:
    """Return an engine ready to load checkpoints.

    Args:
        name: ``hf``, ``vllm``, ``openai`` or ``echo``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        batch_tokens: tokens a batch; from the free memory when None.
        server: what ``openai`` asks.
        tensor_parallel: devices that share each layer; vllm alone.
        compiled: fuse what lies between matrix products; hf alone.

    Raises:
        UserError: no such engine, or it cannot run here.
    """
    if tensor_parallel != 1 and name != "vllm":
        raise UserError(f"--tensor-parallel: --engine {name} runs on one device; use --engine vllm")
    if compiled and name != "hf":
        raise UserError(f"--compile: goes with --engine hf; {name} has kernels of its own")
    if name == "openai":
        from longctx_bench.engines.openai import OpenAIEngine

        if server is None:
            raise UserError("--engine openai needs --base-url, such as http://localhost:8000")
        if (device, dtype, batch_tokens) != ("auto", "auto", None):
            raise UserError("--engine openai: device, dtype and batches are the server's; set them there")
        return OpenAIEngine(server)
    if server is not None:
        raise UserError(f"--base-url: goes with --engine openai, not with {name}")
    if name == "echo":
        from longctx_bench.engines.echo import EchoEngine

        return EchoEngine(batch_tokens)
    if name == "hf":
        from longctx_bench.engines.hf import HFEngine

        return HFEngine(device, dtype, batch_tokens, compiled)
    if name == "vllm":
        from longctx_bench.engines.vllm import VLLMEngine

        return VLLMEngine(device, dtype, batch_tokens, tensor_parallel)
    raise UserError(f"--engine {name}: choose hf, vllm, openai or echo")


def require_server(engine: EngineFacts) -> None:
    """Ask whether the server of an engine that has one is there; to be known before prompts are written for it.

    Raises:
        UserError: it cannot be reached, or does not have the model.
    """
    if engine.name == "openai":
        from longctx_bench.engines.openai import OpenAIEngine

        assert isinstance(engine, OpenAIEngine)
        engine.contact()
