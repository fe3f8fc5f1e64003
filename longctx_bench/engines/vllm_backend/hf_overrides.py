"""Maps a method to vLLM's ``hf_overrides``; raises if vLLM cannot reproduce it.

Follows vLLM 0.32; ``longctx-bench parity`` checks it against transformers. Does not import vLLM.
"""

from __future__ import annotations

import math
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.engines.vllm_backend.banded_config import rotation_at
from longctx_bench.methods.base import BaseModelInfo, Capability, Method
from longctx_bench.methods.factor_list import with_mscale
from longctx_bench.methods.nope import identity_llama3_rope_parameters
from longctx_bench.methods.rope_parameters import is_unrotated

ARCHITECTURES = {
    "llama": "LlamaDropeForCausalLM",
    "llama_drope": "LlamaDropeForCausalLM",
    "qwen2": "Qwen2DropeForCausalLM",
    "qwen2_drope": "Qwen2DropeForCausalLM",
}
"""model_type -> the plug-in's class for it, without positions and with any softmax scale."""

BANDED_ARCHITECTURES = {"llama": "LlamaBandedForCausalLM", "qwen2": "Qwen2BandedForCausalLM"}
"""model_type -> the plug-in's class for it with attention by bands."""

SUPPORTED: frozenset[Capability] = frozenset({"prompt", "attention_temperature", "banded_attention"})
"""What methods may need of vLLM, with the plug-in's classes."""
_WHY_NOT: dict[Capability, str] = {
    "head_temperatures": "its heads have temperatures of their own; `longctx-bench export` writes them",
    "per_prompt": "its positions are set once for all prompts, and this method's by each prompt",
    "query_scale": "its models of this type do not scale queries by their positions",
    "sliding_window": "some of its layers attend to a window, which is not checked there",
    "derived_attention_factor": "its longrope derives the factor on cos and sin otherwise and holds both lists at once",
    "model_patch": "this method changes a loaded model of transformers, beyond its config",
}

_FROM_CONFIG = frozenset(("rope_parameters", "max_position_embeddings"))
"""Config entries that mean the same in vLLM as in transformers."""


def vllm_overrides(base: BaseModelInfo, method: Method, length: int, max_model_len: int) -> dict[str, Any]:
    """Return the ``hf_overrides`` with which vLLM computes a method as transformers does.

    Args:
        base: the checkpoint's config and training context.
        method: to apply.
        length: tokens, from which the method derives its factor.
        max_model_len: tokens of the longest prompt and its completion.

    Returns:
        ``max_position_embeddings`` and, complete, ``rope_parameters``; for models without positions whose softmax is
        scaled or whose queries are normalised also ``architectures``, the plug-in's class, and ``softmax_scale``; for
        methods by distance ``architectures`` (what they do to positions is in ``banded_config.py``).

    Raises:
        UserError: vLLM would not compute this method, or this base, as transformers does.
    """
    _check_base(base)
    entries = method.model_overrides(base, length)
    _check_method(base, method, length, entries)
    rope = entries.get("rope_parameters") or _own_rope(base)
    if is_unrotated(rope) or base.config["model_type"].endswith("_drope"):
        return _without_positions(base, method, length, max_model_len)
    return _rotated(base, method, rope, max_model_len)


def _without_positions(base: BaseModelInfo, method: Method, length: int, max_model_len: int) -> dict[str, Any]:
    # Every frequency divided by 1e30: no position below 2^64 rotates by as much as one unit of fp32.
    rope = identity_llama3_rope_parameters(10000.0)
    overrides: dict[str, Any] = {"rope_parameters": rope, "max_position_embeddings": max_model_len}
    beta = method.attention_temperature(base, length)
    kind = base.config["model_type"]
    if rotation_at(base, method, length) is not None:
        return overrides | {"architectures": [BANDED_ARCHITECTURES[kind]]}
    if beta != 1.0 or kind.endswith("_drope"):
        scale = base.config.get("softmax_scale") or base.head_dim**-0.5
        overrides |= {"architectures": [ARCHITECTURES[kind]], "softmax_scale": scale * beta}
    return overrides


def _rotated(base: BaseModelInfo, method: Method, rope: dict[str, Any], max_model_len: int) -> dict[str, Any]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "dynamic":
        raise _unsupported(base, method, "its 'dynamic' positions are static, and transformers' follow the prompt")
    if kind == "longrope":
        rope = _one_list(base, method, rope)
    if kind not in ("default", "linear", "llama3", "longrope", "yarn") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(base, method, f"its positions of type '{kind}' are not known to be the same")
    positions = max_model_len
    if kind == "linear":
        # vLLM's table of angles has `factor` times as many rows: with all of `max_model_len` it would be quadratic.
        positions = math.ceil(max_model_len / rope["factor"])
        positions += positions * rope["factor"] < max_model_len
    if kind == "yarn":
        rows = math.ceil(rope["original_max_position_embeddings"] * rope["factor"])
        if rows < max_model_len:
            raise _unsupported(base, method, f"its table of YaRN's angles ends at {rows} tokens, not {max_model_len}")
    # `type` is the former name of `rope_type`; both at once are an error in vLLM.
    rope_parameters = {"rope_type": kind} | {key: value for key, value in rope.items() if key != "type"}
    return {"rope_parameters": rope_parameters, "max_position_embeddings": positions}


def _one_list(base: BaseModelInfo, method: Method, rope: dict[str, Any]) -> dict[str, Any]:
    if rope.get("attention_factor") is None or rope["short_factor"] != rope["long_factor"]:
        raise _unsupported(base, method, _WHY_NOT["derived_attention_factor"])
    return with_mscale(rope)


def _check_base(base: BaseModelInfo) -> None:
    kind = base.config.get("model_type")
    if kind not in ARCHITECTURES:
        checked = ", ".join(ARCHITECTURES)
        raise UserError(
            f"--engine vllm: {base.name} is a {kind}, which is not checked to run as in transformers (only {checked} "
            f"are); use --engine hf"
        )
    windows = base.config.get("use_sliding_window") or "sliding_attention" in (base.config.get("layer_types") or ())
    heads = int(base.config["num_attention_heads"])
    if windows:
        raise UserError(f"--engine vllm: {base.name} attends to a sliding window, which is not checked there")
    if kind == "qwen2" and base.head_dim * heads != base.config["hidden_size"]:
        raise UserError(f"--engine vllm: {base.name} is a Qwen2 with its own head_dim, which vLLM does not read")


def _check_method(base: BaseModelInfo, method: Method, length: int, entries: dict[str, Any]) -> None:
    for capability in sorted(method.capabilities_at(base, length) - SUPPORTED):
        raise _unsupported(base, method, _WHY_NOT[capability])
    unknown = sorted(entries.keys() - _FROM_CONFIG)
    if unknown:
        raise _unsupported(base, method, f"what it makes of the method's '{unknown[0]}' is not known")


def _own_rope(base: BaseModelInfo) -> dict[str, Any]:
    """Return the rope_parameters of a base, as transformers reads them from its config."""
    return base.positions.nested or base.positions.rope


def _unsupported(base: BaseModelInfo, method: Method, why: str) -> UserError:
    return UserError(f"--engine vllm cannot run {type(method).__name__} on {base.name}: {why}; use --engine hf")
