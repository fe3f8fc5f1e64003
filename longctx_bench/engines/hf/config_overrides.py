"""Config overrides for a loaded model, and checks for models that the engine cannot run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from longctx_bench.core.errors import ContextTooShort, UserError


def check_attention_only(folder: Path, config: Any) -> None:
    """Refuse models with a state besides keys and values.

    Raises:
        UserError: the model is recurrent, at least in part.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    state = getattr(kind, "_is_stateful", False)
    if state or not all(map(_attends, getattr(config, "layer_types", None) or ())):
        raise UserError(
            f"{folder.name}: a {config.model_type} keeps a state that cannot be cut back to an earlier token "
            f"as keys and values can; only models with attention alone can be run"
        )


def check_position_table(model: PreTrainedModel, tokens: int) -> None:
    """Refuse prompts longer than a model's table of learned positions.

    Raises:
        ContextTooShort: the model has such a table, and it is too short.
    """
    config = model.config
    limit = getattr(config, "max_position_embeddings", None)
    if not hasattr(config, "rope_parameters") and limit is not None and tokens > limit:
        raise ContextTooShort(
            f"a {config.model_type} has a table of positions that ends at {limit} tokens, not {tokens}"
        )


def _attends(layer_type: str) -> bool:
    """Whether a layer of this type keeps nothing but keys and values."""
    return layer_type.endswith("_attention") and not layer_type.startswith("linear")


@contextmanager
def override_config(model: PreTrainedModel, overrides: dict[str, Any]) -> Iterator[None]:
    """Override config entries of a loaded model, and replace its rotary module accordingly, inside a block."""
    if not overrides:
        yield
        return
    decoder = model.base_model
    rotary = getattr(decoder, "rotary_emb", None)
    if "rope_parameters" in overrides and rotary is None:
        raise UserError(
            f"a {model.config.model_type} computes its rotations where they cannot be changed; run it as it is, "
            f"without a method"
        )
    config = model.config
    originals = {key: getattr(config, key, None) for key in overrides}
    changed = copy.deepcopy(config)
    for key, value in overrides.items():
        setattr(changed, key, value)
    if rotary is not None:
        replacement = _make_rotary(changed, rotary).to(model.device)
    try:
        for key, value in overrides.items():
            setattr(config, key, value)
        if rotary is not None:
            decoder.rotary_emb = replacement
        yield
    finally:
        for key, value in originals.items():
            setattr(config, key, value)
        if rotary is not None:
            decoder.rotary_emb = rotary


def _make_rotary(config: Any, rotary: Any) -> Any:
    """Return a rotary module of the same class for a changed config.

    Raises:
        UserError: it would rotate another number of dimensions, or does not take the config.
    """
    # transformers derives it from other entries when it is missing, but not when it is None.
    if getattr(config, "head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    try:
        other = type(rotary)(config=config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        named = config.rope_parameters
        raise UserError(
            f"a {config.model_type} does not take the rope_parameters {named} ({type(error).__name__}: {error})"
        ) from error
    old, new = ({name: tuple(value.shape) for name, value in each.named_buffers()} for each in (rotary, other))
    if old != new:
        raise UserError(
            f"a {config.model_type} would rotate other parts of its heads than it does (pairs of dimensions "
            f"{sorted(new.values())} in place of {sorted(old.values())}): it does not take rope_parameters like these"
        )
    if _is_one_list(getattr(config, "rope_parameters", None) or {}):
        # transformers asks in every pass which of two equal lists to take: with this name it takes what it has.
        other.rope_type = "default"
    return other


def _is_one_list(rope: dict[str, Any]) -> bool:
    """Whether ``rope_parameters`` are of type ``longrope`` with the same frequencies at every length."""
    return rope.get("rope_type") == "longrope" and rope["short_factor"] == rope["long_factor"]
