"""Batch scoring: run a batch on an engine and build the stored records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Example, Generation, LoglikelihoodResult, Request, SampleRecord
from longctx_bench.engines.base import Engine
from longctx_bench.metrics import Metric
from longctx_bench.models.variant import ModelUnderTest

_NUM_BINS = 32
"""Points of a loss curve by position."""


def score_generations(
    engine: Engine,
    batch: Sequence[Request],
    model: ModelUnderTest,
    metric: Metric,
    examples: Mapping[str, Example],
) -> list[SampleRecord]:
    """Generate greedily and score the texts."""

    def is_final(example_id: str, text: str) -> bool:
        return metric.is_final(text, examples[example_id].references)

    finished = []
    for generation in engine.generate(batch, model, is_final):
        example = examples[generation.example_id]
        value = metric.score(generation.text, example.references, example.classes)
        if metric.percent and not 0 <= value <= 1:
            raise UserError(
                f"metric '{metric.name}': gave {value:g} for a generation, but rates are in [0, 1]; use Metric(..., "
                f"percent=False) for other scores"
            )
        finished.append(SampleRecord(_generation_record(example, generation, metric.name, value), generation.seconds))
    return finished


def score_loglikelihoods(
    engine: Engine,
    batch: Sequence[Request],
    model: ModelUnderTest,
    metric: Metric,
    examples: Mapping[str, Example],
) -> list[SampleRecord]:
    """Score the log-likelihood of the text itself: mean loss per token, in nats."""
    return [
        SampleRecord(_loss_record(examples[losses.example_id], losses, metric.name), losses.seconds)
        for losses in engine.loglikelihood(batch, model)
    ]


def _generation_record(example: Example, generation: Generation, metric: str, value: float) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": example.id,
        "hash": example.hash,
        "score": value,
        "metric": metric,
        "text": generation.text,
        "references": list(example.references),
        "depths": list(example.depths),
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": generation.new_tokens,
        "finish_reason": generation.finish_reason,
    }
    if example.words is not None:
        record["words"] = example.words
    if example.n_tokens != generation.prompt_tokens:
        # The method truncates prompts.
        record["document_tokens"] = example.n_tokens
    return record


def _loss_record(example: Example, losses: LoglikelihoodResult, metric: str) -> dict[str, Any]:
    first = example.n_tokens - len(losses.losses)
    width = max(1, -(-example.n_tokens // _NUM_BINS))
    bins: dict[int, list[float]] = {}
    for position, loss in enumerate(losses.losses, first):
        bins.setdefault(position // width, []).append(loss)
    return {
        "id": example.id,
        "hash": example.hash,
        "score": fsum(losses.losses) / len(losses.losses),
        "metric": metric,
        "scored": len(losses.losses),
        # Position of a bin's first token in the window, and the mean loss in the bin.
        "curve": [[index * width, round(fsum(values) / len(values), 5)] for index, values in sorted(bins.items())],
        "prompt_tokens": example.n_tokens,
        "new_tokens": 0,
    }
