"""The rotary frequencies that a method's config entries stand for."""

from __future__ import annotations

from typing import Any

from longctx_bench.errors import UserError
from longctx_bench.methods.base import Base, Method


def inverse_frequencies(base: Base, method: Method, length: int) -> tuple[list[float], float]:
    """Return a method's inverse frequencies at one length, as transformers computes them from its config entries.

    Args:
        base: names head width and rotary base.
        method: one that changes the rotary frequencies, or leaves them alone.
        length: tokens, which the method derives its factor from.

    Returns:
        Radians a token for each of the head_dim / 2 pairs of dimensions, the fastest first; and the factor that cos
        and sin are multiplied with (1 but for YaRN and LongRoPE).

    Raises:
        UserError: the method takes positions away, or cannot be applied to this base.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain: dict[str, Any] = {
        "rope_parameters": {"rope_type": "default", "rope_theta": base.rope_theta},
        "max_position_embeddings": base.original_length,
    }
    entries = plain | method.model_overrides(base, length)
    if entries["rope_parameters"].get("partial_rotary_factor") == 0.0:
        raise UserError(f"{type(method).__name__} on {base.name}: has no rotary frequencies")
    shape: dict[str, Any] = {"head_dim": base.head_dim, "hidden_size": 2 * base.head_dim, "num_attention_heads": 2}
    rotary: Any = LlamaRotaryEmbedding(LlamaConfig(**shape, **entries))
    return rotary.inv_freq.double().tolist(), float(rotary.attention_scaling)
