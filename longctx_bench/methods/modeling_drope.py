"""Sakana AI's published DroPE format, loaded natively: ``model_type: llama_drope | qwen2_drope``.

Their repositories ship remote code written for transformers 4.56; under transformers 5 it never fills the
KV cache of the QK-norm variants. These classes read the same ``config.json`` and the same weight names,
need no remote code, and are registered with transformers' Auto classes on import. Source of the format:
the configuration and weights of ``SakanaAI/SmolLM-360M-DroPE`` and ``SakanaAI/Llama-2-7b-hf-DroPE``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from longctx_bench.core.errors import UserError
from longctx_bench.methods.nope import nope_rope_parameters

ATTENTION_TYPES = {
    "nope": (False, False),
    "qk_norm_nope": (True, True),
    "q_norm_nope": (True, False),
    "k_norm_nope": (False, True),
}
"""attention_type -> (queries are normalised, keys are normalised)."""


def _set_drope_fields(config: Any, attention_type: str, softmax_scale: float | None) -> None:
    """Set the DroPE fields of a config and rope_parameters without rotation.

    Raises:
        UserError: the attention type is not one of the four published ones.
    """
    if attention_type not in ATTENTION_TYPES:
        raise UserError(f"config.json: attention_type '{attention_type}' is not one of {', '.join(ATTENTION_TYPES)}")
    config.attention_type = attention_type
    config.softmax_scale = softmax_scale
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
    config.rope_parameters = nope_rope_parameters(theta)


class LlamaDropeConfig(LlamaConfig):
    """A Llama without positions; ``softmax_scale`` is absolute and replaces 1 / sqrt(head_dim)."""

    model_type = "llama_drope"

    def __init__(self, attention_type: str = "nope", softmax_scale: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _set_drope_fields(self, attention_type, softmax_scale)


class Qwen2DropeConfig(Qwen2Config):
    """A Qwen2 without positions; fields as in :class:`LlamaDropeConfig`."""

    model_type = "qwen2_drope"

    def __init__(self, attention_type: str = "nope", softmax_scale: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _set_drope_fields(self, attention_type, softmax_scale)


class DropeAttention(nn.Module):
    """Causal attention without positions, optionally with normalised queries and keys.

    The norm is an RMSNorm over the whole projection (heads x head_dim) before the split into heads. Weight
    names are those of a Llama or Qwen2 attention layer, plus ``q_norm.weight`` and ``k_norm.weight``.
    """

    def __init__(self, config: Any, layer_idx: int, qkv_bias: bool, output_bias: bool) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.softmax_scale or self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        queries = config.num_attention_heads * self.head_dim
        keys = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=output_bias)
        norm_queries, norm_keys = ATTENTION_TYPES[config.attention_type]
        self.q_norm = LlamaRMSNorm(queries, config.rms_norm_eps) if norm_queries else nn.Identity()
        self.k_norm = LlamaRMSNorm(keys, config.rms_norm_eps) if norm_keys else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend over ``[batch, tokens, hidden_size]``; ``position_embeddings`` are ignored."""
        query = self._heads(self.q_norm(self.q_proj(hidden_states)))
        key = self._heads(self.k_norm(self.k_proj(hidden_states)))
        value = self._heads(self.v_proj(hidden_states))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.o_proj(output.flatten(start_dim=2)), weights

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_dim).transpose(1, 2)


class LlamaDropeForCausalLM(LlamaForCausalLM):
    """Llama with :class:`DropeAttention` in every layer."""

    config_class = LlamaDropeConfig

    def __init__(self, config: LlamaDropeConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = DropeAttention(config, index, config.attention_bias, config.attention_bias)
        self.post_init()  # type: ignore[no-untyped-call]


class Qwen2DropeForCausalLM(Qwen2ForCausalLM):
    """Qwen2 with :class:`DropeAttention` in every layer."""

    config_class = Qwen2DropeConfig

    def __init__(self, config: Qwen2DropeConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = DropeAttention(config, index, qkv_bias=True, output_bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


DROPE_MODEL_TYPES: dict[str, tuple[type[PreTrainedConfig], type]] = {
    "llama_drope": (LlamaDropeConfig, LlamaDropeForCausalLM),
    "qwen2_drope": (Qwen2DropeConfig, Qwen2DropeForCausalLM),
}

for _model_type, (_config, _model) in DROPE_MODEL_TYPES.items():
    AutoConfig.register(_model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
