"""DroPE models for vLLM: Llama and Qwen2 without RoPE, with a softmax scale and optional QK norm.

They read the same weights and ``config.json`` fields as :mod:`longctx_bench.methods.modeling_drope`.
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
    """RMSNorm over all heads of a projection jointly; the projection may be sharded by tensor parallelism.

    Args:
        size: channels of the whole projection (heads x head_dim).
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.tp_size = get_tensor_model_parallel_world_size()
        if size % self.tp_size:
            raise ValueError(f"{size} normalised channels cannot be split over {self.tp_size} devices")
        self.weight = nn.Parameter(torch.ones(size // self.tp_size))
        # vLLM calls this attribute to load the weight.
        setattr(self.weight, "weight_loader", self._load)  # noqa: B010 (no attribute that the type checker knows)

    def _load(self, parameter: nn.Parameter, loaded: torch.Tensor) -> None:
        start = get_tensor_model_parallel_rank() * len(parameter)
        parameter.data.copy_(loaded[start : start + len(parameter)])

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        """Normalise ``[tokens, channels of this rank]`` in fp32, as Llama's RMSNorm does."""
        upcast = projected.float()
        squares = upcast.pow(2).sum(dim=-1, keepdim=True)
        if self.tp_size > 1:
            squares = tensor_model_parallel_all_reduce(squares)
        return self.weight * (upcast * torch.rsqrt(squares / self.size + self.eps)).to(projected.dtype)


class DropeAttention(LlamaAttention):  # type: ignore[misc]
    """Causal attention without RoPE."""

    scaling: float

    def _init_rotary_emb(self, config: Any, quant_config: Any) -> None:
        # vLLM calls this before it creates the attention layer, which reads ``self.scaling``.
        self.scaling = getattr(config, "softmax_scale", None) or self.scaling
        queries, keys = ATTENTION_TYPES[getattr(config, "attention_type", "nope")]
        tp_size = get_tensor_model_parallel_world_size()
        if keys and self.total_num_kv_heads % tp_size:
            # Key heads would be replicated across ranks, and the all-reduce would count their squares more than once.
            raise ValueError(f"{self.total_num_kv_heads} normalised key heads cannot be split over {tp_size} devices")
        eps = config.rms_norm_eps
        self.q_norm = ProjectionNorm(self.total_num_heads * self.head_dim, eps) if queries else None
        self.k_norm = ProjectionNorm(self.total_num_kv_heads * self.head_dim, eps) if keys else None

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attend over ``[tokens, hidden_size]``; ``positions`` is part of vLLM's interface and unused."""
        projected, _ = self.qkv_proj(hidden_states)
        query, key, value = projected.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if self.q_norm is not None:
            query = self.q_norm(query)
        if self.k_norm is not None:
            key = self.k_norm(key)
        output, _ = self.o_proj(self.attn(query, key, value))
        return output  # type: ignore[no-any-return]


class DropeDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """A Llama decoder layer with :class:`DropeAttention`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=DropeAttention)


class LlamaDropeForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """``llama_drope`` checkpoints, and Llama checkpoints whose RoPE a method removes at run time."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=DropeDecoderLayer)


class Qwen2DropeForCausalLM(LlamaDropeForCausalLM):
    """The same for Qwen2: Llama with a bias in the query, key and value projections."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        vllm_config.model_config.hf_config.qkv_bias = True
        super().__init__(vllm_config=vllm_config, prefix=prefix)
