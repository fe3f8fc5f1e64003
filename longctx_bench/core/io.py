"""Atomic, durable file writes, and file-name sanitizing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from longctx_bench.core.errors import DiskFull, UserError

try:
    import fcntl
except ImportError:  # Windows: what a killed process left there stays
    fcntl = None  # type: ignore[assignment]

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
"""Errors that concern the whole disk rather than one path."""
_MAX_NAME, _DIGEST_CHARS = 200, 8
"""Characters of a file name at most, so that a suffix still fits into the 255 bytes of most file systems; characters of
the digest in a shortened one."""
_BLOCK = 1 << 16


def disk_is_full(error: OSError) -> bool:
    """Whether a disk is full, over quota, read-only or broken, so that every other write would fail as well."""
    return error.errno in _FULL


def write_error(path: Path, error: OSError, advice: str) -> UserError:
    """Return the error for a file that cannot be written; ``advice`` is for errors of the path, not of the disk."""
    reason = f"{path}: cannot be written: {error.strerror}"
    if disk_is_full(error):
        return DiskFull(f"{reason}; what was measured before is kept, make room and run the same command again")
    return UserError(f"{reason}; {advice}")


def require_writable(path: Path, advice: str = "choose another folder with --out") -> None:
    """Check that a file or folder could be written, before doing any work; creates nothing.

    Raises:
        UserError: the parent is a file or not writable.
    """
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if existing != path.absolute() and not existing.is_dir():
        raise write_error(path, NotADirectoryError(errno.ENOTDIR, f"{existing} is a file"), advice)
    if not os.access(existing, os.W_OK):
        raise write_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), advice)


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably (fsync).

    Raises:
        OSError: a folder cannot be created.
    """
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for created in absent:
        sync_folder(created.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk (fsync): without it, a power failure may lose a new file.

    Raises:
        OSError: the disk is full or broken.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not support this: they write a folder's entries at once.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def move_files(source: Path, folder: Path, last: str) -> None:
    """Move the files of a folder into another one, with one file durably last.

    If that file exists, so do all others, also after a kill or a power failure.

    Args:
        source: the source folder.
        folder: the target folder, created if missing.
        last: name of the file to move last.

    Raises:
        OSError: the disk is full or broken.
    """
    make_folder(folder)
    files = sorted(source.iterdir(), key=lambda file: (file.name == last, file.name))
    for file in files:
        (sync_folder if file.is_dir() else sync_file)(file)
    for file in files:
        if file.name == last:
            _sync_both(source, folder)
        file.replace(folder / file.name)
    _sync_both(source, folder)


def _sync_both(source: Path, target: Path) -> None:
    """Flush both folders of a move, so that a power failure neither undoes it nor leaves a file in both."""
    sync_folder(target)
    sync_folder(source)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    with path.open("rb") as written:
        os.fsync(written.fileno())


def append(path: Path, content: bytes, advice: str = "choose another folder with --out") -> None:
    """Append to a file, all or nothing, and flush it to disk.

    Raises:
        UserError: the disk is full, the file cannot be written, or it is a symbolic link (links are not followed).
    """
    remaining = memoryview(content)
    try:
        # Unbuffered: closing the file would flush the rest of a buffer after the file was truncated.
        with open(path, "ab", buffering=0, opener=_open_no_follow) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while remaining:
                    remaining = remaining[file.write(remaining) :]
                os.fsync(file.fileno())
                if not size:
                    sync_folder(path.parent)
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise write_error(path, error, advice) from error


def truncate_partial_line(path: Path, advice: str = "choose another folder with --out") -> None:
    """Remove an incomplete last line that a killed process left.

    Raises:
        UserError: as :func:`append`.
    """
    try:
        with open(path, "r+b", opener=_open_no_follow) as file:
            size = file.seek(0, os.SEEK_END)
            end_of_lines = _last_line_end(file, size)
            if end_of_lines < size:
                file.truncate(end_of_lines)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error, advice) from error


def _last_line_end(file: BinaryIO, size: int) -> int:
    """Return the size in bytes of a file's complete lines."""
    end = size
    while end:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _open_no_follow(path: str, flags: int) -> int:
    """Open a regular file for writing; refuse symbolic links, and pipes, which would block."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return handle


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` when the block ends without an error.

    Contents are flushed to disk before the rename, so that no crash leaves an empty or partial file. A symbolic link at
    ``path`` is replaced; its target is not changed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    advice = "choose another folder with --out"
    try:
        make_folder(path.parent)
        _remove_stale(path)
        temporary, handle = _create_temporary(path)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
    except OSError as error:
        raise write_error(path, error, advice) from error
    try:
        yield temporary
        temporary.chmod(mode)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error, advice) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(handle)


def _create_temporary(path: Path) -> tuple[Path, int]:
    """Create a temporary file next to ``path``, locked as long as the returned handle is open."""
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


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a temporary file of :func:`atomic_write`."""
    return re.fullmatch(r"\..*-[0-9a-f]{8}\.partial(\..*)?", name) is not None


def _remove_stale(path: Path) -> None:
    """Remove unlocked temporary files next to ``path``, left by killed processes."""
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


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given.

    Raises:
        UserError: as :func:`write_text`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def shipped_folder(name: str) -> Path:
    """Return ``tasks/`` or ``baselines/``: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    installed = package / "_shipped" / name
    return installed if installed.exists() else package.parent / name


def safe_name(name: str) -> str:
    """Return a file or folder name that is safe everywhere and unique to ``name``.

    A name that is safe for every file system and shell is unchanged. Otherwise unsafe characters become ``-``, long
    names are truncated, and ``~`` with a digest is appended, which no unchanged name contains.
    """
    plain = plain_name(name)
    if plain == name and len(plain) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]
    return f"{plain[: _MAX_NAME - _DIGEST_CHARS - 1]}~{digest}"


def plain_name(name: str) -> str:
    """Return ``name`` with characters that are unsafe for file systems or shells replaced by ``-``.

    Different names may collide; use :func:`safe_name` where they must not.
    """
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", name).strip(".-") or "unnamed"
