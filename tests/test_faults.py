"""A disk or a memory that is full: a run ends or goes on with nothing lost, and says why."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import make_model

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.engines.hf.engine_core import EngineCore
from longctx_bench.store.run_store import ResultStore

pytestmark = pytest.mark.slow

TASKS = "niah_single_1,niah_single_2"


def records(folder: Path) -> dict[str, bytes]:
    """All records of a run, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("records.jsonl"))}


def ids(content: bytes) -> list[str]:
    return [json.loads(line)["id"] for line in content.splitlines()]


def stored(folder: Path) -> int:
    return sum(content.count(b"\n") for content in records(folder).values())


CHILD = "from longctx_bench.cli import main; main()"


@pytest.fixture
def load(tiny_folder: Path, essays: Path) -> list[str]:
    """Two cells of 24 examples, without weights; the folder to write to comes last."""
    return [
        "run", "--model", str(tiny_folder), "--tasks", TASKS, "--length", "512", "--limit", "24", "--engine", "echo",
        "--batch-tokens", "2048", "--data", f"ruler-essays={essays}", "--out",
    ]  # fmt: skip


def apart(script: str, *arguments: str | Path, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, whose limits are its own."""
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def ended_in_one_line(code: int, errors: str, file: str, reason: str) -> None:
    assert code == 2, errors
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if "cannot be written" in line]
    assert line.startswith("longctx-bench: ")
    assert file in line
    assert line.endswith(f"{reason}; what was measured before is kept, make room and run the same command again")


def test_a_disk_that_is_full_while_a_batch_is_written(
    load: list[str], tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = ResultStore.append

    def limited(self: ResultStore, cell: Any, finished: Any) -> None:
        path = self.path(cell) / "records.jsonl"
        if not path.exists() or len(ids(path.read_bytes())) <= 8:
            append(self, cell, finished)
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The system writes as much of the batch as there is room for and refuses the rest, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 900, before[1]))
        try:
            append(self, cell, finished)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "append", limited)
        code, _, errors = call(*load, tmp_path / "full")
    ended_in_one_line(code, errors, "niah_single_1/512/records.jsonl", "File too large")
    [(name, kept)] = records(tmp_path / "full").items()
    assert call(*load, tmp_path / "whole")[0] == 0
    whole = records(tmp_path / "whole")
    assert 8 < len(ids(kept)) < 24
    assert kept.endswith(b"\n")
    assert set(kept.splitlines()) < set(whole[name].splitlines()), "whole batches, each as it was measured"
    assert call(*load, tmp_path / "full")[0] == 0
    assert records(tmp_path / "full") == whole


TMPFS = """
mount -t tmpfs -o size=72k none "$0" && "$@"
code=$?
cp -r "$0/out" "$KEPT"
exit $code
"""


def test_a_real_disk_that_is_full(load: list[str], tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    monkeypatch.setenv("KEPT", str(kept))
    begin = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", TMPFS, str(small))
    may = shutil.which("unshare") and subprocess.run(
        [*begin, "mkdir", str(small / "out")], capture_output=True, check=False
    )
    if not may or may.returncode:
        pytest.skip("nothing can be mounted here")
    shutil.rmtree(kept)
    ended = apart(CHILD, *load, small / "out", before=begin)
    ended_in_one_line(ended.returncode, ended.stderr, str(small), "No space left on device")
    assert 0 < stored(kept) < 48
    assert call(*load, kept)[0] == call(*load, tmp_path / "whole")[0] == 0
    assert records(kept) == records(tmp_path / "whole")


def test_a_full_disk_ends_the_run_before_the_next_cell(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, refused = os.fsync, []

    def full(*handle: Any) -> None:
        if refused or stored(tmp_path) > 4:
            refused.append(handle)
            raise OSError(28, os.strerror(28))
        fsync(*handle)

    generated: list[int] = []
    generate = EchoEngine.generate

    def counted(self: EchoEngine, batch: Any, *rest: Any) -> Any:
        generated.append(len(batch))
        return generate(self, batch, *rest)

    arguments: dict[str, Any] = {"length": [512], "limit": 6, "engine": "echo", "batch_tokens": 1100, "out": tmp_path}
    models = f"{tiny_folder},yarn:{tiny_folder},pi:{tiny_folder}"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        patched.setattr(EchoEngine, "generate", counted)
        with pytest.raises(UserError, match="No space left on device; what was measured before is kept, make room"):
            run(models, "niah_single_1", **arguments)
    assert refused, "the disk was full"
    assert sum(generated) == 6, "what cannot be stored is not measured"
    [kept] = records(tmp_path).values()
    assert len(ids(kept)) == 4
    assert set(run(models, "niah_single_1", **arguments)["n"]) == {6}


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", CHILD, "list", "methods"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr == "longctx-bench: the output cannot be written: No space left on device\n"


def test_a_memory_that_is_full_at_the_first_long_cell(
    tiny_folder: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = EngineCore.generate

    def small_only(self: EngineCore, batch: Any, *rest: Any) -> Any:
        if max(len(request.input_ids) for request in batch) > 600:
            raise MemoryError
        return generate(self, batch, *rest)

    command = (
        "run", "--model", f"{tiny_folder},pi:{tiny_folder}", "--tasks", "niah_single_1", "--length", "448,1024,512",
        "--limit", "2", "--device", "cpu", "--dtype", "float32", "--out", tmp_path,
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(EngineCore, "generate", small_only)
        code, out, errors = call(*command)
    assert code == 2
    assert "4 cells in" in " ".join(out.split())
    failed = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2, "one line for each cell, and the cells after it are measured"
    assert all("/1024: a prompt of " in line and "does not fit in the memory of cpu" in line for line in failed)
    assert len(list(tmp_path.rglob("cell.json"))) == 4
    assert call(*command)[0] == 0
    assert len(list(tmp_path.rglob("cell.json"))) == 6


def test_a_memory_that_is_full_while_prompts_are_made(
    tiny_folder: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = ResultStore.save_excerpts

    def full(self: ResultStore, cell: Any, examples: Any) -> None:
        if cell.length == 512:
            raise MemoryError
        keep(self, cell, examples)

    monkeypatch.setattr(ResultStore, "save_excerpts", full)
    code, out, errors = call(
        "run", "--model", tiny_folder, "--tasks", "niah_single_1", "--length", "448,512,1024", "--limit", "2",
        "--engine", "echo", "--out", tmp_path,
    )  # fmt: skip
    assert (code, "2 cells in" in " ".join(out.split())) == (2, True)
    assert "/512: the memory of this machine is full; choose a smaller --length" in errors


ROOM = """
import resource
import psutil
from longctx_bench.engines.hf.engine import HFEngine
load = HFEngine.load
def limited(self, folder):
    load(self, folder)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (200 << 20), resource.RLIM_INFINITY))
HFEngine.load = limited
from longctx_bench.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_that_the_system_refuses(tmp_path: Path, call: Any) -> None:
    model, words = make_model(tmp_path / "wide", intermediate_size=4096), tmp_path / "words.txt"
    words.write_text("We walked on for a while and nobody spoke of it. " * 1500, encoding="utf-8")
    command = [
        "run", "--model", str(model), "--tasks", "niah_single_1,niah_single_2", "--length", "512,8192", "--limit", "1",
        "--device", "cpu", "--dtype", "float32", "--data", f"ruler-essays={words}", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    ended = apart(ROOM, *command)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "2 cells in" in " ".join(ended.stdout.split())
    failed = [line for line in ended.stderr.splitlines() if line.startswith("failed: ")]
    assert [line.split()[1] for line in failed] == ["rope-wide/niah_single_1/8192:", "rope-wide/niah_single_2/8192:"]
    assert all("tokens does not fit in the memory of cpu; choose a smaller --length" in line for line in failed)
