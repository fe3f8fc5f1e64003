"""Source digests of plug-ins: sha256 of a module and of the local modules that it imports."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError

OWN_PACKAGE = "longctx_bench"
"""Its own classes have no digest: ``cell.json`` has the version and commit of this package."""


@dataclass(frozen=True)
class CodeDigest:
    """Digest of a plug-in's source at the time it was loaded."""

    sha256: str
    """Over names and contents of all files; comments count, the location of the folder does not."""
    files: tuple[str, ...]
    """Relative to the plug-in's folder, or to the parent folder of its package."""

    def record(self) -> dict[str, Any]:
        """Return the form stored in ``cell.json``."""
        return asdict(self) | {"files": list(self.files)}


def is_own_module(module: str) -> bool:
    """Whether a module belongs to this package."""
    return module.partition(".")[0] == OWN_PACKAGE


def digest_of_file(path: Path) -> CodeDigest:
    """Return the digest of a module given by its file, including what it imports from its folder.

    Raises:
        UserError: a file cannot be read.
    """
    return _ImportSearch(folder=path.parent).code(path.stem, "", path)


def digest_of_module(module: str) -> CodeDigest:
    """Return the digest of a module given by name, including what it imports from its package.

    For a top-level module: including modules of the same distribution if it is installed, else modules in its folder.

    Raises:
        UserError: its source cannot be read.
        ImportError: there is no such module.
    """
    path, top = _origin(module), module.partition(".")[0]
    inside = _package_folders(top)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    if inside:
        return _ImportSearch({top: inside}).code(module, package, path)
    if str(path.parent) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return _ImportSearch(folder=path.parent).code(module, package, path)
    distributions = packages_distributions()
    distribution = {*distributions.get(top, ())}
    siblings = {name for name, providers in distributions.items() if distribution & {*providers}}
    return _ImportSearch(folder=path.parent, names=siblings).code(module, package, path)


def digest_of_object(value: Any) -> CodeDigest | None:
    """Return the digest of the module of a class or function, or of its source alone if defined in a notebook.

    None for objects of this package.

    Raises:
        UserError: its source cannot be read.
    """
    name = getattr(value, "__module__", None) or type(value).__module__
    if is_own_module(name):
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is not None:
        return digest_of_file(Path(file)) if name == "__main__" else digest_of_module(name)
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError) as error:
        raise UserError(
            f"{value!r:.80}: its source cannot be read, which results identify it by; put it into a file"
        ) from error
    return CodeDigest(hashlib.sha256(source.encode()).hexdigest(), ("<typed in>",))


def _origin(module: str) -> Path:
    """Return a module's file without executing the module (its parent packages are executed)."""
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        origin = spec.origin
    if origin is None or not Path(origin).is_file():
        raise UserError(f"{module}: has no source file, by which results of its versions are told apart")
    return Path(origin)


def _package_folders(name: str) -> list[Path]:
    """Return the folders of a top-level package; empty for a module."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return [Path(folder) for folder in getattr(loaded, "__path__", ())]
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]


class _ImportSearch:
    """Finds the modules in some folders that a module imports, directly or indirectly, by static analysis."""

    def __init__(
        self,
        packages: Mapping[str, Sequence[Path]] | None = None,
        folder: Path | None = None,
        names: Container[str] | None = None,
    ) -> None:
        """Set where to search.

        Args:
            packages: folders of top-level packages, by name.
            folder: a folder with further modules.
            names: the modules in ``folder`` to consider; all when None.
        """
        self._packages, self._folder, self._names = packages or {}, folder, names

    def code(self, module: str, package: str, path: Path) -> CodeDigest:
        """Return the digest of a module and everything that it imports from these folders.

        Args:
            module: its name.
            package: the package that relative imports start from.
            path: its file.
        """
        files: dict[str, str] = {}
        pending = [(_label(module, path), package, path), *self._modules(package)]
        while pending:
            label, package, file = pending.pop()
            if label in files:
                continue
            try:
                content = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file}: cannot be read: {error.strerror}") from error
            files[label] = hashlib.sha256(content).hexdigest()
            if file.suffix == ".py":
                for imported in _imported(content, package):
                    pending += self._modules(imported)
        total = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        return CodeDigest(total, tuple(sorted(files)))

    def _modules(self, module: str) -> Iterator[tuple[str, str, Path]]:
        """Yield label, package and file of every module that importing a dotted name executes."""
        top, *parts = module.split(".")
        if not top or is_own_module(top):
            return
        name, folders = "", [self._folder] if self._folder is not None else []
        if top in self._packages:
            yield from _first(top, [folder / "__init__.py" for folder in self._packages[top]])
            name, folders = top, [*self._packages[top]]
        elif self._names is not None and top not in self._names:
            return
        else:
            parts = [top, *parts]
        for part in parts:
            name = f"{name}.{part}" if name else part
            endings = ("/__init__.py", *EXTENSION_SUFFIXES, ".py")
            yield from _first(name, [Path(f"{folder / part}{ending}") for folder in folders for ending in endings])
            folders = [folder / part for folder in folders if (folder / part).is_dir()]


def _first(module: str, files: Sequence[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield label, package and path of the first file that exists."""
    for file in files:
        if file.is_file():
            package = module if file.stem == "__init__" else module.rpartition(".")[0]
            yield _label(module, file), package, file
            return


def _label(module: str, file: Path) -> str:
    """Return the name of a module's file relative to its top-level package."""
    above = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    return "/".join([*above, file.name])


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield the dotted names that a module's source may import, at any level of nesting.

    Args:
        source: of the module; nothing is yielded if it is not valid Python.
        package: the package that relative imports start from.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".") if package else []
            if node.level > 1:
                above = above[: max(0, len(above) - node.level + 1)]
            start = [*(above if node.level else []), *((node.module or "").split(".") if node.module else [])]
            if start:
                yield ".".join(start)
            # A name imported from a package may be a submodule.
            yield from (".".join([*start, alias.name]) for alias in node.names)
