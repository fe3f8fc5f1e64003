"""Writing files so that a reader never sees half of one, and a few names that are safe as paths."""

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
"""What is wrong with a whole disk and not with one path on it."""
_LONGEST, _DIGITS = 200, 8
"""Characters of a name, so that an ending still fits into the 255 bytes of most file systems; those of its digest."""
_BLOCK = 1 << 16


def disk_is_full(error: OSError) -> bool:
    """Tell whether a disk is full, over its quota, read-only or broken, so that every other write fails as well."""
    return error.errno in _FULL


def write_error(path: Path, error: OSError, advice: str) -> UserError:
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
        raise write_error(path, NotADirectoryError(errno.ENOTDIR, f"{there} is a file"), advice)
    if not os.access(there, os.W_OK):
        raise write_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), advice)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each of them on the disk before it is used.

    Raises:
        OSError: one of them cannot be made.
    """
    absent = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in absent:
        sync_folder(made.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: without that, power that fails takes a new file away again.

    Raises:
        OSError: the disk is full or broken.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no such thing; they do it at once.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def move_files(made: Path, folder: Path, last: str) -> None:
    """Move the files of a folder into another one, all of them on the disk before the last.

    Where the last one is, all are: a kill or power that fails leaves the others without it.

    Args:
        made: holds the files.
        folder: gets them; it is made where there is none.
        last: the name of the last.

    Raises:
        OSError: the disk is full or broken.
    """
    make_folder(folder)
    files = sorted(made.iterdir(), key=lambda file: (file.name == last, file.name))
    for file in files:
        (sync_folder if file.is_dir() else sync_file)(file)
    for file in files:
        if file.name == last:
            _sync_both(made, folder)
        file.replace(folder / file.name)
    _sync_both(made, folder)


def _sync_both(before: Path, after: Path) -> None:
    """Make sure that what was moved from one folder to another is in that one alone, and stays there."""
    sync_folder(after)
    sync_folder(before)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    with path.open("rb") as written:
        os.fsync(written.fileno())


def append(path: Path, content: bytes, advice: str = "choose another folder with --out") -> None:
    """Add to the end of a file, all of it or nothing, and wait until it is on the disk.

    Raises:
        UserError: the disk is full, the file cannot be written, or is a symbolic link: what that points to, nobody
            asked to be changed.
    """
    left = memoryview(content)
    try:
        # Without a buffer: closing the file would write what is left in one, after the file was cut.
        with open(path, "ab", buffering=0, opener=_itself) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
                if not size:
                    sync_folder(path.parent)
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise write_error(path, error, advice) from error


def truncate_partial_line(path: Path, advice: str = "choose another folder with --out") -> None:
    """Cut off a last line that a killed process did not finish.

    Raises:
        UserError: as :func:`append`.
    """
    try:
        with open(path, "r+b", opener=_itself) as file:
            size = file.seek(0, os.SEEK_END)
            whole = _last_line_end(file, size)
            if whole < size:
                file.truncate(whole)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error, advice) from error


def _last_line_end(file: BinaryIO, size: int) -> int:
    """Return how many bytes of a file its whole lines take."""
    end = size
    while end:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _itself(path: str, flags: int) -> int:
    """Open a file for writing, and neither what a symbolic link points to nor a pipe, which would wait for ever."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends without an error.

    What was written is on the disk before it gets its name, so that no crash leaves an empty or half-written file.
    A symbolic link at ``path`` is replaced; what it points to stays as it is.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    advice = "choose another folder with --out"
    try:
        make_folder(path.parent)
        _remove_left(path)
        temporary, handle = _reserved(path)
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


def is_temporary(name: str) -> bool:
    """Tell whether a file's name is one that :func:`atomic_write` gives, until what is in it has its own."""
    return re.fullmatch(r"\..*-[0-9a-f]{8}\.partial(\..*)?", name) is not None


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
    """Return a name for a file or folder that no other name gets.

    A name that every file system and shell takes is left as it is; of another one, the characters that they might take
    amiss become ``-``, a long one is cut, and a digest follows behind ``~``, which no name that is left alone has.
    """
    plain = plain_name(name)
    if plain == name and len(plain) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{plain[: _LONGEST - _DIGITS - 1]}~{digest}"


def plain_name(name: str) -> str:
    """Return ``name`` with everything that a file system or shell might take amiss replaced by ``-``.

    Different names may become one: :func:`safe_name` is for what must be kept apart.
    """
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", name).strip(".-") or "unnamed"
