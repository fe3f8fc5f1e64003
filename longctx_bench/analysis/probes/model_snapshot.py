"""Snapshots of a loaded model's state, to find changes that a method did not undo."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_MODULE_DICTS = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that are inspected separately."""


class ModelState:
    """Weights, buffers, config, attributes and hooks of a model, and the code behind it, at one moment."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the snapshot. It keeps references to the objects, so that no id is reused."""
        state: dict[str, Any] = {"attention implementation": model.config._attn_implementation}
        state |= _flat("config", model.config.to_dict())
        if model.generation_config is not None:
            state |= _flat("generation_config", model.generation_config.to_dict())
        tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        for name, tensor in tensors.items():
            state[name] = tensor
            state[f"{name} (values)"] = _digest(tensor)
            state[f"{name}.requires_grad"] = tensor.requires_grad
            state[f"{name}.grad"] = tensor.grad
        for name, module in model.named_modules(remove_duplicate=False):
            state[f"module {name}"] = module
            for key, value in vars(module).items():
                if key not in _MODULE_DICTS:
                    state |= _flat(f"{name}.{key}", value)
        classes = {kind for module in model.modules() for kind in type(module).__mro__}
        for kind in classes:
            # torch's own modules hold caches.
            if kind.__module__.partition(".")[0] != "torch":
                state |= {f"{kind.__qualname__}.{key}": value for key, value in _code(vars(kind)).items()}
        for home in {type(module).__module__ for module in model.modules()}:
            state |= {f"{home}.{key}": value for key, value in _code(vars(sys.modules[home])).items()}
        # A name that a method registers may remain, with another function each time: no other code uses it.
        self._registered_functions = {
            f"transformers' {what} '{name}'": function
            for what, functions in (("attention", ALL_ATTENTION_FUNCTIONS), ("mask", ALL_MASK_ATTENTION_FUNCTIONS))
            for name, function in functions.items()
            if getattr(function, "__module__", "").startswith("transformers.")
        }
        state["torch's scaled_dot_product_attention"] = functional.scaled_dot_product_attention
        state["torch's default dtype"] = torch.get_default_dtype()
        state["whether torch keeps gradients"] = torch.is_grad_enabled()
        self._state = state

    def differences(self, later: ModelState) -> list[str]:
        """Return the names of what was changed, removed or added in a later snapshot."""
        names = dict.fromkeys([*self._state, *later._state])
        changed = [name for name in names if not _same(self._state.get(name, _NONE), later._state.get(name, _NONE))]
        return changed + [
            name
            for name, function in self._registered_functions.items()
            if later._registered_functions.get(name) is not function
        ]


_NONE = object()


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a value by name; the items of a mapping or list one by one, as they may be changed in place."""
    if isinstance(value, Mapping):
        return {f"{name}.{key}": item for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return {f"{name}[{index}]": item for index, item in enumerate(value)}
    return {name: value}


def _code(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the callables of a namespace."""
    return {key: value for key, value in names.items() if callable(value)}


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    plain = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, torch.dtype, torch.device)
    return type(one) is type(other) and isinstance(one, plain) and bool(one == other)


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes()).hexdigest()
