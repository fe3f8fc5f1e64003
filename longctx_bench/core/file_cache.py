"""File cache: its location, and integrity checks of cached files.

Everything that is fetched, extracted, converted or merged gets a neighbouring file with sizes and sha256 digests. Every
use compares sizes; contents are verified once per process, and again after a change of size or modification time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from longctx_bench.core.io import sync_file, sync_folder, write_json
from longctx_bench.core.provenance import usable_cores
from longctx_bench.core.temp_dirs import ScratchFolder

_CHUNK = 1 << 20
_read: dict[tuple[str, int, int, int, int], str] = {}
"""Digests that this process computed, by their kind and by the file's device, inode, size and time."""


def cache_dir() -> Path:
    """Return the folder for fetched and converted files: ``$LONGCTX_BENCH_CACHE`` or the user's cache."""
    named = os.environ.get("LONGCTX_BENCH_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("longctx-bench"))


def warn(message: str) -> None:
    """Log a one-line warning (to standard error, unless the caller configures logging)."""
    logging.getLogger("longctx_bench").warning("%s", " ".join(message.split()))


def sha256(path: Path) -> str:
    """Return a file's sha256 (hex), computed once per process while size and modification time stay the same."""
    return _digest(path, "sha256")


def git_blob_sha1(path: Path) -> str:
    """Return git's blob sha1 of a file, which identifies small files on the hub."""
    return _digest(path, "git")


def write_digests(path: Path, final_path: Path | None = None) -> None:
    """Write sizes and sha256 digests of a file, or of all files in a folder, to a neighbouring file.

    Args:
        path: a new file or folder.
        final_path: where it will be moved to; default: ``path``.

    Raises:
        UserError: the digests cannot be written.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    # Read back from disk, so that corruption during the write does not get a valid digest.
    sums = {file.relative_to(path).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)} for file in files}
    write_json(_digests_path(final_path or path), sums)


def find_damage(path: Path) -> str | None:
    """Return a short description of what is wrong with a cached file or folder; None when it is intact.

    Files that were added to a folder later are ignored. Nothing is written or locked.
    """
    try:
        if not path.exists():
            return "is missing"
        sealed = json.loads(_digests_path(path).read_bytes())
        sums = {path / name: (entry["size"], entry["sha256"]) for name, entry in sealed.items()}
    except FileNotFoundError:
        return "has no digests"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "has damaged digests"
    for file, (size, _) in sums.items():
        if not file.is_file() or file.stat().st_size != size:
            return f"is damaged ({file.name} has another size than when it was written)"
    different = mismatched_files((file, "sha256", digest) for file, (_, digest) in sums.items())
    return f"is damaged ({different[0].name} is not what was written)" if different else None


def made_once(path: Path, make: Callable[[Path], None], scratch_prefix: str = ".making-") -> Path:
    """Return a file or folder of the cache, created atomically on first use by a single process.

    A damaged one is reported and created again. An intact one takes no lock and is not written to.

    Args:
        path: its path in the cache.
        make: writes it to a given path that does not exist yet and has the same suffix.
        scratch_prefix: prefix of neighbouring scratch folders; those of killed processes are removed.

    Raises:
        OSError: it cannot be written.
        UserError: its digests cannot be written.
    """
    if find_damage(path) is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        reason = find_damage(path)
        if reason is None:
            return path
        if path.exists():
            warn(f"{path}: {reason}; creating it again")
        with ScratchFolder(scratch_prefix, path.parent) as scratch:
            new = scratch / f"made{path.suffix}"
            make(new)
            if path.exists():
                path.replace(scratch / "before")
            write_digests(new, path)
            if new.is_file():
                sync_file(new)
            new.replace(path)
            sync_folder(path.parent)
    return path


def mismatched_files(expected: Iterable[tuple[Path, str, str]]) -> list[Path]:
    """Return the files whose digest differs from the expected one.

    Args:
        expected: files, ``sha256`` or ``git``, and digests in hexadecimal.
    """
    listed = list(expected)

    def same(entry: tuple[Path, str, str]) -> bool:
        file, kind, digest = entry
        try:
            return _digest(file, kind) == digest
        except OSError:
            return False

    # Hashing lets other threads run, and weights lie in several files.
    with ThreadPoolExecutor(usable_cores()) as pool:
        return [entry[0] for entry, fine in zip(listed, pool.map(same, listed), strict=True) if not fine]


def _digests_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.digests.json")


def _digest(path: Path, kind: str) -> str:
    status = path.stat()
    stamp = (kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if stamp in _read:
        return _read[stamp]
    total: Any = hashlib.sha256()
    if kind == "git":
        total = hashlib.sha1(f"blob {status.st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    _read[stamp] = total.hexdigest()
    return _read[stamp]
