"""A banded method as an entry of vLLM's ``additional_config``, and back in each of vLLM's processes.

Not in the model's config: that is what a checkpoint says of itself, and no checkpoint may name code to be imported.
Does not import vLLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.plugins import load_object, location_of
from longctx_bench.core.specs import validate
from longctx_bench.methods.banded import BandedAttention
from longctx_bench.methods.base import BaseModelInfo, Method

if TYPE_CHECKING:
    from longctx_bench.methods.banded_attention import BandedRotation

_KEY = "longctx_bench_banded"


def rotation_at(base: BaseModelInfo, method: Method, length: int) -> BandedRotation | None:
    """Return what a method by distance does to positions at a length in tokens; None for others and the base itself."""
    return method.rotation(base, length) if isinstance(method, BandedAttention) else None


def bands_digest(base: BaseModelInfo, method: Method, length: int, max_model_len: int) -> str | None:
    """Return a digest of what a method by distance does at all positions; None where :func:`rotation_at` is None.

    Lengths with the same digest can share a vLLM engine.
    """
    rotation = rotation_at(base, method, length)
    if rotation is None:
        return None
    import torch

    positions = torch.arange(max_model_len)
    digest = hashlib.sha256(repr((rotation.frequencies, rotation.factor, rotation.log_base)).encode())
    for band in rotation.bands:
        for position_map in (band.first, band.last, band.query, band.key):
            digest.update(position_map(positions).double().numpy().tobytes())
    return digest.hexdigest()


def banded_config(base: BaseModelInfo, method: Method, length: int) -> dict[str, Any]:
    """Return a method at a length as an entry of ``additional_config``; none where :func:`rotation_at` is None."""
    if rotation_at(base, method, length) is None:
        return {}
    use, folder = location_of(type(method))
    entry = {
        "use": use,
        "folder": None if folder is None else str(folder),
        "params": method.model_dump(mode="json"),
        "base": {"name": base.name, "training_context": base.training_context, "config": base.config},
        "length": length,
    }
    return {_KEY: entry}


def banded_rotation(additional_config: Mapping[str, Any]) -> BandedRotation:
    """Return what the method in an ``additional_config`` does to positions.

    Raises:
        UserError: it holds none, or the method cannot be loaded here.
    """
    entry = additional_config.get(_KEY)
    if entry is None:
        raise UserError("attention by bands of distance is run by `longctx-bench run --engine vllm` alone")
    folder = entry["folder"]
    kind = load_object(entry["use"], "vLLM", None if folder is None else Path(folder)).value
    method = validate(kind, entry["params"], f"vLLM: {entry['use']}")
    rotation = rotation_at(BaseModelInfo(**entry["base"]), method, entry["length"])
    assert rotation is not None
    return rotation
