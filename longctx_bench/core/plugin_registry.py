"""Registries of what can be added from outside: by a decorator, or by an entry point of an installed package."""

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
    """Objects of one kind by name: those that ship, those of installed packages, those that code registers.

    Names are known without importing anything; an object is imported when it is asked for. What ships cannot be
    replaced from outside, so that a name in a paper means one thing.
    """

    def __init__(self, kind: str, shipped: Mapping[str, T | str]) -> None:
        """Start with what ships.

        Args:
            kind: a singular noun for messages (``metric``); entry points are in the group ``longctx_bench.metrics``.
            shipped: objects, or where they are: ``package.module:name``.
        """
        self.kind = kind
        self.group = f"longctx_bench.{kind}s"
        self.shipped = shipped
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Return a decorator that adds what it decorates under a name.

        Raises:
            UserError: something that ships has that name.
        """
        if name in self.shipped:
            raise UserError(f"{self.kind} '{name}': longctx-bench has one of that name; choose another")

        def decorator(value: U) -> U:
            self._registered[name] = value  # type: ignore[assignment]
            return value

        return decorator

    def names(self) -> list[str]:
        """Return all names: what ships first, then the others by name."""
        return [*self.shipped, *sorted({*self._installed, *self._registered} - self.shipped.keys())]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.shipped or name in self._registered or name in self._installed

    def find(self, name: str) -> LoadedObject:
        """Return the object of a name and, unless it ships, its source.

        Raises:
            UserError: there is none of that name (with the near miss), or it cannot be imported.
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
        """Return what a YAML names: a name that is known here, ``package.module:name`` or ``./file.py:name``.

        Arguments and errors as :func:`longctx_bench.core.plugins.load_object`.
        """
        if ":" in use or use.endswith(".py"):
            return load_object(use, where, folder)
        try:
            return self.find(use)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def location(self, name: str) -> str:
        """Return ``package.module:name`` of what ships or is installed under a name; anything else as it is."""
        location = self.shipped.get(name) or self._installed.get(name)
        return location if isinstance(location, str) else name

    def __getitem__(self, name: str) -> T:
        value: T = self.find(name).value
        return value

    @property
    def _installed(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self.group)}
