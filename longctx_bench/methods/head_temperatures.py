"""Head-wise softmax temperatures: one factor on the logits of each head (Wang et al. 2024, arXiv 2404.12224)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

HeadGrid = tuple[tuple[float, ...], ...]
"""Temperatures ``[layers][heads]``."""

_Scale = Annotated[float, Field(gt=1, allow_inf_nan=False)]
_MAX_TEMPERATURE = 1e3


class HeadTemperatures(Spec):
    """Temperature of every attention head by extension factor; 1 up to the training context.

    Between two entries, and between 1 and the first, ln T is interpolated in ln s; beyond the last it is extrapolated
    with the slope of the last interval.
    """

    table: dict[_Scale, tuple[str, ...]] = Field(min_length=1)
    """By extension factor: one line per layer, with the temperatures of its heads, separated by spaces."""
    source: Literal["heads"] = "heads"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        grids = [_parse(lines) for lines in self.table.values()]
        if len({tuple(map(len, grid)) for grid in grids}) != 1:
            raise ValueError("table: all entries need the same layers and heads")
        return self

    @classmethod
    def from_grids(cls, grids: Mapping[float, Sequence[Sequence[float]]]) -> Self:
        """Return the table of temperatures ``[layers][heads]`` by scale; four decimals are kept."""
        return cls(
            table={
                scale: tuple(" ".join(f"{value:.4f}" for value in layer) for layer in grid)
                for scale, grid in grids.items()
            }
        )

    def at(self, scale: float) -> HeadGrid | None:
        """Return the temperatures at an extension factor; None up to the training context, where all are 1."""
        if scale <= 1.0:
            return None
        entries = sorted(self.table.items())
        first = _parse(entries[0][1])
        points = [(1.0, tuple((1.0,) * len(layer) for layer in first)), *((s, _parse(lines)) for s, lines in entries)]
        interval = next((pair for pair in pairwise(points) if scale <= pair[1][0]), (points[-2], points[-1]))
        (low, grid_low), (high, grid_high) = interval
        weight = math.log(scale / low) / math.log(high / low)
        return tuple(
            tuple(a * (b / a) ** weight for a, b in zip(layer_low, layer_high, strict=True))
            for layer_low, layer_high in zip(grid_low, grid_high, strict=True)
        )

    def mean_at(self, scale: float) -> float:
        """Return the geometric mean over all heads at an extension factor; 1 up to the training context."""
        grid = self.at(scale)
        return 1.0 if grid is None else geometric_mean(grid)


def _parse(lines: Sequence[str]) -> HeadGrid:
    grid = tuple(tuple(float(value) for value in line.split()) for line in lines)
    if not grid or not all(grid) or not all(0 < value < _MAX_TEMPERATURE for layer in grid for value in layer):
        raise ValueError(f"table: temperatures are numbers above 0 and below {_MAX_TEMPERATURE:g}, for every head")
    return grid


def geometric_mean(grid: HeadGrid) -> float:
    """Return the geometric mean over all heads."""
    logs = [math.log(value) for layer in grid for value in layer]
    return math.exp(sum(logs) / len(logs))


def query_modules(model: PreTrainedModel) -> list[Any]:
    """Return, per layer, the module whose output channels are the queries of all heads, ``[..., heads x head_dim]``.

    That is the norm of the whole query projection where there is one, else the projection.

    Raises:
        UserError: the queries of a layer come out of no such module.
    """
    from torch import nn

    modules: list[Any] = []
    layers = [module for name, module in model.named_modules() if name.endswith("self_attn")]
    for layer in layers:
        heads = model.config.num_attention_heads
        norm, projection = getattr(layer, "q_norm", None), getattr(layer, "q_proj", None)
        chosen = projection if norm is None or isinstance(norm, nn.Identity) else norm
        channels = getattr(getattr(chosen, "weight", None), "shape", (0,))[0]
        if chosen is None or channels != heads * getattr(layer, "head_dim", 0):
            break
        modules.append(chosen)
    if len(modules) != model.config.num_hidden_layers:
        raise UserError(
            f"a {model.config.model_type} has no separate query projection, or normalises each head: its heads cannot "
            f"have a temperature each"
        )
    return modules


def _per_channel(model: PreTrainedModel, grid: HeadGrid) -> list[Tensor]:
    """Return, per layer, the temperature of each query channel: ``[heads x head_dim]`` in fp32.

    Raises:
        UserError: the temperatures are those of another model.
    """
    import torch

    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    if len(grid) != layers or any(len(layer) != heads for layer in grid):
        raise UserError(
            f"the temperatures are those of {len(grid)} layers with {len(grid[0])} heads, the model has {layers} with "
            f"{heads}; run `longctx-bench calibrate --per-head` again"
        )
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads
    return [torch.tensor(layer, dtype=torch.float32).repeat_interleave(head_dim) for layer in grid]


@contextmanager
def scale_heads(model: PreTrainedModel, grid: HeadGrid | None) -> Iterator[None]:
    """Multiply the attention logits of each head by its temperature inside the block.

    The weights that make the queries are multiplied in place, so that every attention kernel, KV cache and CUDA graph
    takes part; afterwards they are what they were to the last bit. In bfloat16 a product is rounded, by at most 0.4 %.

    Raises:
        UserError: the model has no weights to scale by head, or another number of heads.
    """
    if grid is None:
        yield
        return
    import torch

    parameters = _query_parameters(model, grid)
    before = [parameter.detach().clone() for parameter, _ in parameters]
    try:
        fold_heads(model, grid)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), unscaled in zip(parameters, before, strict=True):
                parameter.copy_(unscaled)


def fold_heads(model: PreTrainedModel, grid: HeadGrid) -> None:
    """Multiply the weights that make the queries by their head's temperature, in place and for good.

    Raises:
        UserError: as :func:`scale_heads`.
    """
    import torch

    with torch.no_grad():
        for parameter, channels in _query_parameters(model, grid):
            factors = channels.to(parameter.device).reshape(-1, *[1] * (parameter.dim() - 1))
            parameter.copy_(parameter.float() * factors)


def _query_parameters(model: PreTrainedModel, grid: HeadGrid) -> list[tuple[Any, Tensor]]:
    """Return the weights and biases that make the queries, each with the temperatures of its rows."""
    return [
        (parameter, channels)
        for module, channels in zip(query_modules(model), _per_channel(model, grid), strict=True)
        for parameter in (module.weight, getattr(module, "bias", None))
        if parameter is not None
    ]
