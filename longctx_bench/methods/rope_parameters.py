"""What a base's rotary positions are, as transformers reads them from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longctx_bench.core.errors import UserError

FULL, SLIDING = "full_attention", "sliding_attention"
_WINDOWED = (SLIDING, "chunked_attention")
FULL_UNROTATED = ("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe")
"""Model types that rotate in their layers with a window alone, and leave out positions where all tokens are seen."""


@dataclass(frozen=True)
class RotaryPositions:
    """The rotary positions of a base model, as transformers reads them from its config."""

    rope: dict[str, Any]
    """``rope_parameters`` of the layers that a method changes, with ``rope_type`` and ``rope_theta``."""
    head_dim: int
    """Dimensions of one attention head."""
    training_context: int
    """Tokens."""
    nested: dict[str, Any] | None = None
    """All ``rope_parameters`` by layer type, if they differ (Gemma 3). Methods change those of full-attention layers;
    sliding-window layers keep theirs."""
    kind: str | None = None
    """``model_type``."""
    window: int | None = None
    """Sliding window of all rotated layers; None if one of them has full attention."""
    layer_types: frozenset[str] = frozenset()
    """The kinds of attention of the layers; empty if the config does not tell them apart."""

    @property
    def pairs(self) -> int:
        """Number of rotated pairs of dimensions per head."""
        return num_rotary_pairs(self.rope, self.head_dim)

    @property
    def scaling(self) -> str | None:
        """Description of the base model's scaling; None without one."""
        kind = self.rope["rope_type"]
        if kind == "default" or self.pairs == 0:
            return None
        factor, original = self.rope.get("factor"), self.rope.get("original_max_position_embeddings")
        return (
            f"'{kind}'" + (f", factor {factor:g}" if factor else "") + (f", from {original} tokens" if original else "")
        )


def num_rotary_pairs(rope: Mapping[str, Any], head_dim: int) -> int:
    """Return the number of pairs of dimensions per head that ``rope_parameters`` rotate."""
    return 0 if is_unrotated(rope) else int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2


def is_unrotated(rope: Mapping[str, Any]) -> bool:
    """Whether ``rope_parameters`` amount to no rotation (in all layer types, if nested)."""
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    if nested:
        return all(map(is_unrotated, nested))
    # As written by nope_rope_parameters (no pairs), or frequencies divided by more than fp32 resolves.
    return rope.get("partial_rotary_factor") == 0.0 or rope.get("factor", 1.0) >= 1e30


def read_positions(name: str, config: Mapping[str, Any], training_context: int) -> RotaryPositions:
    """Return the rotary positions of a base model.

    Args:
        name: name of the base model.
        config: its ``config.json``, from transformers 4 or 5.
        training_context: in tokens.

    Raises:
        UserError: it has no rotary positions, or none that a method can change (with the reason).
    """
    kind = config.get("model_type")
    if "text_config" in config:
        raise UserError(f"{name}: a {kind} reads more than text, and only plain text models take a method")
    if config.get("alibi"):
        raise UserError(f"{name}: its config says alibi: it has no rotary positions to change")
    full = normalize_config(name, config)
    rope = full.get("rope_parameters")
    if str(kind).endswith("_drope"):
        rope = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.0}
    if not rope:
        if kind is None:
            raise UserError(f"{name}: its config names no rope_theta: it has no rotary positions to change")
        if full.get("rotary_dim"):
            raise UserError(f"{name}: a {kind} rotates by tables of its own, which no rope_parameters change")
        raise UserError(f"{name}: a {kind} has no rotary positions to change")
    nested = rope if any(isinstance(value, Mapping) for value in rope.values()) else None
    if nested is not None:
        if not isinstance(nested.get(FULL), Mapping) or set(nested) - {FULL, SLIDING}:
            raise UserError(
                f"{name}: its positions differ by layer ({', '.join(nested)}), and methods are defined for "
                f"{FULL} beside {SLIDING} alone"
            )
        rope = nested[FULL]
    rope = {"rope_type": rope.get("rope_type") or rope.get("type") or "default", **rope}
    rope.pop("type", None)
    if rope.get("rope_theta") is None:
        raise UserError(f"{name}: its config names no rope_theta: it has no rotary positions to change")
    heads = full.get("num_attention_heads")
    head_dim = full.get("head_dim") or (int(full["hidden_size"]) // int(heads) if heads else 0)
    kinds = frozenset(full.get("layer_types") or ())
    return RotaryPositions(rope, int(head_dim), training_context, nested, kind, _window(full), kinds)


def normalize_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config entries as transformers reads them: current names, with the model type's defaults.

    Configs with an unknown or no model type are returned as they are.

    Raises:
        UserError: transformers cannot read the config.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    kind = config.get("model_type")
    if kind is None or kind not in CONFIG_MAPPING or str(kind).endswith("_drope"):
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        for key in ("rope_theta", "partial_rotary_factor"):
            if config.get(key) is not None:
                rope.setdefault(key, config[key])
        return {**config, "rope_parameters": rope}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        loaded: Any = CONFIG_MAPPING[kind].from_dict(dict(config))
    except Exception as error:  # Config classes validate themselves and may raise anything.
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: config.json is not valid for a {kind} ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
    named = (
        "rope_parameters", "head_dim", "hidden_size", "num_attention_heads", "max_position_embeddings", "rotary_dim",
        "original_max_position_embeddings", "sliding_window", "attention_chunk_size", "layer_types", "no_rope_layers",
        "num_hidden_layers", "num_key_value_heads", "intermediate_size", "vocab_size",
    )  # fmt: skip
    return {"model_type": kind} | {key: value for key in named if (value := _entry(loaded, key)) is not None}


def _entry(config: Any, key: str) -> Any:
    try:
        return getattr(config, key, None)
    except Exception:  # noqa: BLE001  (Gemma 4 raises its own error for entries that differ by layer)
        return None


def native_context(name: str, config: Mapping[str, Any]) -> int | None:
    """Return the context of a model including its own scaling; None if its config does not say.

    ``max_position_embeddings``, except for YaRN checkpoints that set it to the length before scaling (Qwen): there it
    is factor times that length.
    """
    entries = normalize_config(name, config)
    length = entries.get("max_position_embeddings")
    if not isinstance(length, int) or length < 1:
        return None
    rope = entries.get("rope_parameters") or {}
    full_attention = rope.get(FULL)
    rope = full_attention if isinstance(full_attention, Mapping) else rope
    if (rope.get("rope_type") or rope.get("type")) == "yarn":
        unscaled_length = rope.get("original_max_position_embeddings") or length
        length = max(length, int(unscaled_length * (rope.get("factor") or 1.0)))
    return length


def _window(full: Mapping[str, Any]) -> int | None:
    """Return the sliding window of all layers with rotary positions; None if one of them has full attention."""
    kinds = full.get("layer_types")
    window = full.get("sliding_window")
    if kinds is not None:
        if "chunked_attention" in kinds:
            window = full.get("attention_chunk_size")
        turns = full.get("no_rope_layers") or [1] * len(kinds)
        any_full = any(turn and kind not in _WINDOWED for turn, kind in zip(turns, kinds, strict=False))
        if any_full and full.get("model_type") not in FULL_UNROTATED:
            return None
    return window or None


def fix_to_length(rope: Mapping[str, Any], length: int, config: Any) -> dict[str, Any]:
    """Return ``rope_parameters`` that are the same for all prompts of a cell.

    In transformers, ``longrope`` and ``dynamic`` depend on the longest position in a forward pass, so that results
    would depend on the other prompts in a batch. Here the cell's length decides.

    Args:
        rope: flat, or nested by layer type.
        length: of the cell in tokens, or of prompt and answer for methods with ``per_prompt``.
        config: the loaded model's transformers config.
    """
    if any(isinstance(value, Mapping) for value in rope.values()):
        return {key: fix_to_length(value, length, config) if isinstance(value, Mapping) else value
                for key, value in rope.items()}  # fmt: skip
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "longrope":
        chosen = rope["long_factor" if length > rope["original_max_position_embeddings"] else "short_factor"]
        return {**rope, "short_factor": chosen, "long_factor": chosen}
    if kind == "dynamic":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dims, limit = 2 * num_rotary_pairs(rope, head_dim), config.max_position_embeddings
        grown = rope["factor"] * max(length, limit) / limit - (rope["factor"] - 1)
        others = {key: value for key, value in rope.items() if key not in {"type", "factor"}}
        return {**others, "rope_type": "default", "rope_theta": rope["rope_theta"] * grown ** (dims / (dims - 2))}
    return dict(rope)
