"""Runs on a real Ray cluster of several raylets on this machine, and what is left when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.ray_executor.worker_pool import WorkerPool

pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, so that no worker runs there, and two nodes of one CPU each; the last test kills one."""
    # Ray lets everything else on a machine run before its workers: on a busy one these tests would take minutes.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    memory = 100 << 20
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": memory}
    )
    for _ in range(2):
        started.add_node(num_cpus=1, num_gpus=0, object_store_memory=memory)
    yield started
    started.shutdown()


@pytest.fixture
def registry(essays: Path) -> Registry:
    return Registry(local_data={"ruler-essays": essays})


def records(folder: Path) -> dict[str, bytes]:
    """All records of a run, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("records.jsonl"))}


def lines(folder: Path) -> int:
    """Records that are stored by now."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("records.jsonl"))


def while_running(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something once a condition holds, beside the run."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if condition():
                act()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_own_methods_reach_the_workers_and_errors_come_back(
    cluster: Any, tiny_folder: Path, tmp_path: Path, essays: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "half.yaml").write_text("use: ./half.py:Half\n")
    (mine / "half.py").write_text(
        "from longctx_bench.methods.rope_scaling import PI\n\n\nclass Half(PI):\n    strength: float = 0.5\n\n"
        "    def scale(self, base, length):\n        return 1 + self.strength * (super().scale(base, length) - 1)\n"
    )
    (mine / "breaks.yaml").write_text("use: ./breaks.py:Breaks\n")
    (mine / "breaks.py").write_text(
        "from contextlib import contextmanager\n\nfrom longctx_bench.methods.rope_scaling import PI\n\n\n"
        "class Oops(Exception):\n    pass\n\n\n"
        "class Breaks(PI):\n    @contextmanager\n    def patch(self, model, base, length):\n"
        "        raise Oops('no luck')\n        yield\n"
    )
    own = Registry([mine], {"ruler-essays": essays}, {"half": {"strength": 0.25}})
    arguments: dict[str, Any] = {
        "length": [512], "limit": 6, "dtype": "float32", "device": "cpu", "batch_tokens": 1100, "registry": own,
    }  # fmt: skip
    run(f"half:{tiny_folder}", "niah", out=tmp_path / "here", **arguments)
    remote = {"executor": "ray", "workers": 2, "ray_address": cluster.address}
    with pytest.raises(UserError, match=r"1 cell failed.*Oops: no luck \(raised by ./breaks.py:Breaks"):
        run(f"breaks:{tiny_folder},half:{tiny_folder}", "niah", out=tmp_path / "there", **arguments, **remote)
    there = records(tmp_path / "there")
    assert there == records(tmp_path / "here"), "the cell beside the one that failed is whole"
    moved = tmp_path / "damaged"
    moved.mkdir()
    for file in tiny_folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    (moved / "model.safetensors").write_bytes((moved / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"damaged.*on the worker at"):
        run(str(moved), "niah", out=tmp_path / "lost", **arguments, **remote)


def test_ctrl_c_keeps_what_was_measured(cluster: Any, tiny_folder: Path, tmp_path: Path, essays: Path) -> None:
    command = [
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from longctx_bench.cli import main; main()",
        "run", "--model", "rope-tiny", "--tasks", "niah", "--length", "1024",
        "--limit", "300", "--device", "cpu", "--dtype", "float32", "--batch-tokens", "1200", "--data",
        f"ruler-essays={essays}", "--out", str(tmp_path), "--executor", "ray", "--workers", "2", "--ray-address",
        cluster.address,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while_running(lambda: lines(tmp_path) >= 4, lambda: process.send_signal(signal.SIGINT)).join()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "resume" in errors
    assert "Traceback" not in errors
    kept = next(tmp_path.rglob("records.jsonl")).read_text().splitlines()
    assert len({json.loads(line)["id"] for line in kept}) == len(kept) >= 4


def test_more_workers_than_cpus(cluster: Any, tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match="--workers 3: the cluster has 2 CPUs"):
        run(
            str(tiny_folder), "niah", length=[512], engine="echo", out=tmp_path, registry=registry, executor="ray",
            workers=3, ray_address=cluster.address,
        )  # fmt: skip


WAITS = """
import os
import time
from contextlib import contextmanager
from pathlib import Path

from longctx_bench.methods.rope_scaling import PI

GATE = Path({gate!r})


class Waits(PI):
    @contextmanager
    def patch(self, model, base, length):
        (GATE / str(os.getpid())).touch()
        while not (GATE / "open").exists():
            time.sleep(0.01)
        yield
"""


def test_real_models_one_raylet_killed_in_the_middle(
    cluster: Any, tmp_path: Path, essays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    mine, gate = tmp_path / "mine", tmp_path / "gate"
    mine.mkdir()
    gate.mkdir()
    (mine / "waits.yaml").write_text("use: ./waits.py:Waits\n")
    (mine / "waits.py").write_text(WAITS.format(gate=str(gate)))
    arguments: dict[str, Any] = {
        "length": [256, 512], "limit": 12, "dtype": "float32", "device": "cpu", "batch_tokens": 1100,
        "registry": Registry([mine], {"ruler-essays": essays}),
    }  # fmt: skip
    models = "rope-tiny,waits-tiny,drope-tiny"
    (gate / "open").touch()
    run(models, "niah", out=tmp_path / "here", **arguments)
    for path in gate.iterdir():
        path.unlink()
    held: list[int] = []
    drop = WorkerPool._drop

    def noticed(self: WorkerPool[Any], member: Any) -> None:
        held.append(len(member.in_flight))
        drop(self, member)
        (gate / "open").touch()

    killed: list[int] = []

    def kill() -> None:
        # A worker that has begun a batch, and cannot end it before its loss is noticed.
        worker = psutil.Process(int(next(gate.iterdir()).name))
        raylet = next(parent for parent in worker.parents() if parent.name().startswith("raylet"))
        assert raylet.pid in {node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes}
        killed.append(raylet.pid)
        os.kill(raylet.pid, signal.SIGKILL)

    monkeypatch.setattr(WorkerPool, "_drop", noticed)
    there = tmp_path / "there"
    killer = while_running(lambda: lines(there) >= 4 and any(gate.iterdir()), kill)
    late = threading.Timer(150, (gate / "open").touch)
    late.start()
    frame = run(models, "niah", out=there, executor="ray", workers=2, ray_address=cluster.address, **arguments)
    late.cancel()
    assert not killer.is_alive()
    assert len(killed) == 1, "the raylet was killed while the run went on"
    assert len(held) == 1, "the loss was noticed, once"
    assert held[0] >= 1, "and the worker had work in hand"
    assert len(cluster.worker_nodes) == 2
    assert set(frame["n"]) == {12}
    assert records(there) == records(tmp_path / "here")
    for timings in there.rglob("timings.jsonl"):
        names = [json.loads(line)["id"] for line in timings.read_text().splitlines()]
        assert len(names) == len(set(names)) == 12, "no example is stored twice"
    cell = json.loads(next(there.rglob("cell.json")).read_text())
    assert cell["executor"] == {"name": "ray", "workers": 2}
