"""What a plug-in's source is known by: a digest of its module and of the modules beside it that it imports."""

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
"""Whose classes have no digest: ``cell.json`` says which version of this package measured, and its commit."""


@dataclass(frozen=True)
class CodeDigest:
    """The source of a plug-in, as it was when it was loaded."""

    sha256: str
    """Of all files' names and bytes: a comment counts, the folder that they lie in does not."""
    files: tuple[str, ...]
    """Relative to the plug-in's folder, or to the one that its package lies in."""

    def record(self) -> dict[str, Any]:
        """Return it as ``cell.json`` holds it."""
        return asdict(self) | {"files": list(self.files)}


def is_own_module(module: str) -> bool:
    """Tell whether a module is one of this package's."""
    return module.partition(".")[0] == OWN_PACKAGE


def digest_of_file(path: Path) -> CodeDigest:
    """Return the code of a module that is named by its file: it, and what it imports out of its folder.

    Raises:
        UserError: a file cannot be read.
    """
    return _Search(folder=path.parent).code(path.stem, "", path)


def digest_of_module(module: str) -> CodeDigest:
    """Return the code of a module that Python finds by name: it, and what it imports out of its package.

    A module without a package may have others beside it: those of its own distribution where it is an installed one,
    else those in its folder.

    Raises:
        UserError: there is no source that could be read.
        ImportError: there is no such module.
    """
    path, top = _origin(module), module.partition(".")[0]
    inside = _package_folders(top)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    if inside:
        return _Search({top: inside}).code(module, package, path)
    if str(path.parent) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return _Search(folder=path.parent).code(module, package, path)
    distributions = packages_distributions()
    own = {*distributions.get(top, ())}
    beside = {name for name, others in distributions.items() if own & {*others}}
    return _Search(folder=path.parent, names=beside).code(module, package, path)


def digest_of_object(value: Any) -> CodeDigest | None:
    """Return the code of a class or function: that of its module, or of it alone where it was typed into a notebook.

    None where it is this package's own.

    Raises:
        UserError: there is no source that could be read.
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
        raise UserError(f"{value!r:.80}: its source cannot be read, and results name it; put it into a file") from error
    return CodeDigest(hashlib.sha256(source.encode()).hexdigest(), ("<typed in>",))


def _origin(module: str) -> Path:
    """Return a module's file without running it, but for the packages that it lies in."""
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        origin = spec.origin
    if origin is None or not Path(origin).is_file():
        raise UserError(f"{module}: has no source file, by which its results could be told from another version's")
    return Path(origin)


def _package_folders(name: str) -> list[Path]:
    """Return where a top-level package lies; nothing when it is a module."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return [Path(folder) for folder in getattr(loaded, "__path__", ())]
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]


class _Search:
    """Finds the modules that a module imports, directly or not, among those of some folders; runs none of them."""

    def __init__(
        self,
        packages: Mapping[str, Sequence[Path]] | None = None,
        folder: Path | None = None,
        names: Container[str] | None = None,
    ) -> None:
        """Say where to look.

        Args:
            packages: folders of top-level packages, by name.
            folder: that holds further modules.
            names: which of those in ``folder`` to look at; all when None.
        """
        self._packages, self._folder, self._names = packages or {}, folder, names

    def code(self, module: str, package: str, path: Path) -> CodeDigest:
        """Return the digest of a module and all that it imports here.

        Args:
            module: its name.
            package: that its relative imports start from.
            path: its file.
        """
        files: dict[str, str] = {}
        waiting = [(_label(module, path), package, path), *self._modules(package)]
        while waiting:
            label, package, file = waiting.pop()
            if label in files:
                continue
            try:
                content = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file}: cannot be read: {error.strerror}") from error
            files[label] = hashlib.sha256(content).hexdigest()
            if file.suffix == ".py":
                for imported in _imported(content, package):
                    waiting += self._modules(imported)
        total = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        return CodeDigest(total, tuple(sorted(files)))

    def _modules(self, module: str) -> Iterator[tuple[str, str, Path]]:
        """Yield label, package and file of all that importing a dotted name runs: packages on the way, and itself."""
        top, *rest = module.split(".")
        if not top or is_own_module(top):
            return
        name, folders = "", [self._folder] if self._folder is not None else []
        if top in self._packages:
            yield from _first(top, [folder / "__init__.py" for folder in self._packages[top]])
            name, folders = top, [*self._packages[top]]
        elif self._names is not None and top not in self._names:
            return
        else:
            rest = [top, *rest]
        for part in rest:
            name = f"{name}.{part}" if name else part
            endings = ("/__init__.py", *EXTENSION_SUFFIXES, ".py")
            yield from _first(name, [Path(f"{folder / part}{ending}") for folder in folders for ending in endings])
            folders = [folder / part for folder in folders if (folder / part).is_dir()]


def _first(module: str, files: Sequence[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield label, package and path of the first of some files that is there."""
    for file in files:
        if file.is_file():
            package = module if file.stem == "__init__" else module.rpartition(".")[0]
            yield _label(module, file), package, file
            return


def _label(module: str, file: Path) -> str:
    """Return what a module's file is called wherever its package lies."""
    above = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    return "/".join([*above, file.name])


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield the dotted names that a module's source may import, wherever in it the statement stands.

    Args:
        source: that is not Python names nothing: it cannot be run either.
        package: that relative imports start from.
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
            # What is taken from a package may be a module of it.
            yield from (".".join([*start, alias.name]) for alias in node.names)
