"""The attention of :mod:`longctx_bench.methods.banded`: rotation by band, and one softmax over all bands.

:func:`make_tables` and :func:`attend` work for any engine; the rest connects them to models of transformers.
Of each band only the keys between a query's first and last one are read, so that the work is that of causal attention;
no matrix of all logits is made, so that memory is linear in the tokens. Prompts on a GPU take fused kernels
(:mod:`longctx_bench.methods.banded_prefill`); others go block by block. Bands are merged by the log-sum-exps of their
logits, as one softmax over all. One new token per row is decoded as :mod:`longctx_bench.methods.banded_decoding` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from longctx_bench.core.errors import UserError
from longctx_bench.methods.attention_override import override_attention
from longctx_bench.methods.banded_decoding import DecodingTables, attend_one_query, make_decoding_tables
from longctx_bench.methods.banded_prefill import Window, as_window, attend_to_bands, block_mask, flash_supports
from longctx_bench.methods.query_scale import log_n_factors

try:
    from longctx_bench.methods.kernels.rope import apply_rope
except ImportError:  # Triton comes with torch where there is one for the GPU.
    apply_rope = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

    from longctx_bench.methods.banded import Band

IMPLEMENTATION = "longctx_bench_banded"
_MAX_LOGITS = 2**24
"""Logits of a block of queries that are in memory at a time: 64 MiB in fp32."""
_MIN_BLOCK, _MAX_BLOCK = 16, 128
"""Queries in a block: keys that only some of them attend to are read by all."""
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""torch's flash attention on a CPU, which also returns the log-sum-exp of each query's logits."""
_FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor)
"""Functions that make a tensor of numbers on the host."""
_FUSED_FROM = 128
"""New tokens of a pass from which a GPU takes fused kernels."""


@dataclass(frozen=True)
class BandedRotation:
    """What a method does to positions."""

    bands: tuple[Band, ...]
    frequencies: Sequence[float]
    """Radians per token for each pair of dimensions, ``[head_dim / 2]``."""
    factor: float = 1.0
    """Factor on cos and sin."""
    log_base: int | None = None
    """Queries at position i are multiplied by max(1, ln(i + 1) / ln log_base); None: they are not."""


@dataclass(frozen=True)
class _BandTables:
    """A band for the tokens of one forward pass; ``rows`` is 1 where all rows have the same positions."""

    first: torch.Tensor
    last: torch.Tensor
    """Slots of the first and the last key of each query, int64 ``[rows, new]`` on the CPU."""
    query: tuple[torch.Tensor, torch.Tensor]
    """cos and sin, ``[rows, 1, new, head_dim]``."""
    key: tuple[torch.Tensor, torch.Tensor]
    """cos and sin of the slots in ``span``, ``[rows, 1, tokens, head_dim]``."""
    span: slice
    """Slots of all keys of the band."""
    fused: Window | BlockMask | None = None
    """Which keys of the span are the band's; None where no fused kernel is taken."""


@dataclass(frozen=True)
class Tables:
    """All bands for the tokens of one forward pass, whose layers share them."""

    mask: torch.Tensor | None
    shape: tuple[int, int, torch.dtype]
    """New tokens, all tokens, and the model's precision."""
    bands: tuple[_BandTables, ...]
    """Empty where ``decoding`` is given."""
    query_scale: torch.Tensor | None
    """``[rows, 1, new, 1]``."""
    decoding: DecodingTables | None = None
    """Where each row has one new token."""


class _Active:
    """A rotation in use by a model, and the tables of its latest forward pass."""

    def __init__(self, rotation: BandedRotation) -> None:
        self.rotation = rotation
        self._tables: Tables | None = None

    def tables(self, query: torch.Tensor, total: int, mask: torch.Tensor | None, is_first_layer: bool) -> Tables:
        """Return the tables of a forward pass, made in its first layer."""
        shape = (query.shape[2], total, query.dtype)
        # A captured step has the same mask each time, and other tokens in it.
        is_new = is_first_layer and mask is not None
        if is_new or self._tables is None or self._tables.mask is not mask or self._tables.shape != shape:
            self._tables = None
            self._tables = make_tables(self.rotation, shape, mask, query.device)
        return self._tables


_ACTIVE: dict[int, _Active] = {}
"""By the id of a model's config, which all its layers hold."""


@contextmanager
def use_banded_attention(model: PreTrainedModel, rotation: BandedRotation) -> Iterator[None]:
    """Attend by bands inside the block, with a model whose own rotation is switched off."""
    key = id(model.config)
    previous = _ACTIVE.get(key)
    with override_attention(model, IMPLEMENTATION, banded_attention, padding_mask):
        _ACTIVE[key] = _Active(rotation)
        try:
            yield
        finally:
            if previous is None:
                del _ACTIVE[key]
            else:
                _ACTIVE[key] = previous


class _NothingFromHost(TorchFunctionMode):
    """Raises where a function takes a tensor that is on the host, or makes one of numbers that are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FROM_HOST or any(isinstance(each, torch.Tensor) and not each.is_meta for each in args):
            raise RuntimeError(f"{func.__name__} copies from the host")
        return func(*args, **(kwargs or {}))


def supports_capture(model: PreTrainedModel) -> bool:
    """Whether a decoding step by bands can be captured: no map of theirs moves numbers between GPU and host."""
    active = _ACTIVE.get(id(model.config))
    if active is None or model.config._attn_implementation != IMPLEMENTATION:
        return False
    positions = torch.empty(1, 1, dtype=torch.long, device="meta")
    try:
        with _NothingFromHost():
            for band in active.rotation.bands:
                for position_map in (band.first, band.last, band.query, band.key):
                    position_map(positions)
    # Anything that asks a tensor without values for one raises, by errors of several types.
    except Exception:  # noqa: BLE001
        return False
    return True


def padding_mask(**arguments: Any) -> torch.Tensor | None:
    """Return which slots hold tokens, bool ``[rows, 1, 1, all tokens]``; None where all do.

    That attention is causal is known; a mask of [new tokens x all tokens] is never made.

    Raises:
        UserError: tokens of a row are apart, or the model restricts its attention in another way.
    """
    from transformers.masking_utils import causal_mask_function

    if arguments.get("mask_function", causal_mask_function) is not causal_mask_function:
        raise UserError("banded attention is causal over all tokens: it takes no sliding window and no packed prompts")
    mask: torch.Tensor | None = arguments.get("attention_mask")
    if mask is None or bool(mask.all()):
        return None
    filled = mask.bool()
    # True where a run of tokens begins.
    begins = filled & ~torch.cat([torch.zeros_like(filled[:, :1]), filled[:, :-1]], dim=1)
    if filled.shape[-1] != arguments["kv_length"] or bool((begins.sum(dim=1) > 1).any()):
        raise UserError("banded attention reads rows of neighbouring tokens: the attention mask leaves gaps in them")
    return filled[:, None, None]


def banded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend by the bands of the method that the model is under.

    Args:
        module: the layer's attention.
        query: ``[rows, heads, new tokens, head_dim]``, not rotated.
        key: ``[rows, key heads, all tokens, head_dim]``, not rotated.
        value: of the same shape.
        attention_mask: as :func:`padding_mask` returns it.
        scaling: factor on the logits.
        kwargs: what other attention functions need.

    Returns:
        ``[rows, new tokens, heads, head_dim]``, and None.
    """
    unsupported = [name for name in ("sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]
    if unsupported or (attention_mask is not None and attention_mask.shape[-2] != 1):
        feature = unsupported[0] if unsupported else "an attention mask of its own"
        raise UserError(f"banded attention is not defined for a model with {feature}")
    is_first_layer = getattr(module, "layer_idx", None) == 0
    tables = _ACTIVE[id(module.config)].tables(query, key.shape[2], attention_mask, is_first_layer)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend(tables, query, key, value, scale)
    return output.transpose(1, 2).to(query.dtype).contiguous(), None


def attend(tables: Tables, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend by bands.

    Args:
        tables: of this forward pass.
        query: ``[rows, heads, new tokens, head_dim]``, not rotated.
        key: ``[rows, key heads, all tokens, head_dim]``, not rotated.
        value: of the same shape.
        scale: factor on the logits.

    Returns:
        ``[rows, heads, new tokens, head_dim]`` in fp32.
    """
    if tables.query_scale is not None:
        query = query * tables.query_scale
    if tables.decoding is not None:
        return attend_one_query(tables.decoding, query, key, value, scale)
    is_fused = all(band.fused is not None for band in tables.bands)
    return (_attend_fused if is_fused else _attend)(tables, query, key, value, scale)


def _attend(tables: Tables, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Return ``[rows, heads, new tokens, head_dim]`` in fp32, for any tokens, cached or not, padded or not."""
    rows, heads, new, _ = query.shape
    queries = [rotate(query, *band.query) for band in tables.bands]
    keys = [rotate(key[:, :, band.span], *band.key) for band in tables.bands]
    block = min(_MAX_BLOCK, max(_MIN_BLOCK, _MAX_LOGITS // (rows * heads * key.shape[2])))
    output = torch.zeros_like(query, dtype=torch.float32)
    for start in range(0, new, block):
        stop = min(start + block, new)
        parts = []
        for band, rotated_query, rotated_key in zip(tables.bands, queries, keys, strict=True):
            first, last = band.first[:, start:stop], band.last[:, start:stop]
            low, high = int(first.min()), int(last.max()) + 1
            if low >= high:
                continue
            outside = None
            if int(first.max()) > low or int(last.min()) < high - 1:
                slots = torch.arange(low, high)
                outside = (slots < first[..., None]) | (slots > last[..., None])
                outside = outside[:, None].to(query.device)
            behind = band.span.start
            near = rotated_key[:, :, low - behind : high - behind]
            parts.append(_attend_to(rotated_query[:, :, start:stop], near, value[:, :, low:high], outside, scale))
        if parts:
            output[:, :, start:stop] = _merge(parts)
    return output


def _attend_to(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, outside: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to some keys.

    Args:
        query: ``[rows, heads, queries, head_dim]``, rotated.
        key: ``[rows, key heads, keys, head_dim]``, rotated.
        value: of the same shape.
        outside: bool ``[rows or 1, 1, queries, keys]``, True where a key is not attended to; None: all are. The logit
            is the lowest number there and not minus infinity: a query may have no key here, and padding none at all.
        scale: factor on the logits.

    Returns:
        Outputs, and the log-sum-exp of each query's logits, fp32 ``[rows, heads, queries]``.
    """
    rows, heads, count, width = query.shape
    # Queries of the heads that share a key head, side by side: no key is copied.
    grouped = query.reshape(rows, key.shape[1], -1, width)
    if query.device.type == "cpu" and _FLASH is not None:
        if outside is None:
            output, log_sum = _FLASH(grouped, key, value, scale=scale)
            return output.reshape(query.shape), log_sum.reshape(rows, heads, count)
        mask = torch.zeros(outside.shape, dtype=query.dtype).masked_fill(outside, torch.finfo(query.dtype).min)
        output, log_sum = _FLASH(query, key, value, attn_mask=mask, scale=scale)
        return output, log_sum
    # Logits in fp32, as in fused kernels.
    logits = (grouped.float() * scale) @ key.float().transpose(2, 3)
    if outside is not None:
        shaped = logits.view(rows, key.shape[1], -1, count, key.shape[2])
        logits = shaped.masked_fill(outside[:, None], torch.finfo(torch.float32).min).view(logits.shape)
    log_sum = logits.logsumexp(dim=-1)
    output = (logits - log_sum[..., None]).exp() @ value.float()
    return output.view(query.shape), log_sum.view(rows, heads, count)


def _merge(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the attention to all keys, fp32, of outputs and log-sum-exps for disjoint ones."""
    weights = torch.stack([log_sum for _, log_sum in parts]).softmax(dim=0).unsqueeze(-1)
    merged = torch.zeros_like(parts[0][0], dtype=torch.float32)
    for weight, (output, _) in zip(weights, parts, strict=True):
        merged += weight * output.float()
    return merged


def _attend_fused(
    tables: Tables, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return ``[rows, heads, new tokens, head_dim]`` in fp32, of rows that have no padding on the left."""
    bands = (
        (rotate(query, *band.query), rotate(key[:, :, band.span], *band.key), value[:, :, band.span], band.fused)
        for band in tables.bands
        if band.fused is not None
    )
    return attend_to_bands(bands, scale)


def _takes_fused(num_new_tokens: int, mask: torch.Tensor | None, device: torch.device) -> bool:
    return device.type == "cuda" and mask is None and num_new_tokens >= _FUSED_FROM


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``[rows, heads, tokens, head_dim]``, the first half of a head paired with the second, as Llama does.

    Args:
        states: queries or keys.
        cos: ``[rows or 1, 1, tokens, head_dim]``.
        sin: of the same shape.
    """
    if states.is_cuda and apply_rope is not None:
        # The same bits by one kernel.
        return apply_rope(states, states[:, :0], cos[:, 0], sin[:, 0])[0]
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def make_tables(
    rotation: BandedRotation, shape: tuple[int, int, torch.dtype], mask: torch.Tensor | None, device: torch.device
) -> Tables:
    """Return the tables of a forward pass, which all its layers share.

    Args:
        rotation: what the method does to positions.
        shape: new tokens of a row, all its tokens with the cached ones, and the model's precision.
        mask: which slots hold tokens, bool ``[rows, 1, 1, all tokens]``, without gaps, the new ones last; None: all do.
        device: of queries and keys.
    """
    new, total, dtype = shape
    # Blocks are cut on the CPU; decoding waits for no GPU.
    place = device if new == 1 else torch.device("cpu")
    holds_token = torch.ones(1, total, dtype=torch.long) if mask is None else mask[:, 0, 0].long()
    # Slots of padding before each row's first token; behind its last one, a frozen cache has empty slots.
    padding = holds_token.argmax(1, keepdim=True).to(place)
    num_tokens = holds_token.sum(1, keepdim=True).to(place)
    position = torch.arange(total, device=place) - padding
    of_queries = torch.arange(-new, 0, device=place) + num_tokens
    query_scale = None
    if rotation.log_base is not None:
        query_scale = log_n_factors(rotation.log_base, of_queries)[:, None, :, None].to(device, dtype)
    frequencies = _on_device(tuple(rotation.frequencies), device)
    if new == 1:
        decoding = make_decoding_tables(rotation.bands, position, of_queries, frequencies, rotation.factor, dtype)
        return Tables(mask, shape, (), query_scale, decoding)

    def cos_sin(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions.to(device)[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * rotation.factor).to(dtype), (angles.sin() * rotation.factor).to(dtype)

    is_fused = _takes_fused(new, mask, device)
    has_flash = is_fused and flash_supports(dtype, 2 * len(rotation.frequencies), device)
    bands = []
    for band in rotation.bands:
        first = band.first(of_queries).clamp(min=0) + padding
        last = torch.minimum(band.last(of_queries), of_queries) + padding
        # Padding queries have no key in a band, and no query has a padding key.
        has_keys = (first <= last) & (of_queries >= 0)
        first, last = torch.where(has_keys, first, total), torch.where(has_keys, last, -1)
        span = slice(min(int(first.min()), total), max(int(last.max()) + 1, 0))
        if span.start < span.stop:
            at_keys = cos_sin(band.key(position[:, span].clamp(min=0)))
            fused: Window | BlockMask | None = None
            if is_fused:
                keys_of_queries = first[0] - span.start, last[0] - span.start, span.stop - span.start
                fused = as_window(*keys_of_queries) if has_flash else None
                fused = block_mask(*keys_of_queries, device) if fused is None else fused
            bands.append(_BandTables(first, last, cos_sin(band.query(of_queries)), at_keys, span, fused))
    return Tables(mask, shape, tuple(bands), query_scale)


@cache
def _on_device(frequencies: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return frequencies on a device; while a step is captured, nothing can be copied there."""
    return torch.tensor(frequencies, dtype=torch.float32, device=device)
