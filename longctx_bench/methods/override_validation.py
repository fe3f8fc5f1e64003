"""Whether what a method writes into a config keeps all of a base's positions that it does not say it changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from longctx_bench.core.errors import UserError
from longctx_bench.methods.rope_parameters import FULL, RotaryPositions, is_unrotated, num_rotary_pairs

Change = Literal["theta", "rotary_pairs", "original_length", "scaling"]
"""What a method may declare that it changes: the rotary base, how many pairs of dimensions are rotated, the length that
the scaling starts from, and a scaling that the base has already."""

_DEFAULT_ALONE = ("phimoe",)
"""Model types whose rotary positions take ``default`` with any theta, and of all else only their own longrope."""
_SCALING = (
    "rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor", "short_mscale", "long_mscale",
    "low_freq_factor", "high_freq_factor",
)  # fmt: skip
"""Entries of ``rope_parameters`` that belong to one kind of scaling, and say nothing about another."""
_BEFORE_5 = ("rope_scaling", "rope_theta", "partial_rotary_factor")
"""Config entries of transformers 4, which transformers 5 passes by when they are set on a loaded model."""


def merge_rope_parameters(
    method: str, changes: Collection[Change], name: str, positions: RotaryPositions, returned: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``rope_parameters`` with all that a method left out taken from the base, and nothing else changed.

    Args:
        method: its class, for messages.
        changes: what it declares that it changes.
        name: the base's.
        positions: the base's own.
        returned: the method's ``rope_parameters``, flat, or by layer type where the base's are.

    Raises:
        UserError: it changes what it does not declare, or what it does means nothing on this base.
    """
    if not isinstance(returned, Mapping):
        raise UserError(f"{name}: {method} gives rope_parameters that are no mapping: {returned!r}")
    nested = {key: value for key, value in (positions.nested or {}).items() if value is not None}
    if not nested:
        return _kept(method, changes, name, positions, positions.rope, returned)
    given = returned
    if not any(key in nested for key in returned):
        # Without positions means in every layer; all else is about distances that a window hides.
        given = dict.fromkeys(nested, returned) if is_unrotated(returned) else {FULL: returned}
    for key, value in given.items():
        if key not in nested or not isinstance(value, Mapping):
            raise UserError(f"{name}: {method} gives rope_parameters for '{key}', and it has no layers of that type")
        if value.get("rope_type") == "longrope":
            raise UserError(f"{name}: transformers cannot compute longrope where positions differ by layer")
    merged = {key: _kept(method, changes, name, positions, nested[key], value) for key, value in given.items()}
    return {key: merged.get(key, dict(value)) for key, value in nested.items()}


def _kept(
    method: str,
    changes: Collection[Change],
    name: str,
    base: RotaryPositions,
    own: Mapping[str, Any],
    new: Mapping[str, Any],
) -> dict[str, Any]:
    before = RotaryPositions({"rope_type": "default", **own}, base.head_dim, base.training_context)
    said = {"rope_type": new.get("rope_type") or new.get("type") or before.rope["rope_type"], **new}
    said.pop("type", None)
    same = said["rope_type"] == before.rope["rope_type"] or before.rope["rope_type"] == "default"
    merged = {key: value for key, value in own.items() if key != "type" and (same or key not in _SCALING)} | said
    if merged == before.rope:
        return merged
    if before.pairs == 0 and not is_unrotated(said):
        raise UserError(f"{name}: has no rotary positions left for {method} to change")
    if "llama_4_scaling_beta" in own:
        raise UserError(
            f"{name}: scales queries by their positions besides rotating them ('llama_4_scaling_beta'), which {method} "
            f"does not know of; run it as it is, without a method"
        )
    if base.kind in _DEFAULT_ALONE and merged["rope_type"] != "default":
        raise UserError(f"{name}: a {base.kind} takes no rotary positions of type '{merged['rope_type']}'")
    if is_unrotated(merged):
        _refuse(method, changes, name, {"rotary_pairs": (before.pairs, 0)})
        return merged
    if before.scaling is not None and "scaling" not in changes:
        raise already_scaled_error(method, name, before.scaling, base.training_context)
    start = merged.get("original_max_position_embeddings") or base.training_context
    changed: dict[Change, tuple[float, float]] = {
        "rotary_pairs": (before.pairs, num_rotary_pairs(merged, base.head_dim)),
        "theta": (float(before.rope["rope_theta"]), float(merged["rope_theta"])),
        # A scaling of its own has its own beginning, and is replaced whole where that is declared.
        "original_length": (base.training_context if before.scaling is None else start, start),
    }
    _refuse(method, changes, name, changed)
    if base.window is not None and base.window <= base.training_context:
        raise UserError(
            f"{name}: all layers with rotary positions attend to the last {base.window} tokens alone, within its "
            f"training context of {base.training_context}: there is no distance for {method} to extend; run it as it is"
        )
    return merged


def already_scaled_error(method: str, name: str, scaling: str, length: int) -> UserError:
    """Return the refusal of a method on a base that has a scaling of its own."""
    return UserError(
        f"{name}: its positions have a scheme of their own ({scaling}), with which it reads {length} tokens, and "
        f"{method} on top of that is not defined; run it as it is, without a method"
    )


def _refuse(method: str, changes: Collection[Change], name: str, changed: Mapping[Change, tuple[float, float]]) -> None:
    for what, (before, after) in changed.items():
        if before != after and what not in changes:
            raise UserError(
                f"{name}: {method} would change its {what} from {before:g} to {after:g}, which it does not declare; "
                f"leave that out of rope_parameters, or declare it: changes = frozenset({{'{what}'}})"
            )


def reject_legacy_keys(method: str, name: str, entries: Mapping[str, Any]) -> None:
    """Refuse config entries that transformers 5 would pass by without a word.

    Raises:
        UserError: there is one.
    """
    for key in _BEFORE_5:
        if key in entries:
            raise UserError(f"{name}: {method} sets '{key}', which has no effect; put it into rope_parameters")


def reject_length_change(method: str, name: str, config: Mapping[str, Any]) -> None:
    """Refuse to change ``max_position_embeddings`` alone where a base's own frequencies are computed from it.

    Raises:
        UserError: they are.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "dynamic" or (kind in {"yarn", "longrope", "su"} and not rope.get("factor")):
        raise UserError(
            f"{name}: {method} would change its max_position_embeddings, which its own scaling ('{kind}') is computed "
            f"from; run it as it is"
        )
