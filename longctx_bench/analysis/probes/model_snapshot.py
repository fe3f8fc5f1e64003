"""What a loaded model is made of, to find what a method left behind."""

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

_PARTS = ("_parameters", "_buffers", "_modules")
"""Of a module's own attributes; these are looked at by themselves."""


class ModelState:
    """Weights, buffers, config, attributes and hooks of a model, and the code behind it, at one moment."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take it down; the objects are kept, so that none of them can be taken for another one."""
        found: dict[str, Any] = {"attention implementation": model.config._attn_implementation}
        found |= _flat("config", model.config.to_dict())
        if model.generation_config is not None:
            found |= _flat("generation_config", model.generation_config.to_dict())
        tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        for name, tensor in tensors.items():
            found[name] = tensor
            found[f"{name} (values)"] = _digest(tensor)
            found[f"{name}.requires_grad"] = tensor.requires_grad
            found[f"{name}.grad"] = tensor.grad
        for name, module in model.named_modules(remove_duplicate=False):
            found[f"module {name}"] = module
            for key, value in vars(module).items():
                if key not in _PARTS:
                    found |= _flat(f"{name}.{key}", value)
        classes = {kind for module in model.modules() for kind in type(module).__mro__}
        for kind in classes:
            # torch's own modules hold caches.
            if kind.__module__.partition(".")[0] != "torch":
                found |= {f"{kind.__qualname__}.{key}": value for key, value in _code(vars(kind)).items()}
        for home in {type(module).__module__ for module in model.modules()}:
            found |= {f"{home}.{key}": value for key, value in _code(vars(sys.modules[home])).items()}
        # A name that a method added may stay known, and mean another function each time: nobody else asks for it.
        self._known = {
            f"transformers' {what} '{name}'": function
            for what, functions in (("attention", ALL_ATTENTION_FUNCTIONS), ("mask", ALL_MASK_ATTENTION_FUNCTIONS))
            for name, function in functions.items()
            if getattr(function, "__module__", "").startswith("transformers.")
        }
        found["torch's scaled_dot_product_attention"] = functional.scaled_dot_product_attention
        found["torch's default dtype"] = torch.get_default_dtype()
        found["whether torch keeps gradients"] = torch.is_grad_enabled()
        self._found = found

    def differences(self, later: ModelState) -> list[str]:
        """Name what is another thing, there no more, or new, later."""
        names = dict.fromkeys([*self._found, *later._found])
        changed = [name for name in names if not _same(self._found.get(name, _NONE), later._found.get(name, _NONE))]
        return changed + [name for name, function in self._known.items() if later._known.get(name) is not function]


_NONE = object()


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a value by its name, and what is in a mapping or list one by one: they may be changed in place."""
    if isinstance(value, Mapping):
        return {f"{name}.{key}": item for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return {f"{name}[{place}]": item for place, item in enumerate(value)}
    return {name: value}


def _code(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the functions and classes among some names."""
    return {key: value for key, value in names.items() if callable(value)}


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    plain = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, torch.dtype, torch.device)
    return type(one) is type(other) and isinstance(one, plain) and bool(one == other)


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes()).hexdigest()
