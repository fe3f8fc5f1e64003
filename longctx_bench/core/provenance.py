"""Provenance of results: code revision, package versions, machine, time. Stored with every cell."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "vllm", "lm-eval", "accelerate", "peft")


def package_version() -> str:
    """Return this package's version."""
    try:
        return version("longctx-bench")
    except PackageNotFoundError:
        return "unknown"


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Return versions, code revision and machine; nothing that names a person, host or folder."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "longctx_bench": package_version(),
        "git": _revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
    }


def _revision() -> dict[str, Any] | None:
    """Return commit and whether the tree differs from it, when the package runs from a git checkout.

    Where only the files of a commit were copied to, ``LONGCTX_BENCH_COMMIT`` may name it.
    """
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        named = os.environ.get("LONGCTX_BENCH_COMMIT")
        return {"commit": named, "dirty": False} if named else None
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
