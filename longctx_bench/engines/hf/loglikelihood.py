"""Log-likelihoods of given tokens, without ever holding [tokens x vocabulary] logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines.hf.attention_cpu import cpu_attention
from longctx_bench.engines.hf.padding import pad_token_ids

SHARED_FROM = 32
"""Prompt tokens from which one prefill for all continuations of a prompt is faster than whole rows."""
_CHUNK = 1024
"""Tokens whose logits are held at a time."""


@dataclass(frozen=True)
class SuffixScore:
    """How the last tokens of one row were predicted."""

    losses: torch.Tensor
    """Negative log-likelihoods: fp32 ``[scored tokens]`` on the CPU, in nats."""
    greedy: bool
    """Whether each of them was the most likely token."""


def require_unscaled_logits(model: PreTrainedModel) -> None:
    """Refuse models whose logits are not simply the output of their head: a loss without that would be wrong.

    Raises:
        UserError: the config scales or caps logits (Granite, Cohere, Gemma 2).
    """
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(f"{model.config.model_type}: has {name}; losses of such models are not supported yet")


def score_requests(model: PreTrainedModel, batch: Sequence[Request], kernels: bool = True) -> list[SuffixScore]:
    """Score the ``scored`` tokens at the end of each request; a long prefix that all share is prefilled once.

    Args:
        model: a causal language model.
        batch: requests.
        kernels: use this project's attention on a CPU.
    """
    ids, num_scored = [list(request.input_ids) for request in batch], [request.scored for request in batch]
    prefixes = {tuple(row[: len(row) - count]) for row, count in zip(ids, num_scored, strict=True)}
    # Sharing pays where most of each row is the prefix; elsewhere a cache and its mask cost more than they save.
    if len(batch) > 1 and len(prefixes) == 1 and len(next(iter(prefixes))) >= max(SHARED_FROM, *num_scored):
        continuations = [row[-count:] for row, count in zip(ids, num_scored, strict=True)]
        return score_continuations(model, next(iter(prefixes)), continuations, kernels)
    return score_suffixes(model, ids, num_scored)


@torch.inference_mode()
def score_suffixes(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], num_scored: Sequence[int]
) -> list[SuffixScore]:
    """Score the last tokens of each row, given all tokens before them.

    Rows of different lengths are padded on the right, where a causal model's tokens do not see the padding: no mask is
    needed, and every method attends as it does to the row alone.

    Args:
        model: a causal language model.
        rows: token ids.
        num_scored: tokens at the end of each row to score; fewer than the row has.
    """
    ids = pad_token_ids(rows)
    # The last token predicts nothing that is scored.
    hidden = model.base_model(input_ids=ids[:, :-1].to(model.device), use_cache=False).last_hidden_state
    predictions, targets = [], []
    for index, (row, count) in enumerate(zip(rows, num_scored, strict=True)):
        predictions.append(hidden[index, len(row) - 1 - count : len(row) - 1])
        targets.append(ids[index, len(row) - count : len(row)])
    return _score(model, predictions, targets)


@torch.inference_mode()
def score_continuations(
    model: PreTrainedModel, prefix: Sequence[int], continuations: Sequence[Sequence[int]], kernels: bool = True
) -> list[SuffixScore]:
    """Score several continuations of one prefix, which is prefilled once.

    Args:
        model: a causal language model.
        prefix: token ids, at least one.
        continuations: token ids, at least one each.
        kernels: use this project's attention on a CPU.
    """
    cache = DynamicCache(config=model.config)
    prefix_ids = pad_token_ids([prefix]).to(model.device)
    first = model.base_model(input_ids=prefix_ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1:]
    longest = max(len(tokens) for tokens in continuations)
    rest = first[:, :0].expand(len(continuations), -1, -1)
    if longest > 1:
        cache.batch_repeat_interleave(len(continuations))
        ids = pad_token_ids([tokens[:-1] for tokens in continuations])
        position_ids = torch.arange(len(prefix), len(prefix) + longest - 1).expand(len(continuations), -1)
        with cpu_attention(model) if kernels else nullcontext():
            rest = model.base_model(
                input_ids=ids.to(model.device),
                position_ids=position_ids.to(model.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
    predictions = [torch.cat([first[0], rest[row, : len(tokens) - 1]]) for row, tokens in enumerate(continuations)]
    return _score(model, predictions, [torch.tensor(list(tokens)) for tokens in continuations])


def _score(model: PreTrainedModel, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> list[SuffixScore]:
    """Score target tokens ``[scored]`` by hidden states ``[scored, hidden size]``, all rows together."""
    head = model.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings")
    hidden, target = torch.cat(predictions), torch.cat(targets).to(model.device)
    losses, is_greedy = [], []
    for start in range(0, len(target), _CHUNK):
        logits = head(hidden[start : start + _CHUNK]).float()
        chunk = target[start : start + _CHUNK]
        losses.append(functional.cross_entropy(logits, chunk, reduction="none").cpu())
        is_greedy.append((logits.argmax(dim=-1) == chunk).cpu())
    sizes = [len(tokens) for tokens in targets]
    by_row = zip(torch.cat(losses).split(sizes), torch.cat(is_greedy).split(sizes), strict=True)
    return [SuffixScore(loss, bool(greedy.all())) for loss, greedy in by_row]
