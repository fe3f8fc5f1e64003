"""Rotary frequencies of a method, computed by transformers from its config entries."""

from __future__ import annotations

from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.rope_parameters import FULL, is_unrotated


def inverse_frequencies(base: BaseModelInfo, method: Method, length: int) -> tuple[list[float], float]:
    """Return a method's inverse frequencies at one length, as transformers computes them from its config entries.

    Args:
        base: the base model's properties.
        method: one that changes the rotary frequencies, or leaves them alone.
        length: tokens, which the method derives its factor from.

    Returns:
        Radians per token for each pair of rotated dimensions, the fastest first; and the factor on cos and sin (1
        except for YaRN and LongRoPE).

    Raises:
        UserError: the method takes positions away, or cannot be applied to this base, or transformers does
            not know the rotation in the base's config.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    unchanged = {"rope_parameters": base.positions.rope, "max_position_embeddings": base.training_context}
    entries: dict[str, Any] = unchanged | method.model_overrides(base, length)
    rope = entries["rope_parameters"]
    if is_unrotated(rope):
        raise UserError(f"{type(method).__name__} on {base.name}: has no rotary frequencies")
    # Of the layers that a method changes, the part of each head that is rotated, as heads of their own.
    rope = {key: value for key, value in rope.get(FULL, rope).items() if key != "partial_rotary_factor"}
    entries["rope_parameters"] = rope
    dims = base.rotary_dim
    shape: dict[str, Any] = {"head_dim": dims, "hidden_size": 2 * dims, "num_attention_heads": 2}
    try:
        rotary: Any = LlamaRotaryEmbedding(LlamaConfig(**shape, **entries))
    except Exception as error:  # the config is untrusted
        raise UserError(
            f"{base.name}: config.json has rotary entries that transformers does not compute "
            f"({type(error).__name__}: {error!s:.200})"
        ) from error
    return rotary.inv_freq.double().tolist(), float(rotary.attention_scaling)
