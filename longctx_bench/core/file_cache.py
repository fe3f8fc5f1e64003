"""Files that this machine keeps: where they lie, and whether they are still what was written there.

Whatever is fetched, extracted, converted or merged gets a file of sizes and sha256s beside it when it is made. Every
use compares sizes; the contents are read once a process, and again when a file's size or time has changed since.
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
    """Return the folder that keeps fetched and converted files: ``$LONGCTX_BENCH_CACHE`` or the user's cache."""
    named = os.environ.get("LONGCTX_BENCH_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("longctx-bench"))


def warn(message: str) -> None:
    """Say on one line of standard error what was put right, unless the caller's logging decides otherwise."""
    logging.getLogger("longctx_bench").warning("%s", " ".join(message.split()))


def sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal, reading it in pieces; once a process while its size and time stay."""
    return _digest(path, "sha256")


def git_blob_sha1(path: Path) -> str:
    """Return the name that git gives a file's content, which is the hub's for files that are not large."""
    return _digest(path, "git")


def write_digests(path: Path, beside: Path | None = None) -> None:
    """Note the size and sha256 of a file, or of each file of a folder, beside it.

    Args:
        path: what was just made.
        beside: where it is going to lie, unless it is there already.

    Raises:
        UserError: the note cannot be written.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    # Anew, although it was just written: what a memory or disk spoils in between would be sealed otherwise.
    sums = {file.relative_to(path).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)} for file in files}
    write_json(_seal_of(beside or path), sums)


def find_damage(path: Path) -> str | None:
    """Say in a few words what is wrong with what was sealed; None when it is whole.

    Files that came to a sealed folder later are none of its business. Nothing is written or locked.
    """
    try:
        if not path.exists():
            return "is missing"
        sealed = json.loads(_seal_of(path).read_bytes())
        sums = {path / name: (entry["size"], entry["sha256"]) for name, entry in sealed.items()}
    except FileNotFoundError:
        return "has no digests beside it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "has damaged digests beside it"
    for file, (size, _) in sums.items():
        if not file.is_file() or file.stat().st_size != size:
            return f"is damaged ({file.name} has another size than when it was made)"
    different = mismatched_files((file, "sha256", digest) for file, (_, digest) in sums.items())
    return f"is damaged ({different[0].name} is not what was written)" if different else None


def made_once(path: Path, make: Callable[[Path], None], scratch_prefix: str = ".making-") -> Path:
    """Return a file or folder of the cache, made on first use and by one process alone; it appears whole or not at all.

    What is no longer what was made is named and made again. What is whole takes no lock and is not written to.

    Args:
        path: where it lies.
        make: writes it to the path that it is given, where nothing is; its name ends as ``path``'s.
        scratch_prefix: of folders beside it that it is made in; those of a killed process are removed.

    Raises:
        OSError: it cannot be written.
        UserError: its digests cannot.
    """
    if find_damage(path) is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        reason = find_damage(path)
        if reason is None:
            return path
        if path.exists():
            warn(f"{path}: {reason}; it is made again")
        with ScratchFolder(scratch_prefix, path.parent) as scratch:
            made = scratch / f"made{path.suffix}"
            make(made)
            if path.exists():
                path.replace(scratch / "before")
            write_digests(made, path)
            if made.is_file():
                sync_file(made)
            made.replace(path)
            sync_folder(path.parent)
    return path


def mismatched_files(expected: Iterable[tuple[Path, str, str]]) -> list[Path]:
    """Return the files whose digest is another one.

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


def _seal_of(path: Path) -> Path:
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
