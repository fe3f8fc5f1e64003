"""How much memory a model takes at a length: to choose batches, to chunk the prefill, and to refuse in time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from longctx_bench.core.errors import UserError
from longctx_bench.engines.base import MemoryEstimate
from longctx_bench.methods.rope_parameters import standardised

_BYTES = {"float32": 4, "bfloat16": 2}
_SHARE = 0.85
"""Share of the free memory that is planned with; the allocator and other programs take the rest."""
_CPU_BATCH_TOKENS = 16384
"""Larger batches do not decode faster on a CPU."""
_CPU_ALIKE_TOKENS = 65536
"""Nor do they for prompts that begin alike, but all in a batch share one reading of that beginning."""
_CUDA_BATCH_TOKENS = 1048576
_LEAST_CHUNK = 256
"""Prompt tokens of a pass, at least: where they do not fit, nothing does."""
_COPIED = 2**30
"""Bytes that are copied to time a GPU's memory: far more than its caches hold."""
_FULL = ("can't allocate memory", "out of memory", "could not create a primitive", "could not create a memory object")
"""What torch's allocator and oneDNN say; oneDNN has no other words for it."""


def estimate(config: dict[str, Any], folder: Path, dtype: str, device: str) -> MemoryEstimate:
    """Derive a checkpoint's needs from its config and the size of its weight files."""
    width = _BYTES[dtype]
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    if any(config.get(key) is None for key in needed):
        # Others name them otherwise (GPT-2).
        config = config | standardised(folder.name, config)
    for key in needed:
        if config.get(key) is None:
            raise UserError(f"{folder.name}: config.json has no '{key}'; only models like Llama and GPT can be run")
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"):
        if isinstance(config.get(key), list):
            raise UserError(f"{folder.name}: config.json has '{key}' by layer; only Llama-like configs are supported")
    layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    parameters = layers * (2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * inner)
    embedding = int(config["vocab_size"]) * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return MemoryEstimate(
        weights=(parameters + embedding) * width,
        per_token=2 * layers * kv_heads * head_dim * width,
        # Residual stream, normed input, queries, keys and values with their rotated copies, and the MLP's three.
        per_prefill_token=(4 * hidden + 3 * (heads + 2 * kv_heads) * head_dim + 3 * inner) * width,
        available=free_memory(device),
        flops_per_token=2.0 * parameters,
        flops_per_pair=4.0 * layers * heads * head_dim,
        process=0 if device.startswith("cuda") else psutil.Process().memory_info().rss,
    )


def free_memory(device: str) -> int:
    """Return the bytes free on a device."""
    if device.startswith("cuda"):
        import torch

        # What torch holds in reserve is free for torch.
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserve)
    return int(psutil.virtual_memory().available)


def batch_tokens(footprint: MemoryEstimate, device: str, shared_prefixes: bool = False) -> int:
    """Return how many tokens (prompts and new ones) to batch: what fits, and no more than pays."""
    cpu = _CPU_ALIKE_TOKENS if shared_prefixes else _CPU_BATCH_TOKENS
    cap = _CUDA_BATCH_TOKENS if device.startswith("cuda") else cpu
    room = footprint.available * _SHARE - footprint.weights
    return max(1, min(cap, int(room / (footprint.per_token + footprint.per_prefill_token))))


def prefill_token_budget(footprint: MemoryEstimate, held: int, device: str) -> int:
    """Return for how many prompt tokens, all rows together, one pass of a prefill has memory beside ``held`` tokens."""
    room = free_memory(device) * _SHARE - held * footprint.per_token
    return max(_LEAST_CHUNK, int(room / footprint.per_prefill_token) // _LEAST_CHUNK * _LEAST_CHUNK)


def measure_speed(dtype: Any, device: str) -> tuple[float, float]:
    """Return (operations a second of a matrix product, bytes a second of memory) on a device, in about a second.

    Memory is timed by a sum on a CPU and by copies on a GPU, which count twice: no single sum keeps a large GPU busy.
    """
    import torch

    cuda = device.startswith("cuda")
    size = 8192 if cuda else 1024
    square = torch.rand(size, size, device=device).to(dtype)

    def seconds(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(4):
            started = perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            times.append(perf_counter() - started)
        return min(times)

    operations = 2 * size**3 / seconds(lambda: square @ square)
    if cuda:
        source, target = torch.zeros(2, _COPIED, dtype=torch.uint8, device=device)
        return operations, 2 * _COPIED / seconds(lambda: target.copy_(source))
    big = torch.rand(64, size, size).to(dtype)
    return operations, big.nbytes / seconds(big.sum)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a full memory from any other error: CUDA and Python have classes for it, the CPU's libraries sentences."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in _FULL)


def peak(device: str) -> int | None:
    """Return the most bytes held: on a GPU by tensors since this was last asked, on a CPU by the process in its life.

    None where the system does not say.
    """
    if device.startswith("cuda"):
        import torch

        most = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return most
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
