"""From ``package.module:Class`` or ``./file.py:Class`` to the class, whoever wrote it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from longctx_bench.errors import UserError

C = TypeVar("C")


def load_class(use: str, kind: type[C], where: str, folder: Path | None) -> type[C]:
    """Return the class that a spec points at.

    Args:
        use: ``package.module:Class``, or ``./file.py:Class`` relative to ``folder``.
        kind: what it must be a subclass of.
        where: names the spec in the error.
        folder: of the YAML that holds the spec; without one, no file is loaded.

    Raises:
        UserError: it cannot be imported, whatever the code raises, or is no subclass of ``kind``.
    """
    module_name, _, class_name = use.partition(":")
    try:
        if module_name.endswith(".py"):
            module = _module_from_file(module_name, where, folder)
        else:
            module = importlib.import_module(module_name)
        loaded = getattr(module, class_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: use: {use}: cannot be loaded ({type(error).__name__}: {error})") from error
    if not (isinstance(loaded, type) and issubclass(loaded, kind)):
        raise UserError(f"{where}: use: {use}: is not a subclass of longctx_bench's {kind.__name__}")
    return loaded


def _module_from_file(name: str, where: str, folder: Path | None) -> ModuleType:
    if folder is None:
        raise UserError(f"{where}: use: {name}: names a file, which only a YAML file with a folder can")
    path = folder / name
    if not path.exists():
        raise UserError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"longctx_bench_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # pydantic looks the module up by name when it resolves a class's annotations.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
