"""What another machine needs to know the same names: the user's folders of YAML and code, and a contestant's parts."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_bench.core.code_digest import CodeDigest
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import MethodSpec, ModelSpec, PathSource, Source
from longctx_bench.core.temp_dirs import ScratchFolder
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.models.variant import ModelVariant
from longctx_bench.registry import Registry

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".pyc")
"""Left behind: a model that a models.yaml names by its path is read where it lies."""
_MOST = 64 << 20
"""Bytes of a folder that are sent; code and YAML take far less."""


@dataclass(frozen=True)
class Parcel:
    """The folders that a registry was built from, as zip files."""

    baselines: tuple[bytes, ...]
    task_folders: tuple[bytes, ...]


@dataclass(frozen=True)
class VariantParts:
    """A variant without live objects: its class may come from a folder that only the other side's registry has."""

    model: ModelSpec
    spec: MethodSpec
    params: dict[str, Any]
    source: Source
    digest: str | None
    """Of weights that are named by a path; the other machine must find the same ones there."""
    base: BaseModelInfo
    code: CodeDigest | None = None
    """The source of a method that is not longctx-bench's own; the other machine must have the same."""


def pack(registry: Registry) -> Parcel:
    """Return a registry's own folders.

    Raises:
        UserError: a folder holds more than code and YAML.
    """
    return Parcel(_zipped(registry.baselines), _zipped(registry.task_folders))


def unpack(parcel: Parcel) -> tuple[Registry, AbstractContextManager[Any]]:
    """Return a registry of the same names, and the temporary folder that it reads: keep it while you use them."""
    scratch = ScratchFolder("longctx-bench-")
    folders: list[list[Path]] = []
    for kind in (parcel.baselines, parcel.task_folders):
        folders.append([])
        for content in kind:
            target = scratch.folder / f"{len(folders)}-{len(folders[-1])}"
            target.mkdir()
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(target)
            folders[-1].append(target)
    return Registry(baselines=folders[0], task_folders=folders[1]), scratch


def parts(variant: ModelVariant, base: BaseModelInfo, digest: str | None) -> VariantParts:
    """Take a variant apart; a relative path of its weights becomes absolute."""
    source = variant.source
    if isinstance(source, PathSource):
        source = source.model_copy(update={"path": source.path.resolve()})
    return VariantParts(variant.model, variant.spec, variant.method.model_dump(), source, digest, base, variant.code)


def _zipped(folders: Sequence[Path]) -> tuple[bytes, ...]:
    packed = []
    for folder in folders:
        files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix not in _WEIGHTS)
        size = sum(file.stat().st_size for file in files)
        if size > _MOST:
            raise UserError(
                f"{folder}: holds {size >> 20} MiB besides weights, and at most {_MOST >> 20} are sent to Ray's "
                f"workers; keep data elsewhere"
            )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
        packed.append(buffer.getvalue())
    return tuple(packed)
