"""Old names that plug-ins may still use: they work for one release, with a DeprecationWarning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn_renamed(old: str, new: str) -> None:
    """Emit a DeprecationWarning that ``old`` is now called ``new``."""
    warnings.warn(f"{old} is deprecated and will be removed in the next release; use {new}", DeprecationWarning, 3)


def renamed_attributes(module: str, renamed: Mapping[str, str], namespace: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` (PEP 562) that resolves old names.

    Args:
        module: the module's ``__name__``.
        renamed: new name by old name.
        namespace: the module's ``globals()``.
    """

    def resolve(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", renamed[name])
        return namespace[renamed[name]]

    return resolve


def alias_renamed_methods(cls: type, renamed: Mapping[str, str]) -> None:
    """Let a class override a method under its old name, and let subclasses call either name.

    To be called for each subclass: an override of the old name becomes one of the new name, and the other way round,
    so that ``super().old()`` of a plug-in reaches the parent's method.

    Args:
        cls: the class that was just defined.
        renamed: new method name by old name.
    """
    for old, new in renamed.items():
        if new in cls.__dict__:
            if old not in cls.__dict__:
                setattr(cls, old, cls.__dict__[new])
        elif old in cls.__dict__:
            warn_renamed(f"{cls.__name__}.{old}", new)
            setattr(cls, new, cls.__dict__[old])
