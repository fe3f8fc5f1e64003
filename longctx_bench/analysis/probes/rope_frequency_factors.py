"""How far each method slows each pair of rotary dimensions down: Figure 6 of arXiv 2512.12167, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import safe_name, write_json
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.rope_frequencies import inverse_frequencies
from longctx_bench.methods.rope_scaling import RoPE

METHODS = ("pi", "ntk", "yarn", "llama3", "longrope")
"""Methods that change the rotary frequencies; longrope only with lists that a user gives."""


def scaling_factors(base: BaseModelInfo, methods: Mapping[str, Method], scale: float) -> dict[str, Any]:
    """Return the ratio of each method's inverse frequencies to RoPE's, by pair of dimensions.

    A factor of 1 leaves a pair alone, 1 / s slows it down as position interpolation does. The factor
    that YaRN and LongRoPE put on cos and sin is not part of it and is returned separately.

    Args:
        base: the checkpoint's properties.
        methods: by name; they derive their factor s from the length.
        scale: length / training context.

    Returns:
        What :func:`write_factors` writes: ``rope`` has RoPE's inverse frequencies in radians per token, ``factors`` the
        ratios by method, both of head_dim / 2 numbers, the fastest pair first.

    Raises:
        UserError: a method cannot be applied to this base.
    """
    length = round(scale * base.training_context)
    plain, _ = inverse_frequencies(base, RoPE(), length)
    factors, attention = {}, {}
    for name, method in methods.items():
        frequencies, attention[name] = inverse_frequencies(base, method, length)
        factors[name] = [mine / theirs for mine, theirs in zip(frequencies, plain, strict=True)]
    return {
        "model": base.name,
        "scale": scale,
        "original_length": base.training_context,
        "rope_theta": base.rope_theta,
        "rope": plain,
        "factors": factors,
        "attention_factor": attention,
    }


def write_factors(out: Path, factors: dict[str, Any]) -> Path:
    """Write ``probes/factors/MODEL/SCALEx.json`` below a run's folder and return its path.

    Raises:
        UserError: the folder cannot be written, or nothing was measured.
    """
    if not factors["factors"]:
        raise UserError(f"{factors['model']}: no method changes its frequencies")
    path = out / "probes" / "factors" / safe_name(factors["model"]) / f"{factors['scale']:g}x.json"
    write_json(path, factors)
    return path
