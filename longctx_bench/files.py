"""Writing files so that a reader never sees half of one, and a few names that are safe as paths."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longctx_bench.errors import DiskFull, UserError

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
"""What is wrong with a whole disk and not with one path on it."""


def disk_is_full(error: OSError) -> bool:
    """Tell whether a disk is full, over its quota, read-only or broken, so that every other write fails as well."""
    return error.errno in _FULL


def not_written(path: Path, error: OSError, advice: str) -> UserError:
    """Return the error for a file that cannot be written; the advice is for a disk that is well."""
    reason = f"{path}: cannot be written: {error.strerror}"
    if disk_is_full(error):
        return DiskFull(f"{reason}; what was measured before is kept, make room and run the same command again")
    return UserError(f"{reason}; {advice}")


def require_writable(path: Path, advice: str = "choose another folder with --out") -> None:
    """Refuse a file or folder that could not be written, before the work that it is for; nothing is made.

    Raises:
        UserError: what would hold it is a file, or one may not write there.
    """
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if there != path.absolute() and not there.is_dir():
        raise not_written(path, NotADirectoryError(errno.ENOTDIR, f"{there} is a file"), advice)
    if not os.access(there, os.W_OK):
        raise not_written(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), advice)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends without an error.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
    except OSError as error:
        raise not_written(path, error, "choose another folder with --out") from error
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise not_written(path, error, "choose another folder with --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given.

    Raises:
        UserError: as :func:`write_text`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def shipped_folder(name: str) -> Path:
    """Return ``tasks/`` or ``baselines/``: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    installed = package / "_shipped" / name
    return installed if installed.exists() else package.parent / name


def safe_name(name: str) -> str:
    """Return ``name`` with everything that a file system or shell might take amiss replaced by ``-``."""
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", name).strip(".-") or "unnamed"
