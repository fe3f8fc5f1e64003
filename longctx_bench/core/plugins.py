"""Plug-in loading: ``package.module:Class`` or ``./file.py:Class`` to the class and its source digest."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from longctx_bench.core.code_digest import CodeDigest, digest_of_file, digest_of_module, is_own_module
from longctx_bench.core.errors import UserError, did_you_mean, missing_extra


class LoadedObject(NamedTuple):
    """An object that a spec names."""

    value: Any
    code: CodeDigest | None
    """Its source digest; None for objects of this package."""


_PACKAGE = "longctx_bench_plugin_"
"""Begins the names of the packages that modules from files are in."""
_CODE: dict[str, CodeDigest] = {}
"""By module name. Kept, because Python keeps imported modules: a later edit of the file is not what runs."""


def load_object(use: str, where: str, folder: Path | None) -> LoadedObject:
    """Return the object that a spec names, with its source digest.

    A file may import its neighbours with ``from .other import name``; modules of the same name in other folders are
    kept apart.

    Args:
        use: ``package.module:name``, or ``./file.py:name`` relative to ``folder``.
        where: names the spec in the error.
        folder: of the YAML with the spec; required for ``./file.py``.

    Raises:
        UserError: the module cannot be imported (whatever it raises), or has no such name.
    """
    module_name, _, name = use.partition(":")
    try:
        named_by_file = module_name.endswith(".py")
        module, code = _module_from_file(module_name, where, folder) if named_by_file else _module_by_name(module_name)
    except UserError:
        raise
    except Exception as error:
        if hint := missing_extra(error):
            raise UserError(f"{where}: {hint}") from error
        reason = f"{type(error).__name__}: {error}{_hint(error, module_name, folder)}"
        raise UserError(f"{where}: {use}: cannot be loaded ({reason})") from error
    value = getattr(module, name, None) if name else None
    if value is None:
        defined = sorted(
            attribute
            for attribute, member in vars(module).items()
            if callable(member) and getattr(member, "__module__", None) == module.__name__
        )
        wrong = f"has no '{name}'" if name else "names nothing in it"
        raise UserError(f"{where}: {use}: {wrong}; expected {module_name}:NAME{did_you_mean(name, defined)}")
    return LoadedObject(value, code)


def location_of(kind: type) -> tuple[str, Path | None]:
    """Return ``use``, and ``folder`` if that is a file, by which :func:`load_object` finds a class in any process."""
    if not kind.__module__.startswith(_PACKAGE):
        return f"{kind.__module__}:{kind.__qualname__}", None
    path = Path(str(sys.modules[kind.__module__].__file__))
    return f"{path.name}:{kind.__qualname__}", path.parent


def _module_by_name(name: str) -> tuple[ModuleType, CodeDigest | None]:
    code = None if is_own_module(name) else _CODE.get(name) or digest_of_module(name)
    module = importlib.import_module(name)
    if code is not None:
        _CODE[name] = code
    return module, code


def _module_from_file(name: str, where: str, folder: Path | None) -> tuple[ModuleType, CodeDigest]:
    if folder is None:
        raise UserError(f"{where}: {name}: names a file, which only a YAML file with a folder can")
    path = folder / name
    if not path.exists():
        raise UserError(f"{path}: no such file")
    code = digest_of_file(path)
    # One package per folder and source digest: modules imported before an edit are not reused.
    digest = hashlib.sha256(f"{path.resolve()} {code.sha256}".encode()).hexdigest()[:16]
    package = ModuleType(f"{_PACKAGE}{digest}")
    package.__path__ = [str(path.parent)]
    sys.modules.setdefault(package.__name__, package)
    module_name = f"{package.__name__}.{path.stem.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(module_name, path, loader=_FromSource(module_name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # pydantic looks the module up by name when it resolves a class's annotations.
    sys.modules[spec.name] = module
    importlib.invalidate_caches()
    with _no_bytecode():
        spec.loader.exec_module(module)
    return module, code


class _FromSource(SourceFileLoader):
    """Always compiles the source: bytecode files detect edits only by whole seconds."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Write no bytecode next to a user's modules, for the same reason."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _hint(error: Exception, module_name: str, folder: Path | None) -> str:
    """Return how to import a neighbouring module if an import of one failed."""
    if not (isinstance(error, ModuleNotFoundError) and error.name and folder and module_name.endswith(".py")):
        return ""
    neighbour = (folder / module_name).parent / error.name.partition(".")[0]
    if neighbour.is_dir() or neighbour.with_suffix(".py").is_file():
        return f"; it is next to the file: write `from .{error.name} import ...`"
    return ""
