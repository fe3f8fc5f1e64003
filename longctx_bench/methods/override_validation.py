"""Validation of config overrides: a method may change only those properties of positions that it declares."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from longctx_bench.core.errors import UserError
from longctx_bench.methods.rope_parameters import FULL, RotaryPositions, is_unrotated, num_rotary_pairs

Change = Literal["theta", "rotary_pairs", "original_length", "scaling"]
"""What a method may declare to change: the rotary base, the number of rotated pairs of dimensions, the length before
scaling, and a scaling that the base model already has."""

_DEFAULT_ONLY = ("phimoe",)
"""Model types that support only ``default`` rotary positions (with any theta) and their own longrope."""
_SCALING = (
    "rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor", "short_mscale", "long_mscale",
    "low_freq_factor", "high_freq_factor",
)  # fmt: skip
"""Entries of ``rope_parameters`` that are specific to one kind of scaling."""
_LEGACY_KEYS = ("rope_scaling", "rope_theta", "partial_rotary_factor")
"""Config entries of transformers 4, which transformers 5 ignores when set on a loaded model."""


def merge_rope_parameters(
    method: str, changes: Collection[Change], name: str, positions: RotaryPositions, returned: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge a method's ``rope_parameters`` with the base model's, rejecting undeclared changes.

    Args:
        method: class name of the method, for messages.
        changes: the declared changes.
        name: name of the base model.
        positions: the base model's positions.
        returned: the method's ``rope_parameters``, flat, or by layer type if the base model's are.

    Raises:
        UserError: an undeclared change, or one that is meaningless for this base model.
    """
    if not isinstance(returned, Mapping):
        raise UserError(f"{name}: {method} returned rope_parameters that are not a mapping: {returned!r}")
    nested = {key: value for key, value in (positions.nested or {}).items() if value is not None}
    if not nested:
        return _merge(method, changes, name, positions, positions.rope, returned)
    given = returned
    if not any(key in nested for key in returned):
        # Removing positions applies to all layers, anything else only to full attention (windows are short).
        given = dict.fromkeys(nested, returned) if is_unrotated(returned) else {FULL: returned}
    for key, value in given.items():
        if key not in nested or not isinstance(value, Mapping):
            raise UserError(
                f"{name}: {method} returned rope_parameters for '{key}', but the model has no layers of that type"
            )
        if value.get("rope_type") == "longrope":
            raise UserError(f"{name}: transformers cannot compute longrope where positions differ by layer")
    merged = {key: _merge(method, changes, name, positions, nested[key], value) for key, value in given.items()}
    return {key: merged.get(key, dict(value)) for key, value in nested.items()}


def _merge(
    method: str,
    changes: Collection[Change],
    name: str,
    base: RotaryPositions,
    base_rope: Mapping[str, Any],
    method_rope: Mapping[str, Any],
) -> dict[str, Any]:
    original = RotaryPositions({"rope_type": "default", **base_rope}, base.head_dim, base.training_context)
    update = {
        "rope_type": method_rope.get("rope_type") or method_rope.get("type") or original.rope["rope_type"],
        **method_rope,
    }
    update.pop("type", None)
    same_type = update["rope_type"] == original.rope["rope_type"] or original.rope["rope_type"] == "default"
    merged = {
        key: value for key, value in base_rope.items() if key != "type" and (same_type or key not in _SCALING)
    } | update
    if merged == original.rope:
        return merged
    if original.pairs == 0 and not is_unrotated(update):
        raise UserError(f"{name}: has no rotary positions left for {method} to change")
    if "llama_4_scaling_beta" in base_rope:
        raise UserError(
            f"{name}: scales queries by position in addition to RoPE ('llama_4_scaling_beta'), which {method} does not "
            f"support; run it without a method"
        )
    if base.kind in _DEFAULT_ONLY and merged["rope_type"] != "default":
        raise UserError(f"{name}: a {base.kind} does not support rotary positions of type '{merged['rope_type']}'")
    if is_unrotated(merged):
        _reject_undeclared(method, changes, name, {"rotary_pairs": (original.pairs, 0)})
        return merged
    if original.scaling is not None and "scaling" not in changes:
        raise already_scaled_error(method, name, original.scaling, base.training_context)
    start = merged.get("original_max_position_embeddings") or base.training_context
    changed: dict[Change, tuple[float, float]] = {
        "rotary_pairs": (original.pairs, num_rotary_pairs(merged, base.head_dim)),
        "theta": (float(original.rope["rope_theta"]), float(merged["rope_theta"])),
        # A scaling of the base model has its own original length, and is replaced as a whole if declared.
        "original_length": (base.training_context if original.scaling is None else start, start),
    }
    _reject_undeclared(method, changes, name, changed)
    if base.window is not None and base.window <= base.training_context:
        raise UserError(
            f"{name}: all layers with rotary positions attend only to the last {base.window} tokens, within its "
            f"training context of {base.training_context}, so {method} has no distance to extend; run it without a "
            f"method"
        )
    return merged


def already_scaled_error(method: str, name: str, scaling: str, length: int) -> UserError:
    """Return the error for a method on a base model that already has a scaling."""
    return UserError(
        f"{name}: its positions are already scaled ({scaling}, context {length}), and {method} on top of that is not "
        f"defined; run it without a method"
    )


def _reject_undeclared(
    method: str, changes: Collection[Change], name: str, changed: Mapping[Change, tuple[float, float]]
) -> None:
    for change, (before, after) in changed.items():
        if before != after and change not in changes:
            raise UserError(
                f"{name}: {method} would change its {change} from {before:g} to {after:g}, which it does not declare; "
                f"leave that out of rope_parameters, or declare it: changes = frozenset({{'{change}'}})"
            )


def reject_legacy_keys(method: str, name: str, entries: Mapping[str, Any]) -> None:
    """Reject config entries that transformers 5 would silently ignore.

    Raises:
        UserError: there is one.
    """
    for key in _LEGACY_KEYS:
        if key in entries:
            raise UserError(f"{name}: {method} sets '{key}', which has no effect; put it into rope_parameters")


def reject_length_change(method: str, name: str, config: Mapping[str, Any]) -> None:
    """Reject a change of ``max_position_embeddings`` alone if the base model's frequencies depend on it.

    Raises:
        UserError: they do.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "dynamic" or (kind in {"yarn", "longrope", "su"} and not rope.get("factor")):
        raise UserError(
            f"{name}: {method} would change its max_position_embeddings, from which its scaling ('{kind}') is "
            f"computed; run it without a method"
        )
