"""Memory estimates: they set batch sizes and prefill chunks, and refuse what cannot fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from longctx_bench.core.errors import UserError
from longctx_bench.engines.base import MemoryEstimate, Speed
from longctx_bench.methods.rope_parameters import normalize_config

_BYTES = {"float32": 4, "bfloat16": 2}
_USABLE_SHARE = 0.85
"""Share of the free memory to plan with; the allocator and other programs take the rest."""
_CPU_BATCH_TOKENS = 16384
"""Larger batches decode no faster on a CPU."""
_CPU_SHARED_PREFIX_TOKENS = 65536
"""The same for prompts with a common prefix, which is prefilled once per batch."""
_CUDA_BATCH_TOKENS = 1048576
_MIN_PREFILL_TOKENS = 256
"""Prompt tokens of a forward pass, at least: where they do not fit, nothing does."""
_RESERVED_PREFILL_TOKENS = 8192
"""Prompt tokens of a forward pass that the cache leaves room for, where there is any."""
_COPY_BYTES = 2**30
"""Bytes to copy to time a GPU's memory: far more than its caches hold."""
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "could not create a primitive",
    "could not create a memory object",
)
"""Messages of torch's allocator and of oneDNN, which has no error class for it."""


def estimate(config: dict[str, Any], folder: Path, dtype: str, device: str) -> MemoryEstimate:
    """Estimate the memory of a checkpoint from its config.

    Raises:
        UserError: the config is not that of a Llama- or GPT-like model.
    """
    item_size = _BYTES[dtype]
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    if any(config.get(key) is None for key in needed):
        # Some models have other names for them (GPT-2).
        config = config | normalize_config(folder.name, config)
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
        weights=(parameters + embedding) * item_size,
        per_token=2 * layers * kv_heads * head_dim * item_size,
        # Residual stream, normed input, queries, keys and values with their rotated copies, and the MLP's three.
        per_prefill_token=(4 * hidden + 3 * (heads + 2 * kv_heads) * head_dim + 3 * inner) * item_size,
        available=free_memory(device),
        flops_per_token=2.0 * parameters,
        flops_per_pair=4.0 * layers * heads * head_dim,
        process=0 if device.startswith("cuda") else psutil.Process().memory_info().rss,
    )


def free_memory(device: str) -> int:
    """Return the bytes free on a device."""
    if device.startswith("cuda"):
        import torch

        # Memory that torch has reserved is free for torch.
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserve)
    return int(psutil.virtual_memory().available)


def batch_tokens(estimate: MemoryEstimate, device: str, shared_prefixes: bool = False) -> int:
    """Return how many tokens (prompts and new ones) to batch: as many as fit, and no more than are useful."""
    cpu = _CPU_SHARED_PREFIX_TOKENS if shared_prefixes else _CPU_BATCH_TOKENS
    cap = _CUDA_BATCH_TOKENS if device.startswith("cuda") else cpu
    usable = estimate.available * _USABLE_SHARE - estimate.weights
    return max(1, min(cap, int(usable / (estimate.per_token + estimate.per_prefill_token))))


def cache_token_budget(estimate: MemoryEstimate, longest: int, device: str) -> int:
    """Return how many tokens fit in the cache beside a prefill pass, and at least ``longest``, those of one request.

    Other programs may have taken memory since :func:`batch_tokens`. A smaller batch then costs less than short passes.
    """
    prefill_bytes = min(longest, _RESERVED_PREFILL_TOKENS) * estimate.per_prefill_token
    return max(longest, int((free_memory(device) * _USABLE_SHARE - prefill_bytes) / estimate.per_token))


def prefill_token_budget(estimate: MemoryEstimate, cached_tokens: int, device: str) -> int:
    """Return how many prompt tokens, of all rows, fit in a prefill pass beside ``cached_tokens`` in the cache."""
    usable = free_memory(device) * _USABLE_SHARE - cached_tokens * estimate.per_token
    return max(
        _MIN_PREFILL_TOKENS, int(usable / estimate.per_prefill_token) // _MIN_PREFILL_TOKENS * _MIN_PREFILL_TOKENS
    )


def measure_speed(dtype: Any, device: str) -> Speed:
    """Return the rates of a matrix product, of causal attention and of memory on a device; takes about a second.

    Attention is timed by itself: in bfloat16 some CPUs multiply matrices six times as fast as they attend. Memory is
    timed by a sum on a CPU and by copies on a GPU (which read and write): no sum keeps a large GPU busy.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    cuda = device.startswith("cuda")
    size = 8192 if cuda else 1024
    square = torch.rand(size, size, device=device).to(dtype)
    heads, tokens, head_dim = 8, 8192 if cuda else 2048, 64
    states = torch.rand(1, heads, tokens, head_dim, device=device).to(dtype)

    def seconds(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(4):
            started = perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            times.append(perf_counter() - started)
        return min(times)

    matmul = 2 * size**3 / seconds(lambda: square @ square)
    attention_time = seconds(lambda: scaled_dot_product_attention(states, states, states, is_causal=True))
    attention = 4 * heads * head_dim * tokens**2 / 2 / attention_time
    if cuda:
        source, target = torch.zeros(2, _COPY_BYTES, dtype=torch.uint8, device=device)
        return Speed(matmul, attention, 2 * _COPY_BYTES / seconds(lambda: target.copy_(source)))
    large = torch.rand(64, size, size).to(dtype)
    return Speed(matmul, attention, large.nbytes / seconds(large.sum))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error (CUDA and Python by type, CPU allocators by message)."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        message in str(error) for message in _OUT_OF_MEMORY
    )


def peak(device: str) -> int | None:
    """Return the peak memory in bytes: on a GPU of tensors since the last call, on a CPU of the process since it began.

    None on systems that do not report it.
    """
    if device.startswith("cuda"):
        import torch

        peak_bytes = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak_bytes
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
