"""Writing files so that a reader never sees half of one, and a few names that are safe as paths."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from longctx_bench.errors import DiskFull, UserError

try:
    import fcntl
except ImportError:  # Windows: what a killed process left there stays
    fcntl = None  # type: ignore[assignment]

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
        _remove_left(path)
        temporary, handle = _reserved(path)
    except OSError as error:
        raise not_written(path, error, "choose another folder with --out") from error
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise not_written(path, error, "choose another folder with --out") from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _reserved(path: Path) -> tuple[Path, int]:
    """Make a temporary file beside ``path`` and lock it for as long as the returned handle is open."""
    while True:
        # Its suffix stays the last one: some writers choose a format by it. The umask decides on who may read it.
        temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}.partial{path.suffix}")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            return temporary, handle
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Before it was locked, another process may have taken it for one that was left behind.
        with suppress(FileNotFoundError):
            if os.path.samestat(temporary.stat(), os.fstat(handle)):
                return temporary, handle
        os.close(handle)


def _remove_left(path: Path) -> None:
    """Remove temporary files beside ``path`` of processes that were killed: nobody locks them."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(f".{path.stem[:40]}-") + "[0-9a-f]{8}" + re.escape(f".partial{path.suffix}"))
    for name in os.listdir(path.parent):  # noqa: PTH208 (no Path for each of what may be thousands of files)
        if not pattern.fullmatch(name):
            continue
        with suppress(OSError):
            handle = os.open(path.parent / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (path.parent / name).unlink()
            finally:
                os.close(handle)


_DAY = 86_400.0
_LOCK = ".in-use"


class ScratchFolder:
    """A new folder that only this user may read, removed with all that it holds when the block ends.

    Folders of the same prefix which a killed process left are removed first; one that is in use is locked.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        """Make the folder.

        Args:
            prefix: of its name.
            parent: a folder of the cache that it is made in; the system's one for temporary files when None.

        Raises:
            OSError: it cannot be made.
        """
        where = Path(tempfile.gettempdir()) if parent is None else parent
        for left in where.glob(f"{prefix}*"):
            with suppress(OSError):
                _remove_unused(left, ours=parent is not None)
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        lock = FileLock(self.folder / _LOCK)
        lock.acquire(timeout=0)
        self._remove = weakref.finalize(self, _remove_locked, self.folder, lock)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def _remove_locked(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def _remove_unused(folder: Path, ours: bool) -> None:
    status = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        return
    if not (folder / _LOCK).is_file():
        # Being made just now, or by a version before there were locks. In a folder that others write to as well, it
        # may be anything: results that somebody keeps there, say.
        if ours and time.time() - status.st_mtime > _DAY:
            shutil.rmtree(folder, ignore_errors=True)
        return
    lock = FileLock(folder / _LOCK)
    with suppress(Timeout):
        lock.acquire(timeout=0)
        _remove_locked(folder, lock)


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
