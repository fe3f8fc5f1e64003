"""From a batch that an engine ran to the records that the store keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Example, Generation, LoglikelihoodResult, Request, SampleRecord
from longctx_bench.engines.base import Engine
from longctx_bench.metrics import Metric
from longctx_bench.models.variant import ModelUnderTest

_BINS = 32
"""Points of a loss curve by position."""


def continued(
    engine: Engine,
    batch: Sequence[Request],
    contestant: ModelUnderTest,
    measure: Metric,
    examples: Mapping[str, Example],
) -> list[SampleRecord]:
    """Let the engine go on writing, and score what it wrote."""

    def settled(example_id: str, text: str) -> bool:
        return measure.is_final(text, examples[example_id].references)

    finished = []
    for generation in engine.generate(batch, contestant, settled):
        example = examples[generation.example_id]
        value = measure.score(generation.text, example.references, example.classes)
        if measure.percent and not 0 <= value <= 1:
            raise UserError(
                f"metric '{measure.name}': gave {value:g} for an answer, and rates lie in [0, 1]; make it a "
                f"Metric(..., percent=False) if it is none"
            )
        finished.append(SampleRecord(_written(example, generation, measure.name, value), generation.seconds))
    return finished


def predicted(
    engine: Engine,
    batch: Sequence[Request],
    contestant: ModelUnderTest,
    measure: Metric,
    examples: Mapping[str, Example],
) -> list[SampleRecord]:
    """Let the engine predict the text itself; the score is the mean loss of a token in nats."""
    return [
        SampleRecord(_lost(examples[found.example_id], found, measure.name), found.seconds)
        for found in engine.loglikelihood(batch, contestant)
    ]


def _written(example: Example, generation: Generation, metric: str, value: float) -> dict[str, Any]:
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
        # A method that cuts prompts was given less than the document.
        record["document_tokens"] = example.n_tokens
    return record


def _lost(example: Example, found: LoglikelihoodResult, metric: str) -> dict[str, Any]:
    first = example.n_tokens - len(found.losses)
    width = max(1, -(-example.n_tokens // _BINS))
    bins: dict[int, list[float]] = {}
    for place, loss in enumerate(found.losses, first):
        bins.setdefault(place // width, []).append(loss)
    return {
        "id": example.id,
        "hash": example.hash,
        "score": fsum(found.losses) / len(found.losses),
        "metric": metric,
        "scored": len(found.losses),
        # Position of a bin's first token in the window, and the mean loss in the bin.
        "curve": [[index * width, round(fsum(losses) / len(losses), 5)] for index, losses in sorted(bins.items())],
        "prompt_tokens": example.n_tokens,
        "new_tokens": 0,
    }
