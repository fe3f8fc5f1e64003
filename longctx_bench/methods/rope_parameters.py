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
    """The rotary positions of a base, as transformers reads them from its config."""

    rope: dict[str, Any]
    """``rope_parameters`` of the layers that a method changes, with ``rope_type`` and ``rope_theta``."""
    head_dim: int
    """Width of one attention head."""
    training_context: int
    """Training context in tokens."""
    nested: dict[str, Any] | None = None
    """All ``rope_parameters`` by layer type, where a model has several (Gemma 3). Methods change those of the layers
    with full attention; the others see no further than their window and keep theirs."""
    kind: str | None = None
    """``model_type``."""
    window: int | None = None
    """Tokens that every rotated layer attends to at most; None where one of them attends to all."""

    @property
    def pairs(self) -> int:
        """Pairs of dimensions of a head that are rotated."""
        return num_rotary_pairs(self.rope, self.head_dim)

    @property
    def scaling(self) -> str | None:
        """The base's own scaling in words; None where it has none."""
        kind = self.rope["rope_type"]
        if kind == "default" or self.pairs == 0:
            return None
        factor, original = self.rope.get("factor"), self.rope.get("original_max_position_embeddings")
        return (
            f"'{kind}'" + (f", factor {factor:g}" if factor else "") + (f", from {original} tokens" if original else "")
        )


def num_rotary_pairs(rope: Mapping[str, Any], head_dim: int) -> int:
    """Return how many pairs of a head's dimensions ``rope_parameters`` rotate."""
    return 0 if is_unrotated(rope) else int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2


def is_unrotated(rope: Mapping[str, Any]) -> bool:
    """Tell whether ``rope_parameters`` rotate nothing, in every layer where they are nested."""
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    if nested:
        return all(map(is_unrotated, nested))
    # As nope_rope_parameters writes them: no pair at all, or every frequency divided by more than fp32 resolves.
    return rope.get("partial_rotary_factor") == 0.0 or rope.get("factor", 1.0) >= 1e30


def read_positions(name: str, config: Mapping[str, Any], original_length: int) -> RotaryPositions:
    """Return the rotary positions of a base.

    Args:
        name: the base's.
        config: its ``config.json``, of transformers 4 or 5.
        original_length: its training context in tokens.

    Raises:
        UserError: it has none, or none that a method can change, with the reason.
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
    return RotaryPositions(rope, int(head_dim), original_length, nested, kind, _window(full))


def normalize_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's entries as transformers reads them: under their names of today, with a model type's defaults.

    A type that transformers does not know, or none, is read as it stands.

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
        found: Any = CONFIG_MAPPING[kind].from_dict(dict(config))
    except Exception as error:  # Configs of each type check themselves, and raise what they like.
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: config.json is none that a {kind} can have ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
    named = (
        "rope_parameters", "head_dim", "hidden_size", "num_attention_heads", "max_position_embeddings", "rotary_dim",
        "original_max_position_embeddings", "sliding_window", "attention_chunk_size", "layer_types", "no_rope_layers",
        "num_hidden_layers", "num_key_value_heads", "intermediate_size", "vocab_size",
    )  # fmt: skip
    return {"model_type": kind} | {key: value for key in named if (value := _entry(found, key)) is not None}


def _entry(config: Any, key: str) -> Any:
    try:
        return getattr(config, key, None)
    except Exception:  # noqa: BLE001  (Gemma 4 has entries that differ by layer, and its own error to say so)
        return None


def native_context(name: str, config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model reads with all scaling of its own; None where its config does not say.

    That is ``max_position_embeddings``, but for YaRN's checkpoints that leave it at the length before the scaling
    (Qwen's): there it is factor times that length.
    """
    full = normalize_config(name, config)
    length = full.get("max_position_embeddings")
    if not isinstance(length, int) or length < 1:
        return None
    rope = full.get("rope_parameters") or {}
    whole = rope.get(FULL)
    rope = whole if isinstance(whole, Mapping) else rope
    if (rope.get("rope_type") or rope.get("type")) == "yarn":
        before = rope.get("original_max_position_embeddings") or length
        length = max(length, int(before * (rope.get("factor") or 1.0)))
    return length


def _window(full: Mapping[str, Any]) -> int | None:
    """Return how far every layer with rotary positions sees; None where one of them sees all tokens."""
    kinds = full.get("layer_types")
    window = full.get("sliding_window")
    if kinds is not None:
        if "chunked_attention" in kinds:
            window = full.get("attention_chunk_size")
        turns = full.get("no_rope_layers") or [1] * len(kinds)
        seeing_all = any(turn and kind not in _WINDOWED for turn, kind in zip(turns, kinds, strict=False))
        if seeing_all and full.get("model_type") not in FULL_UNROTATED:
            return None
    return window or None


def fix_to_length(rope: Mapping[str, Any], length: int, config: Any) -> dict[str, Any]:
    """Return ``rope_parameters`` that are the same for every prompt of a cell.

    transformers lets ``longrope`` and ``dynamic`` follow the longest position of a pass, so that a prompt's numbers
    would depend on what is read beside it. Here the cell's length decides, once.

    Args:
        rope: one layer type's, or nested by layer type.
        length: tokens of the cell, or of the prompt and its answer where a method goes by each prompt.
        config: transformers' of the loaded model.
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
        own = {key: value for key, value in rope.items() if key not in {"type", "factor"}}
        return {**own, "rope_type": "default", "rope_theta": rope["rope_theta"] * grown ** (dims / (dims - 2))}
    return dict(rope)
