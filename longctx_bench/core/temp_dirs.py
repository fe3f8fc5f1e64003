"""Temporary folders that are removed with their process, or by the next process after a kill."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

_DAY = 86_400.0
_LOCK = ".in-use"
_creation = threading.Lock()
"""Held from a folder's creation until it is locked: another thread of this process would take it for a leftover."""


class ScratchFolder:
    """A private temporary folder, removed with its contents when the block ends.

    Folders with the same prefix left by killed processes are removed first; folders in use are locked.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        """Create the folder.

        Args:
            prefix: of the folder name.
            parent: a folder of the cache; default: the system's folder for temporary files.

        Raises:
            OSError: it cannot be created.
        """
        where = Path(tempfile.gettempdir()) if parent is None else parent
        with _creation:
            for leftover in where.glob(f"{prefix}*"):
                with suppress(OSError):
                    _remove_unused(leftover, ours=parent is not None)
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
