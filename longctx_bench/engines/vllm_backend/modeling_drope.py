"""DroPE in vLLM: Llama and Qwen2 without positions, their softmax scaled, their queries and keys normalised.

The same weights and fields of ``config.json`` as :mod:`longctx_bench.methods.modeling_drope` reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

from longctx_bench.methods.modeling_drope import ATTENTION_TYPES


class ProjectionNorm(nn.Module):
    """RMSNorm over all heads of a projection together, of which each worker may hold a part.

    Args:
        size: of the whole projection (heads x head_dim).
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.parts = get_tensor_model_parallel_world_size()
        if size % self.parts:
            raise ValueError(f"{size} normalised channels cannot be split over {self.parts} devices")
        self.weight = nn.Parameter(torch.ones(size // self.parts))
        # Where vLLM looks for how a weight is read.
        setattr(self.weight, "weight_loader", self._load)  # noqa: B010 (no attribute that the type checker knows)

    def _load(self, own: nn.Parameter, whole: torch.Tensor) -> None:
        start = get_tensor_model_parallel_rank() * len(own)
        own.data.copy_(whole[start : start + len(own)])

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        """Normalise ``[tokens, own channels]``; in fp32, as Llama's own norm does."""
        wide = projected.float()
        squares = wide.pow(2).sum(dim=-1, keepdim=True)
        if self.parts > 1:
            squares = tensor_model_parallel_all_reduce(squares)
        return self.weight * (wide * torch.rsqrt(squares / self.size + self.eps)).to(projected.dtype)


class DropeAttention(LlamaAttention):  # type: ignore[misc]
    """Causal attention that rotates nothing."""

    scaling: float

    def _init_rotary_emb(self, config: Any, quant_config: Any) -> None:
        # Called between the projections and the attention layer, which takes its scale from here.
        self.scaling = getattr(config, "softmax_scale", None) or self.scaling
        queries, keys = ATTENTION_TYPES[getattr(config, "attention_type", "nope")]
        parts = get_tensor_model_parallel_world_size()
        if keys and self.total_num_kv_heads % parts:
            # Fewer key heads than devices: each would hold copies, and their squares would be counted twice.
            raise ValueError(f"{self.total_num_kv_heads} normalised key heads cannot be split over {parts} devices")
        eps = config.rms_norm_eps
        self.q_norm = ProjectionNorm(self.total_num_heads * self.head_dim, eps) if queries else None
        self.k_norm = ProjectionNorm(self.total_num_kv_heads * self.head_dim, eps) if keys else None

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attend over ``[tokens, hidden_size]``; the positions are accepted and not used."""
        projected, _ = self.qkv_proj(hidden_states)
        query, key, value = projected.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if self.q_norm is not None:
            query = self.q_norm(query)
        if self.k_norm is not None:
            key = self.k_norm(key)
        mixed, _ = self.o_proj(self.attn(query, key, value))
        return mixed  # type: ignore[no-any-return]


class DropeDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """A Llama layer around :class:`DropeAttention`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=DropeAttention)


class LlamaDropeForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """``llama_drope``, and a Llama whose positions are taken away and whose softmax is sharpened."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=DropeDecoderLayer)


class Qwen2DropeForCausalLM(LlamaDropeForCausalLM):
    """The same for Qwen2: a Llama whose query, key and value projections have a bias."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        vllm_config.model_config.hf_config.qkv_bias = True
        super().__init__(vllm_config=vllm_config, prefix=prefix)
