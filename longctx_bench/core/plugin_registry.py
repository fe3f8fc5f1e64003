"""Plug-in registries: objects by name, extensible with a decorator or an entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from longctx_bench.core.code_digest import digest_of_object
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.plugins import LoadedObject, load_object

T = TypeVar("T")
U = TypeVar("U")


class PluginRegistry(Generic[T]):
    """Objects of one kind by name: built in, from installed packages, or registered in code.

    Names are listed without importing anything; objects are imported on first use. Built-in names cannot be replaced by
    plug-ins, so that a name in a paper means one thing.
    """

    def __init__(self, kind: str, shipped: Mapping[str, T | str]) -> None:
        """Create a registry with its built-in objects.

        Args:
            kind: a singular noun for messages (``metric``); entry points are in the group ``longctx_bench.metrics``.
            shipped: built-in objects, or their locations as ``package.module:name``.
        """
        self.kind = kind
        self.group = f"longctx_bench.{kind}s"
        self.shipped = shipped
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Return a decorator that registers an object under a name.

        Raises:
            UserError: the name is built in.
        """
        if name in self.shipped:
            raise UserError(f"{self.kind} '{name}': is a built-in name; choose another")

        def decorator(value: U) -> U:
            self._registered[name] = value  # type: ignore[assignment]
            return value

        return decorator

    def names(self) -> list[str]:
        """Return all names: built-in ones first, then the others, sorted."""
        return [*self.shipped, *sorted({*self._installed, *self._registered} - self.shipped.keys())]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.shipped or name in self._registered or name in self._installed

    def find(self, name: str) -> LoadedObject:
        """Return the object of that name and, for plug-ins, its source digest.

        Raises:
            UserError: the name is unknown (with a suggestion), or the object cannot be imported.
        """
        if name in self.shipped:
            value = self.shipped[name]
            return load_object(value, self.kind, None) if isinstance(value, str) else LoadedObject(value, None)
        if name in self._registered:
            return LoadedObject(self._registered[name], digest_of_object(self._registered[name]))
        if name in self._installed:
            return load_object(self._installed[name], f"{self.kind} '{name}'", None)
        raise UserError(f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}")

    def resolve(self, use: str, where: str, folder: Path | None) -> LoadedObject:
        """Return the object that a YAML names: a registered name, ``package.module:name`` or ``./file.py:name``.

        Arguments and errors as :func:`longctx_bench.core.plugins.load_object`.
        """
        if ":" in use or use.endswith(".py"):
            return load_object(use, where, folder)
        try:
            return self.find(use)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def location(self, name: str) -> str:
        """Return ``package.module:name`` of a built-in or installed object; any other name unchanged."""
        location = self.shipped.get(name) or self._installed.get(name)
        return location if isinstance(location, str) else name

    def __getitem__(self, name: str) -> T:
        value: T = self.find(name).value
        return value

    @property
    def _installed(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self.group)}
