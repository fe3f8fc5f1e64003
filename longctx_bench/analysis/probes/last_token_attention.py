"""Attention of the last token of needle prompts, by length: data of Figures 7 and 8 of arXiv 2512.12167."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longctx_bench.benchmarks.base import IndexedBenchmark
from longctx_bench.benchmarks.niah import grid_depth
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import safe_name, write_json
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.rope_scaling import RoPE

NEAR = 4
"""Tokens at the end of the prompt, including the last one; none of them is part of a key or value."""
BINS = 64
"""Equal bins of the prompt in the attention profile of a head."""
_GRID_POINTS = 11
"""Needle depths of niah's grid."""

AttentionFunction = Callable[[Method, int, Sequence[int]], NDArray[np.float32]]
"""(method, length, ids) -> attention of the last token, ``[layers, heads, tokens]``."""


@dataclass(frozen=True)
class Prompt:
    """A needle prompt as token ids, with the positions of the needle's key and value."""

    ids: Sequence[int]
    needle: Sequence[int]
    """Positions of the tokens of the needle's key and value."""


@dataclass(frozen=True)
class MeanAttention:
    """Means over the prompts of one length."""

    needle: NDArray[np.float64]
    """``[layers, heads]``: attention on the needle's key and value, together."""
    near: NDArray[np.float64]
    """``[layers, heads]``: attention on the last :data:`NEAR` tokens."""
    profile: NDArray[np.float64]
    """``[layers, heads, BINS]``: attention on each part of the prompt; a head's parts sum to 1."""


def without_scaling(method: Method, base: BaseModelInfo, length: int) -> Method | None:
    """Return the method with length scaling disabled, on the same weights; None if it does not scale.

    A model without positions loses its softmax temperature; a method on the base's own weights (PI, NTK, YaRN ...)
    becomes the base model.
    """
    if method.tunable == "temperature":
        return method.with_scalar(1.0) if method.applied_scalar(base, length) is not None else None
    return RoPE() if method.checkpoint is None and method.model_overrides(base, length) else None


def needle_prompts(
    benchmark: IndexedBenchmark, encoder: PromptEncoder, length: int, n: int, seed: int, depth: float
) -> list[Prompt]:
    """Return n prompts of one length with the needle at one depth.

    Args:
        benchmark: niah, one needle on a grid of 11 depths.
        encoder: of the model's tokenizer.
        length: tokens, 32 of them for the answer.
        n: how many.
        seed: of all random choices.
        depth: in percent, a point of the grid.

    Raises:
        UserError: the depth is not on the grid, or the tokenizer has no character offsets.
    """
    indices = [index for index in range(n * _GRID_POINTS) if grid_depth(index, _GRID_POINTS) == depth]
    if not indices:
        grid = ", ".join(f"{100 * point / (_GRID_POINTS - 1):g}" for point in range(_GRID_POINTS))
        raise UserError(f"--depth {depth:g}: not on the grid of niah; choose one of {grid}")
    examples = (benchmark.example(encoder, length, 32, seed, index) for index in indices)
    return [
        _locate_needle(encoder, example.prompt, example.answer_prefix, example.references[0]) for example in examples
    ]


def mean_attention(
    attention: AttentionFunction, method: Method, length: int, prompts: Sequence[Prompt]
) -> MeanAttention:
    """Return the mean attention of the last token over the prompts of one length."""
    needle, near, profile = [], [], []
    for prompt in prompts:
        weights = attention(method, length, prompt.ids).astype(np.float64)
        needle.append(weights[..., list(prompt.needle)].sum(axis=-1))
        near.append(weights[..., -NEAR:].sum(axis=-1))
        edges = np.linspace(0, len(prompt.ids), BINS, endpoint=False).astype(int)
        profile.append(np.add.reduceat(weights, edges, axis=-1))
    return MeanAttention(np.mean(needle, axis=0), np.mean(near, axis=0), np.mean(profile, axis=0))


def choose_heads(at_context: MeanAttention) -> dict[str, tuple[int, int]]:
    """Choose a positional and a semantic head, as (layer, head), from the attention at the training context (1x).

    The semantic head is the one with most mean attention on the needle's key and value. The positional head is, of
    the others, the one with most mean attention on the last :data:`NEAR` tokens: a fixed position, whatever
    the token there. Ties go to the first layer and head.
    """
    shape = at_context.needle.shape
    semantic = np.unravel_index(np.argmax(at_context.needle), shape)
    near = at_context.near.copy()
    near[semantic] = -1.0
    positional = np.unravel_index(np.argmax(near), shape)
    return {
        "positional": (int(positional[0]), int(positional[1])),
        "semantic": (int(semantic[0]), int(semantic[1])),
    }


def attention_by_length(
    attention: AttentionFunction, base: BaseModelInfo, method: Method, prompts: Mapping[int, Sequence[Prompt]]
) -> dict[str, Any]:
    """Measure a method with and without its scaling at several lengths.

    Args:
        attention: returns the attention of the last token.
        base: the checkpoint's properties.
        method: whose scaling is measured.
        prompts: by length; the training context must be among them, since heads are chosen there.

    Returns:
        ``scaling`` (what it is), ``heads`` (kind -> [layer, head]) and ``lengths``: for each length its ``scale``, the
        ``needle`` span's middle as a share of the prompt, and for ``with`` and ``without`` scaling the two heads'
        attention on ``needle`` and ``near`` tokens, their ``profile``, and ``needle_by_head`` ``[layers][heads]``.
        ``without`` is missing where scaling does nothing.
    """
    context = base.original_length
    heads = choose_heads(mean_attention(attention, method, context, prompts[context]))
    lengths = []
    for length, of_length in sorted(prompts.items()):
        unscaled = without_scaling(method, base, length)
        measured = {"with": mean_attention(attention, method, length, of_length)}
        if unscaled is not None:
            measured["without"] = mean_attention(attention, unscaled, length, of_length)
        lengths.append({
            "length": length,
            "scale": length / context,
            "needle": float(np.mean([np.mean(prompt.needle) / len(prompt.ids) for prompt in of_length])),
            "n": len(of_length),
            **{name: _attention_of_heads(mean, heads) for name, mean in measured.items()},
        })  # fmt: skip
    return {
        "scaling": "softmax temperature" if method.tunable == "temperature" else "rotary scaling",
        "heads": {kind: list(head) for kind, head in heads.items()},
        "near": NEAR,
        "lengths": lengths,
    }


def write_attention(
    out: Path, name: str, base: BaseModelInfo, result: dict[str, Any], settings: dict[str, Any]
) -> Path:
    """Write ``probes/attention/METHOD-BASE.json`` below a run's folder and return its path.

    Raises:
        UserError: the folder cannot be written.
    """
    path = out / "probes" / "attention" / f"{safe_name(name)}.json"
    made = {"at": provenance.now(), **provenance.environment()}
    model = {"model": name, "base": base.name, "original_length": base.original_length}
    write_json(path, {**model, "settings": settings, **result, "made": made})
    return path


def _attention_of_heads(mean: MeanAttention, heads: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    chosen = {
        kind: {
            "needle": float(mean.needle[head]),
            "near": float(mean.near[head]),
            "profile": [float(f"{value:.4g}") for value in mean.profile[head]],
        }
        for kind, head in heads.items()
    }
    return {**chosen, "needle_by_head": [[float(f"{value:.4g}") for value in layer] for layer in mean.needle]}


def _locate_needle(encoder: PromptEncoder, prompt: str, answer_prefix: str, value: str) -> Prompt:
    """Find the tokens of the needle's key and value: all that share a character with them."""
    ids = encoder.encode(prompt, answer_prefix)
    text = encoder.text(prompt, answer_prefix)
    if not encoder.tokenizer.is_fast:
        raise UserError(
            f"{encoder.tokenizer.name_or_path}: its tokenizer has no character offsets; use a fast tokenizer"
        )
    offsets = encoder.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    pattern = re.escape(prompt_templates.NEEDLE)
    for name in ("type_needle_v", "key"):
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>.+?)")
    match = re.search(pattern.replace(re.escape("{value}"), f"(?P<value>{re.escape(value)})"), text)
    assert match is not None, "niah wrote this needle"
    spans = [match.span("key"), match.span("value")]
    needle = [
        position
        for position, (start, end) in enumerate(offsets[: len(ids)])
        if any(start < last and end > first for first, last in spans)
    ]
    return Prompt(ids, needle)
