"""Banded attention: methods that map positions differently by distance, in one exact attention.

For a query at position i, the keys up to it are divided into bands of neighbouring positions, such as a window of near
keys and all those before it. Each band has a map of query positions and one of key positions, and a logit is that of
RoPE at the mapped positions. All bands share one softmax. Keys in no band are not attended to.

The model itself rotates nothing (its config is that of a model without positions), so that the KV cache holds keys as
they are; the attention function in ``banded_attention.py`` rotates them by band.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo, Capability, Method
from longctx_bench.methods.nope import nope_rope_parameters
from longctx_bench.methods.override_validation import Change
from longctx_bench.methods.rope_parameters import FULL

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from longctx_bench.methods.banded_attention import BandedRotation

    PositionMap = Callable[[torch.Tensor], torch.Tensor]
    """From positions (int64, of any shape) to others of the same shape, whole or not. With a map that reads numbers
    on the host (``int(...)``) or copies some from there (``torch.tensor(...)``), decoding is not captured in a CUDA
    graph."""

MODEL_TYPES = frozenset({
    "apertus", "arcee", "bitnet", "flex_olmo", "gemma", "granite", "granitemoe", "hyperclovax", "llama", "minimax_m2",
    "mistral", "mixtral", "olmo", "olmo2", "olmoe", "phi3", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "solar_open",
    "starcoder2",
})  # fmt: skip
"""Model types that rotate whole heads, as Llama does, right before they attend, and do nothing else by position.

A test compares each of them with one band of all keys, which is its own attention.
"""
_LENGTH_DEPENDENT = ("dynamic", "longrope")


def unchanged(position: torch.Tensor) -> torch.Tensor:
    """Return positions as they are."""
    return position


@dataclass(frozen=True)
class Band:
    """Keys that a query attends to by the same maps of positions."""

    first: PositionMap
    """Position of the first key, by the query's; what is below 0 counts as 0."""
    last: PositionMap
    """Position of the last key, by the query's; what is behind the query counts as the query's own."""
    query: PositionMap = unchanged
    """Where RoPE rotates a query to."""
    key: PositionMap = unchanged
    """Where RoPE rotates a key to."""


def near_band(window: int) -> Band:
    """Return the band of the ``window`` nearest keys, the query's own included, at their true positions."""
    return Band(first=lambda i: i - (window - 1), last=unchanged)


def far_band(window: int, query: PositionMap = unchanged, key: PositionMap = unchanged) -> Band:
    """Return the band of all keys at a distance of ``window`` or more."""
    return Band(first=lambda i: i * 0, last=lambda i: i - window, query=query, key=key)


class BandedAttention(Method):
    """Base class of methods that are bands of distance; a subclass defines :meth:`bands` and :meth:`exact_up_to`."""

    changes: ClassVar[frozenset[Change]] = frozenset({"rotary_pairs"})
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"banded_attention"})

    log_n: bool = False
    """Multiply the query at position i by max(1, ln(i + 1) / ln(training context)) (Su 2021)."""
    attention_factor: float = Field(default=1.0, gt=0)
    """Multiplies cos and sin, as YaRN's."""

    @model_validator(mode="after")
    def _one_query_scale(self) -> Self:
        if self.log_n and self.query_scale != "none":
            raise ValueError(
                f"log_n and query_scale '{self.query_scale}' would both scale the queries: set log_n to false or "
                "leave the other out"
            )
        return self

    @abstractmethod
    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        """Return the bands, which must not overlap.

        Raises:
            UserError: the parameters do not fit the base model.
        """

    @abstractmethod
    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        """Return the longest input, in tokens, whose positions :meth:`bands` leaves as they are."""

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        require_whole_rotation(base, type(self).component_id())
        self.bands(base, length)
        if self._is_base(base, length):
            return {}
        return {"rope_parameters": nope_rope_parameters(base.rope_theta), "max_position_embeddings": length}

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        rotation = self.rotation(base, length)
        if rotation is None:
            yield
            return
        from longctx_bench.methods.banded_attention import use_banded_attention

        with use_banded_attention(model, rotation):
            yield

    def rotation(self, base: BaseModelInfo, length: int) -> BandedRotation | None:
        """Return what attention does to positions; None where the base's own attention is kept."""
        method = self.at(base, length)
        if method._is_base(base, length):
            return None
        from longctx_bench.methods.banded_attention import BandedRotation
        from longctx_bench.methods.rope_frequencies import inverse_frequencies
        from longctx_bench.methods.rope_scaling import RoPE

        frequencies, factor = inverse_frequencies(base, RoPE(), base.training_context)
        log_base = base.training_context if method.log_n else None
        return BandedRotation(method.bands(base, length), frequencies, factor * method.attention_factor, log_base)

    def _is_base(self, base: BaseModelInfo, length: int) -> bool:
        """Whether nothing is changed at this length, so that the base's own attention is kept, to the last bit."""
        unscaled = self.attention_factor == 1 and (not self.log_n or length <= base.training_context)
        return unscaled and length <= self.exact_up_to(base, length)


def tokens_within(method: Method, base: BaseModelInfo, tokens: int | None, share: float, name: str = "window") -> int:
    """Return a parameter in tokens, by default a share of the training context.

    Raises:
        UserError: it is longer than the training context.
    """
    num_tokens = max(1, round(base.training_context * share)) if tokens is None else tokens
    if num_tokens > base.training_context:
        raise UserError(
            f"{base.name}: {type(method).component_id()}'s {name} of {num_tokens} tokens is longer than the training "
            f"context of {base.training_context}"
        )
    return num_tokens


def require_whole_rotation(base: BaseModelInfo, method: str) -> None:
    """Check that a model rotates whole heads, in all layers, by frequencies that do not depend on the length.

    Raises:
        UserError: it does not, or it is not known to.
    """
    positions = base.positions
    reason = None
    if positions.pairs == 0:
        reason = "it has no rotary positions left"
    elif 2 * positions.pairs != positions.head_dim:
        reason = f"it rotates only {2 * positions.pairs} of the {positions.head_dim} dimensions of a head"
    elif positions.nested is not None or positions.window is not None or positions.layer_types - {FULL}:
        reason = "some of its layers attend to a window alone"
    elif positions.rope["rope_type"] in _LENGTH_DEPENDENT:
        reason = f"its own scaling ('{positions.rope['rope_type']}') depends on the length"
    elif positions.kind not in MODEL_TYPES:
        reason = (
            f"a {positions.kind} is none of the model types that this is tested with (baselines/README.md lists them)"
        )
    if reason is not None:
        raise UserError(f"{base.name}: {method} cannot rotate its queries and keys by distance: {reason}")
