"""Registry bundles: the user's include paths and model variants, serialized for other machines."""

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
"""Not sent: weights are read from the path that a models.yaml names."""
_MAX_BYTES = 64 << 20
"""Maximum size of a folder; code and YAML are far smaller."""


@dataclass(frozen=True)
class RegistryBundle:
    """A registry's include paths, as zip files."""

    include_paths: tuple[bytes, ...]


@dataclass(frozen=True)
class SerializedVariant:
    """A variant without live objects: the other machine's registry loads the method class."""

    model: ModelSpec
    spec: MethodSpec
    params: dict[str, Any]
    source: Source
    digest: str | None
    """Digest of weights given by a path, which the other machine checks."""
    base: BaseModelInfo
    code: CodeDigest | None = None
    """Code digest of a plug-in method, which the other machine checks."""


def pack(registry: Registry) -> RegistryBundle:
    """Zip a registry's include paths.

    Raises:
        UserError: a folder holds more than code and YAML.
    """
    return RegistryBundle(_zipped(registry.include_paths))


def unpack(bundle: RegistryBundle) -> tuple[Registry, AbstractContextManager[Any]]:
    """Return the registry and the temporary folder that it reads, to keep while the registry is used."""
    scratch = ScratchFolder("longctx-bench-")
    folders = []
    for number, content in enumerate(bundle.include_paths):
        target = scratch.folder / str(number)
        target.mkdir()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(target)
        folders.append(target)
    return Registry(folders), scratch


def serialize(variant: ModelVariant, base: BaseModelInfo, digest: str | None) -> SerializedVariant:
    """Serialize a variant, with the path of its weights made absolute."""
    source = variant.source
    if isinstance(source, PathSource):
        source = source.model_copy(update={"path": source.path.resolve()})
    return SerializedVariant(
        variant.model, variant.spec, variant.method.model_dump(), source, digest, base, variant.code
    )


def _zipped(folders: Sequence[Path]) -> tuple[bytes, ...]:
    packed = []
    for folder in folders:
        files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix not in _WEIGHTS)
        size = sum(file.stat().st_size for file in files)
        if size > _MAX_BYTES:
            raise UserError(
                f"{folder}: holds {size >> 20} MiB besides weights, and at most {_MAX_BYTES >> 20} are sent to Ray's "
                f"workers; keep data elsewhere"
            )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
        packed.append(buffer.getvalue())
    return tuple(packed)
