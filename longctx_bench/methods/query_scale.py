"""Query scale: an attention temperature that grows with a query's own position, as a switch of any method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import QueryScale
from longctx_bench.methods.nope import attention_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_MODEL_TYPES = (
    "llama", "llama_drope", "mistral", "mixtral", "olmo2", "qwen2", "qwen2_drope", "qwen2_moe", "qwen3", "qwen3_moe",
    "smollm3",
)  # fmt: skip
"""Where queries are the output of ``q_norm``, or of ``q_proj`` without one, with tokens in their second dimension."""


def log_n_factors(training_context: int, positions: torch.Tensor) -> torch.Tensor:
    """Return Su's factors max(1, ln(i + 1) / ln L) in fp32; exactly 1 within the training context L, and for padding.

    Args:
        training_context: tokens.
        positions: integers, any shape; any number for padding.
    """
    import torch

    grown = (positions.clamp(min=0) + 1).double().log() / math.log(training_context)
    return torch.where(positions >= training_context, grown, 1.0).float()


def query_factors(law: QueryScale, beta: float, training_context: int, positions: torch.Tensor) -> torch.Tensor:
    """Return the factors on queries in fp32; exactly 1 within the training context.

    Args:
        law: which one.
        beta: of ``llama4``.
        training_context: tokens.
        positions: integers, any shape; any number for padding.
    """
    import torch

    if law == "log-n":
        return log_n_factors(training_context, positions)
    contexts = torch.div(positions, training_context, rounding_mode="floor")
    return 1 + beta * torch.log1p(contexts.clamp(min=0).float())


@contextmanager
def scale_queries(model: PreTrainedModel, law: QueryScale, beta: float, training_context: int) -> Iterator[None]:
    """Multiply every layer's queries by the factor of their position inside the block.

    Positions are those that the model's rotary module is called with: of prompts in chunks, behind a cache or beside
    padding, too. Keys are left alone, so that caches stay valid. The rotation and any attention function, a method's
    own included, come after it.

    Raises:
        UserError: a model type whose queries are not known to come out of these modules.
    """
    if law == "none":
        yield
        return
    rotary = getattr(model.base_model, "rotary_emb", None)
    if model.config.model_type not in _MODEL_TYPES or rotary is None:
        raise UserError(
            f"query_scale {law} is not known to work on a {model.config.model_type} (on these it is: "
            f"{', '.join(_MODEL_TYPES)})"
        )
    factors: list[torch.Tensor] = []

    def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        factors[:] = [query_factors(law, beta, training_context, positions)]

    def scale(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        [each] = factors
        shape = (*each.shape, *[1] * (output.dim() - each.dim()))
        return output * each.view(shape).to(output.dtype)

    def forget(*_: Any) -> None:
        factors.clear()

    handles = [model.base_model.register_forward_pre_hook(forget)]
    handles.append(rotary.register_forward_pre_hook(remember, with_kwargs=True))
    try:
        for layer in attention_layers(model):
            handles.append(getattr(layer, "q_norm", layer.q_proj).register_forward_hook(scale))
        yield
    finally:
        for handle in handles:
            handle.remove()
