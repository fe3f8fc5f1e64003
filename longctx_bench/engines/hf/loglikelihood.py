"""How likely a model finds given tokens, without ever holding [tokens x vocabulary] logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines.hf.attention_cpu import cpu_attention
from longctx_bench.engines.hf.padding import pad_token_ids

SHARED_FROM = 32
"""Prompt tokens from which reading a prompt once for all its continuations is faster than side by side."""
_CHUNK = 1024
"""Positions whose logits are held at a time."""


@dataclass(frozen=True)
class SuffixScore:
    """How the last tokens of one row were predicted."""

    losses: torch.Tensor
    """fp32 ``[scored]`` on the CPU, nats."""
    greedy: bool
    """True when each of them was the likeliest token."""


def require_unscaled_logits(model: PreTrainedModel) -> None:
    """Refuse models whose logits are more than their head's output: a loss without that would be wrong.

    Raises:
        UserError: the config scales or caps logits (Granite, Cohere, Gemma 2).
    """
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(f"{model.config.model_type}: has {name}; losses of such models are not supported yet")


def score_requests(model: PreTrainedModel, batch: Sequence[Request]) -> list[SuffixScore]:
    """Predict the ``scored`` tokens at each request's end; what all requests share and is long is read once."""
    ids, scored = [list(request.input_ids) for request in batch], [request.scored for request in batch]
    prefixes = {tuple(row[: len(row) - count]) for row, count in zip(ids, scored, strict=True)}
    # Sharing pays where most of each row is the same; a cache and its mask cost more than they save elsewhere.
    if len(batch) > 1 and len(prefixes) == 1 and len(next(iter(prefixes))) >= max(SHARED_FROM, *scored):
        return score_continuations(
            model, next(iter(prefixes)), [row[-count:] for row, count in zip(ids, scored, strict=True)]
        )
    return score_suffixes(model, ids, scored)


@torch.inference_mode()
def score_suffixes(model: PreTrainedModel, rows: Sequence[Sequence[int]], scored: Sequence[int]) -> list[SuffixScore]:
    """Predict the last tokens of each row from all that stand before them.

    Rows of different lengths are padded on the right, where a causal model's tokens cannot see the padding, so that
    no mask is needed and every method's attention is that of a row alone.

    Args:
        model: a causal language model.
        rows: token ids.
        scored: how many tokens at each row's end are wanted; less than the row has.
    """
    ids = pad_token_ids(rows)
    # The last token predicts nothing that is asked for.
    hidden = model.base_model(input_ids=ids[:, :-1].to(model.device), use_cache=False).last_hidden_state
    wanted, targets = [], []
    for place, (row, count) in enumerate(zip(rows, scored, strict=True)):
        wanted.append(hidden[place, len(row) - 1 - count : len(row) - 1])
        targets.append(ids[place, len(row) - count : len(row)])
    return _judged(model, wanted, targets)


@torch.inference_mode()
def score_continuations(
    model: PreTrainedModel, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[SuffixScore]:
    """Predict several continuations of one prefix, which is read once.

    Args:
        model: a causal language model.
        prefix: token ids, at least one.
        continuations: token ids, at least one each.
    """
    cache = DynamicCache(config=model.config)
    start = pad_token_ids([prefix]).to(model.device)
    first = model.base_model(input_ids=start, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    longest = max(len(tokens) for tokens in continuations)
    rest = first[:, :0].expand(len(continuations), -1, -1)
    if longest > 1:
        cache.batch_repeat_interleave(len(continuations))
        ids = pad_token_ids([tokens[:-1] for tokens in continuations])
        positions = torch.arange(len(prefix), len(prefix) + longest - 1).expand(len(continuations), -1)
        with cpu_attention(model):
            rest = model.base_model(
                input_ids=ids.to(model.device),
                position_ids=positions.to(model.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
    wanted = [torch.cat([first[0], rest[place, : len(tokens) - 1]]) for place, tokens in enumerate(continuations)]
    return _judged(model, wanted, [torch.tensor(list(tokens)) for tokens in continuations])


def _judged(model: PreTrainedModel, wanted: list[torch.Tensor], targets: list[torch.Tensor]) -> list[SuffixScore]:
    """Compare predictions (hidden states ``[scored, width]``) with the tokens that came, all rows together."""
    head = model.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings")
    hidden, target = torch.cat(wanted), torch.cat(targets).to(model.device)
    losses, likeliest = [], []
    for start in range(0, len(target), _CHUNK):
        logits = head(hidden[start : start + _CHUNK]).float()
        part = target[start : start + _CHUNK]
        losses.append(functional.cross_entropy(logits, part, reduction="none").cpu())
        likeliest.append((logits.argmax(dim=-1) == part).cpu())
    sizes = [len(tokens) for tokens in targets]
    found = zip(torch.cat(losses).split(sizes), torch.cat(likeliest).split(sizes), strict=True)
    return [SuffixScore(loss, bool(right.all())) for loss, right in found]
