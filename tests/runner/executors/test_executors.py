"""What needs no cluster: how many engines fit, which batches stay together, what is sent, and the clear lines."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from longctx_bench.core.errors import ContextTooShort, UserError
from longctx_bench.core.sources import content_digest
from longctx_bench.core.types import Request
from longctx_bench.registry import Registry
from longctx_bench.runner.executors import make_executor
from longctx_bench.runner.executors.ray_executor.cluster import WorkerLayout, connect, layout
from longctx_bench.runner.executors.ray_executor.prefix_sharding import shards
from longctx_bench.runner.executors.ray_executor.registry_bundle import pack, serialize, unpack
from longctx_bench.runner.executors.ray_executor.worker import Failure, JobSpec, Worker, WorkerFacts
from longctx_bench.runner.strategies import RunSettings

ECHO = {"name": "echo"}
SETTINGS = RunSettings(limit=None, seed=42, chat_template=False)


@pytest.mark.parametrize(
    ("nodes", "workers", "use_gpus", "wanted"),
    [
        ([{"CPU": 32, "GPU": 4}], None, True, WorkerLayout(4, 8, 1)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 64, "GPU": 2}, {"CPU": 4}], None, True, WorkerLayout(6, 2, 1)),
        ([{"CPU": 32, "GPU": 4}], 2, True, WorkerLayout(2, 8, 1)),
        ([{"CPU": 32, "GPU": 4}], None, False, WorkerLayout(1, 32, 0)),
        ([{"CPU": 0}, {"CPU": 16}, {"CPU": 16}], None, True, WorkerLayout(2, 16, 0)),
        ([{"CPU": 16}], 3, True, WorkerLayout(3, 5, 0)),
        ([{"CPU": 3}, {"CPU": 1}], 2, True, WorkerLayout(2, 1, 0)),
        ([{"CPU": 4}, {"CPU": 4}], 3, True, WorkerLayout(3, 2, 0)),
        ([{"CPU": 32, "GPU": 4}], 4, True, WorkerLayout(4, 8, 1)),
        ([{"CPU": 3}, {"CPU": 1}], 4, True, WorkerLayout(4, 1, 0)),
    ],
)  # fmt: skip
def test_layout(nodes: list[dict[str, float]], workers: int | None, use_gpus: bool, wanted: WorkerLayout) -> None:
    assert layout(nodes, workers, use_gpus) == wanted


def test_layout_refuses_more_than_there_is() -> None:
    with pytest.raises(UserError, match="--workers 5: the cluster has GPUs for 4"):
        layout([{"CPU": 32, "GPU": 4}], 5, use_gpus=True)
    with pytest.raises(UserError, match="--workers 5: the cluster has 4 CPUs"):
        layout([{"CPU": 2}, {"CPU": 2}], 5, use_gpus=True)


def test_shards_keep_batches_together_that_begin_alike() -> None:
    def batch(name: str, first: int) -> list[Request]:
        return [Request(f"{name}{index}", [first] * 60 + [index] * 40, 8) for index in range(2)]

    batches = [batch("a", 1), batch("b", 1), batch("c", 2), batch("d", 3), batch("e", 3), batch("f", 3)]
    assert shards(batches, 1) == [batches[:2], batches[2:3], batches[3:]]
    assert shards(batches, 3) == [batches[:2], batches[2:3], batches[3:5], batches[5:]]
    assert shards(batches, 100) == [[one] for one in batches]


def test_a_worker_knows_the_users_own_method(tiny_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "third.yaml").write_text("use: ./third.py:Third\nparams: {strength: 3}\n")
    (mine / "third.py").write_text(
        "from longctx_bench.methods.rope_scaling import PI\n\n\nclass Third(PI):\n    strength: float\n"
    )
    (mine / "big.safetensors").write_bytes(b"0" * 100)
    registry = Registry([mine], settings={"third": {"strength": 0.25}})
    variant = registry.variant(f"third:{tiny_folder}")
    bundle = pack(registry)
    shutil.rmtree(mine)
    elsewhere, scratch = unpack(bundle)
    with scratch as folder:
        assert not list(Path(folder).rglob("*.safetensors")), "weights are not sent"
        sent = serialize(variant, variant.base({}), None)
        back = elsewhere.variant_from_parts(sent.model, sent.spec, sent.params, sent.source)
    assert back.method.model_dump() == variant.method.model_dump()
    assert back.method.model_dump()["strength"] == 0.25
    assert (back.model, back.source) == (variant.model, variant.source)


def test_a_folder_of_data_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([tmp_path])
    (tmp_path / "rows.jsonl").write_bytes(b"0" * (2 << 20))
    monkeypatch.setattr("longctx_bench.runner.executors.ray_executor.registry_bundle._MAX_BYTES", 1 << 20)
    with pytest.raises(UserError, match="holds 2 MiB besides weights, and at most 1 are sent"):
        pack(registry)


def test_a_worker_refuses_other_weights_and_says_where_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    registry = Registry()
    variant = registry.variant(str(folder))
    worker = Worker(ECHO, pack(registry))
    facts = worker.start()
    assert isinstance(facts, WorkerFacts)
    assert facts.engine == "echo"
    order = JobSpec(
        serialize(variant, variant.base({}), content_digest(variant.source)),
        64,
        "niah",
        None,
        "generate",
        False,
        SETTINGS,
    )
    requests = [Request("0", [5] * 40, 8), Request("1", [5] * 50, 8)]
    assert worker.batches(order, requests) == [["0", "1"]]
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    other = Worker(ECHO, pack(registry))
    other.start()
    refused = other.batches(order, requests)
    assert isinstance(refused, Failure)
    assert "holds other weights" in refused.message
    assert f"on the worker at {socket.gethostname()}" in refused.message
    assert isinstance(refused.error(), UserError)
    assert isinstance(Failure("skip", "too short").error(), ContextTooShort)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match="--workers 2: goes with --executor ray"):
        make_executor("local", ECHO, Registry(), workers=2)
    with pytest.raises(UserError, match="--ray-address here:1: goes with --executor ray"):
        make_executor("local", ECHO, Registry(), address="here:1")
    with pytest.raises(UserError, match="--executor slurm: choose local or ray"):
        make_executor("slurm", ECHO, Registry())
    with pytest.raises(UserError, match="--device cuda:1: Ray gives each worker its own GPU"):
        make_executor("ray", {"name": "hf", "device": "cuda:1"}, Registry())


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the package 'ray': pip install 'longctx-bench\[ray\]'"):
        make_executor("ray", ECHO, Registry())


def test_ray_starts_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    ray = ModuleType("ray")
    ray.is_initialized = lambda: bool(asked)  # type: ignore[attr-defined]
    ray.init = lambda **options: asked.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    assert connect(None) == (ray, True)
    # Whoever connected before disconnects.
    assert connect(None) == (ray, False)
    # No output of the workers between the lines of the progress, no server for a browser, no report of its use.
    assert asked == [
        {"address": None, "log_to_driver": False, "include_dashboard": False, "logging_level": logging.ERROR}
    ]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_no_cluster_at_the_address() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"--ray-address 127.0.0.1:{port}: no Ray cluster responds there; start one"):
        make_executor("ray", ECHO, Registry(), address=f"127.0.0.1:{port}")
