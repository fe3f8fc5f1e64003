"""Cost estimates for ``--dry-run``: tokens, time and memory per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import HubSource, Source
from longctx_bench.core.types import NATURAL
from longctx_bench.engines.base import EngineInfo, MemoryEstimate, Speed
from longctx_bench.models.checkpoint import checkpoint_folder, read_config
from longctx_bench.runner.plan import PlannedCell

_EFFICIENCY = 0.5
"""Fraction of the measured matmul rate that prefill reaches, and of the memory bandwidth that decode reaches; attention
reaches all of its measured rate."""
_DECODE_BATCH = 4
"""Average decode batch size."""


@dataclass(frozen=True)
class CellEstimate:
    """The estimated cost of a cell."""

    planned: PlannedCell
    tokens: int | None
    """Prompt and reserved new tokens of all examples; None if only the data can tell."""
    seconds: float | None
    """If every example uses all its new tokens; None if unknown."""
    memory: int | None
    """Peak bytes for one prompt; batches use the free memory beyond it."""
    refusal: UserError | None = None
    """Why the method cannot run on its base: the error that the run would raise."""


def estimate(cells: Sequence[PlannedCell], engine: EngineInfo) -> list[CellEstimate]:
    """Estimate each cell from its model's shape and a one-second measurement of this machine.

    Raises:
        UserError: a checkpoint cannot be fetched.
    """
    speed: Speed | None = None
    estimates = []
    for planned in cells:
        tokens = planned.strategy.num_tokens(planned.n, planned.cell.length)
        folder = _config_folder(planned.variant.source)
        if refusal := _refusal(planned, folder):
            estimates.append(CellEstimate(planned, tokens, None, None, refusal))
            continue
        footprint = engine.estimate_memory(folder)
        if footprint is None or tokens is None:
            estimates.append(CellEstimate(planned, tokens, None, None))
            continue
        speed = speed or engine.measure_speed()
        seconds = 0.0 if planned.done else _seconds(planned, footprint, speed)
        memory = footprint.process + footprint.peak(planned.cell.length, chunk=planned.cell.length)
        estimates.append(CellEstimate(planned, tokens, seconds, memory))
    return estimates


def _config_folder(source: Source) -> Path:
    """Return a folder with the checkpoint's config.json, without downloading the weights."""
    if isinstance(source, HubSource):
        return fetch(source.model_copy(update={"file": "config.json"})).parent
    return checkpoint_folder(source)


def _refusal(planned: PlannedCell, folder: Path) -> UserError | None:
    """Return what the method says of this base at this length, without the weights."""
    if planned.done or planned.cell.length == NATURAL:
        return None
    try:
        planned.variant.method.model_overrides(planned.variant.base(read_config(folder)), planned.cell.length)
    except UserError as error:
        return error
    except Exception as error:
        if not planned.spec.code:
            raise
        return UserError(f"{type(error).__name__}: {error} (raised by {planned.raised_by(error)})")
    return None


def _seconds(planned: PlannedCell, footprint: MemoryEstimate, speed: Speed) -> float:
    length, new = planned.cell.length, planned.task.max_new_tokens
    products = length * footprint.flops_per_token / speed.matmul
    attention = length**2 / 2 * footprint.flops_per_pair / speed.attention
    decode = new * (footprint.weights / _DECODE_BATCH + length * footprint.per_token) / speed.bandwidth
    return planned.n * ((products + decode) / _EFFICIENCY + attention)
