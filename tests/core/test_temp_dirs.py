"""What killed processes leave behind goes with the next run; what a living one uses stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from longctx_bench.core.io import atomic_write, write_text
from longctx_bench.core.temp_dirs import ScratchFolder
from longctx_bench.models import checkpoint as checkpoints

HOLDS = """
import sys, time
from pathlib import Path
from longctx_bench.core.io import atomic_write
from longctx_bench.core.temp_dirs import ScratchFolder
folder = Path(sys.argv[1])
with atomic_write(folder / "ex.jsonl"), ScratchFolder("longctx-bench-"), ScratchFolder(".converting-", folder):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process in the middle of writing a file and of using two scratch folders."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def use(folder: Path) -> None:
    write_text(folder / "ex.jsonl", "all of it")
    with ScratchFolder("longctx-bench-"), ScratchFolder(".converting-", folder):
        pass


@pytest.mark.slow
def test_what_a_killed_process_left_goes_with_the_next_run(folder: Path) -> None:
    with holding(folder) as process:
        left = {path.name.partition("-")[0] for path in folder.iterdir()}
        assert left == {".ex", "longctx", ".converting"}, "the test means nothing unless something was left"
        kill(process)
        assert len(list(folder.iterdir())) == 3
        use(folder)
    assert [path.name for path in folder.iterdir()] == ["ex.jsonl"]


@pytest.mark.slow
def test_what_a_living_process_uses_stays(folder: Path) -> None:
    with holding(folder):
        before = set(folder.iterdir())
        use(folder)
        assert set(folder.iterdir()) == before | {folder / "ex.jsonl"}


def test_what_is_not_ours_stays(folder: Path) -> None:
    mine = [folder / "longctx-bench-results", folder / ".ex-training.jsonl", folder / ".ex-0123abcd.jsonl"]
    mine[0].mkdir()
    (mine[0] / "cell.json").write_text("{}")
    for file in mine[1:]:
        file.write_text("x")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/.in-use").touch()
    (folder / "longctx-bench-link").symlink_to(folder / "elsewhere")
    long_ago = time.time() - 10**7
    for path in mine:
        os.utime(path, (long_ago, long_ago))
    use(folder)
    assert all(path.exists() for path in [*mine, folder / "longctx-bench-link", folder / "elsewhere/.in-use"])


def test_weights_that_an_older_version_left_half_converted_go_after_a_day(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(folder))
    old, new = folder / "models/.converting-old", folder / "models/.converting-new"
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    checkpoints._once("name", lambda made: (made / "config.json").write_text("{}") and None)
    assert not old.exists()
    assert new.exists()


def test_a_failed_conversion_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(folder))

    def fail(made: Path) -> None:
        (made / "config.json").write_text("{}")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        checkpoints._once("name", fail)
    assert [path.name for path in (folder / "models").iterdir()] == ["name.lock"]


def test_two_threads_may_write_one_file(folder: Path) -> None:
    with atomic_write(folder / "a.txt") as first, atomic_write(folder / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert (folder / "a.txt").read_text() == "first"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_the_umask_decides_on_who_may_read(folder: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(folder))
    before = os.umask(mask)
    try:
        write_text(folder / "a.txt", "x")
        made = checkpoints._once("name", lambda made: (made / "config.json").write_text("{}") and None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE(made.stat().st_mode) == 0o777 & ~mask


def test_a_scratch_folder_is_locked(folder: Path) -> None:
    with ScratchFolder("longctx-bench-") as scratch:
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
        with pytest.raises(TimeoutError):
            FileLock(scratch / ".in-use").acquire(timeout=0)
        with ScratchFolder("longctx-bench-"):
            assert scratch.exists(), "as a conversion needs another one"
    assert not scratch.exists()


def test_threads_do_not_take_each_others_new_folders_for_leftovers(tmp_path: Path) -> None:
    def use(number: int) -> bool:
        with ScratchFolder("scratch-", tmp_path) as folder:
            (folder / "file").write_text(str(number), encoding="utf-8")
            return (folder / "file").read_text(encoding="utf-8") == str(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(400)))
    assert not list(tmp_path.iterdir())
