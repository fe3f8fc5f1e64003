"""The loss of text under a loaded model, without ever holding [tokens x vocabulary] logits."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import PreTrainedModel

_CHUNK = 1024
"""Positions whose logits are held at a time."""


@torch.inference_mode()
def token_losses(model: PreTrainedModel, ids: torch.Tensor, last: int | None = None) -> torch.Tensor:
    """Return the next-token loss at each position, in nats.

    Args:
        model: a causal language model.
        ids: token ids ``[rows, tokens]``.
        last: only the losses of so many tokens at the end are wanted; all of them when None.

    Returns:
        fp32 losses ``[rows, tokens - 1]`` (or the last ``last`` columns of them) on the CPU; entry t is the loss of
        token t + 1 given those before.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings")
    hidden = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    first = 0 if last is None else max(0, ids.shape[1] - 1 - last)
    hidden, ids = hidden[:, first:-1], ids[:, first:]
    parts = []
    for start in range(0, hidden.shape[1], _CHUNK):
        logits = head(hidden[:, start : start + _CHUNK]).float()
        wanted = ids[:, start + 1 : start + 1 + _CHUNK].to(logits.device)
        parts.append(functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").cpu())
    return torch.cat(parts, dim=1)
