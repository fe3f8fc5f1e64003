"""Model FLOPs utilisation (MFU): model FLOPs per token against the measured matmul rate of the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def matmul_rate(device: torch.device) -> float:
    """Measure a dense square product in FLOP/s: bf16 8192^3 on a GPU, fp32 1024^3 elsewhere (random numbers)."""
    on_gpu = device.type == "cuda"
    size, dtype, repeats = (8192, torch.bfloat16, 20) if on_gpu else (1024, torch.float32, 3)
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    for _ in range(3):
        left @ right
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        left @ right
    _wait(device)
    return 2 * size**3 * repeats / (time.perf_counter() - began)


def flops_per_token(model: PreTrainedModel, length: int) -> float:
    """Return forward and backward FLOPs per token: 6 per matrix weight, and causal attention counted at half.

    The output embedding counts as a matrix, tied or not; the input embedding is a lookup and does not.
    """
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    weights = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in embeddings)
    head = model.get_output_embeddings().weight
    if id(head) in embeddings:
        weights += head.numel()
    config = model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or length
    attended = sum(min(window, length / 2) if kind == "sliding_attention" else length / 2 for kind in kinds)
    return float(6 * weights + 12 * width * attended)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
