"""Attention weights of a prompt's last token, in every head, without ever holding a [tokens x tokens] matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from longctx_bench.core.errors import UserError
from longctx_bench.methods.attention_override import override_attention

IMPLEMENTATION = "longctx_bench_last_token"
_CHANGES_WEIGHTS = ("softcap", "s_aux", "position_bias")
"""Arguments of attention functions with which the weights are no plain softmax."""


@torch.inference_mode()
def last_token_attention(model: PreTrainedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the attention weights of a prompt's last token.

    The prompt goes through the model with sdpa, whose memory is linear in its length; in addition, the last query of
    each layer is multiplied with all keys, scaled and rotated as in the model.

    Args:
        model: a causal language model with a method applied.
        ids: the prompt.

    Returns:
        ``[layers, heads, tokens]`` in fp32; each head's row sums to 1.

    Raises:
        UserError: the model's attention is not a plain softmax over all tokens (ALiBi, sliding windows, soft caps).
    """
    rows: list[torch.Tensor] = []
    with _record(model, rows):
        model.base_model(torch.tensor([list(ids)], device=model.device), use_cache=False)
    if len(rows) != model.config.num_hidden_layers:
        raise _unsupported(model, "does not let its attention be recorded")
    return torch.stack(rows).cpu().numpy()


@contextmanager
def _record(model: PreTrainedModel, rows: list[torch.Tensor]) -> Iterator[None]:
    config = model.config
    implementation = config._attn_implementation
    if implementation != "sdpa":
        raise _unsupported(model, f"attends by '{implementation}', which its method brought")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        raise _unsupported(model, "has layers that attend to a window only")

    def recording(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, scaling: float | None = None, **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        if attention_mask is not None or any(kwargs.get(name) is not None for name in _CHANGES_WEIGHTS):
            raise _unsupported(model, "masks or bends its attention")
        rows.append(_row(query, key, scaling))
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)

    with override_attention(model, IMPLEMENTATION, recording):
        yield


def _row(query: torch.Tensor, key: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Return ``[heads, tokens]`` for queries ``[1, heads, tokens, d]`` and keys ``[1, key heads, tokens, d]``."""
    last = query[0, :, -1].float()
    groups = last.shape[0] // key.shape[1]
    # Heads of a group share their keys: repeating the keys for each of them would cost as much as the model.
    grouped = last.view(key.shape[1], groups, -1)
    scores = torch.einsum("kgd,ktd->kgt", grouped, key[0].float()).flatten(0, 1)
    return torch.softmax(scores * (last.shape[-1] ** -0.5 if scaling is None else scaling), dim=-1)


def _unsupported(model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"{model.config.model_type}: {why}; the attention probe takes models whose layers all attend to the whole "
        f"prompt by a plain softmax (rope, pi, ntk, yarn, llama3, longrope, nope, drope)"
    )
