"""Probe: how well virtual length approximates repeated tokens in a deep model; it is exact in a single layer only.

In one attention layer without positions, keys that occur r times equal keys whose logits are ln r higher. In a deep
model the copies of a token differ: the first attends to one copy of itself, the last to r, so that their outputs to the
next layer are not equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longctx_bench.benchmarks.base import IndexedBenchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import safe_name, write_json
from longctx_bench.engines.devices import resolve_device
from longctx_bench.engines.hf.engine import load_model
from longctx_bench.methods.nope import NoPE
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelVariant
from longctx_bench.registry import Registry
from longctx_bench.training.causal_attention import use_training_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAST = 64
"""Tokens at the end of a prompt, including the question, that are compared and not repeated."""
FIRST = 32
"""Tokens at its beginning that are not repeated."""


@dataclass(frozen=True)
class Agreement:
    """Means over prompts and their last :data:`LAST` tokens, against the prompt whose tokens were repeated."""

    factor: int
    hidden_states: tuple[float, ...]
    """Per layer: distance of the hidden states with the bias, relative to the distance without it."""
    divergence: float
    """KL divergence of the next-token distributions with the bias, nats."""
    divergence_without: float
    """The same without it: the plain prompt."""
    same_token: float
    """Share of tokens whose most likely successor is the same with the bias."""
    same_token_without: float


def agreement(model: PreTrainedModel, prompts: Sequence[Sequence[int]], factor: int) -> Agreement:
    """Compare a model without positions on prompts whose tokens are repeated ``factor`` times with virtual length.

    Args:
        model: an fp32 model without positions.
        prompts: token ids, each more than :data:`FIRST` + :data:`LAST`.
        factor: copies of each token in the middle.
    """
    distances, metrics = [], []
    with _training_attention(model):
        for ids in prompts:
            head, body, tail = ids[:FIRST], ids[FIRST:-LAST], ids[-LAST:]
            repeated = [*head, *(token for token in body for _ in range(factor)), *tail]
            bias = torch.zeros(1, len(ids), device=model.device)
            bias[:, FIRST:-LAST] = math.log(factor)
            expected, biased, plain = (
                _last(model, tokens, key_bias) for tokens, key_bias in ((repeated, None), (ids, bias), (ids, None))
            )
            distances.append([
                float((with_bias - truth).norm() / (without - truth).norm())
                for truth, with_bias, without in zip(expected[0], biased[0], plain[0], strict=True)
            ])  # fmt: skip
            metrics.append([
                *(_divergence(expected[1], other[1]) for other in (biased, plain)),
                *(float((expected[1].argmax(-1) == other[1].argmax(-1)).float().mean()) for other in (biased, plain)),
            ])  # fmt: skip
    layers = torch.tensor(distances).mean(dim=0).tolist()
    divergence, divergence_without, same, same_without = torch.tensor(metrics).mean(dim=0).tolist()
    return Agreement(factor, tuple(layers), divergence, divergence_without, same, same_without)


def probe_virtual_length(
    variant: ModelVariant, registry: Registry, factors: Sequence[int], n: int, seed: int, device: str, out: Path
) -> tuple[Path, list[Agreement]]:
    """Measure :func:`agreement` on niah prompts of the training context, and write it below a run's folder.

    Args:
        variant: a model without positions.
        registry: knows the task niah and its data.
        factors: how often tokens are repeated, each at least 2.
        n: prompts.
        seed: of the prompts.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        out: the run's folder.

    Returns:
        The JSON file's path and what it holds, one entry per factor.

    Raises:
        UserError: the model has positions, its context is too short, or weights or data are not available.
    """
    if not isinstance(variant.method, NoPE) or variant.method.checkpoint not in variant.model.checkpoints:
        raise UserError(f"{variant.name}: virtual length is for models trained without positions, such as drope-tiny")
    resolved = variant.resolve()
    folder, base = resolved.folder, resolved.base
    if base.training_context <= FIRST + LAST + 32:
        raise UserError(f"{variant.name}: a training context of {base.training_context} tokens is too short")
    encoder = PromptEncoder(load_tokenizer(folder))
    benchmark = registry.benchmark(registry.tasks["niah"])
    assert isinstance(benchmark, IndexedBenchmark)
    examples = [benchmark.example(encoder, base.training_context, 32, seed, index) for index in range(n)]
    prompts = [encoder.encode(example.prompt, example.answer_prefix) for example in examples]
    model = load_model(folder, "float32", resolve_device(device))
    results = [agreement(model, prompts, factor) for factor in factors]
    path = out / "probes" / "virtual-length" / f"{safe_name(variant.name)}.json"
    provenance_entry = {"at": provenance.now(), **provenance.environment()}
    write_json(path, {
        "model": variant.name, "base": base.name, "task": "niah", "n": n, "seed": seed, "last_tokens": LAST,
        "factors": [asdict(result) for result in results], "made": provenance_entry,
    })  # fmt: skip
    return path, results


@contextmanager
def _training_attention(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    use_training_attention(model, "nope")
    try:
        yield
    finally:
        model.config._attn_implementation = before


@torch.inference_mode()
def _last(
    model: PreTrainedModel, ids: Sequence[int], bias: torch.Tensor | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the last tokens' hidden states after each layer and their log-probabilities."""
    extra: dict[str, Any] = {} if bias is None else {"key_bias": bias}
    tokens = torch.tensor([ids], device=model.device)
    output = model(tokens, use_cache=False, output_hidden_states=True, logits_to_keep=LAST, **extra)
    states = [state[0, -LAST:] for state in output.hidden_states[1:]]
    return states, output.logits[0].float().log_softmax(dim=-1)


def _divergence(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected.exp() * (expected - actual)).sum(dim=-1).mean())
