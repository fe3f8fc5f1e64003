"""Runs from names to results: storing, resuming after a kill, superseding, locking."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from helpers.result_stores import spec_of

from longctx_bench import report, run
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell, SampleRecord
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.registry import Registry
from longctx_bench.store.run_store import ResultStore


@pytest.fixture
def registry(essays: Path) -> Registry:
    return Registry(local_data={"ruler-essays": essays})


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All records of a run, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("records.jsonl"))}


def test_echo_run_end_to_end(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    frame = run(
        f"{tiny_folder},yarn:{tiny_folder}", "niah,niah_single_1", length=[512], limit=22, engine="echo",
        out=tmp_path, registry=registry,
    )  # fmt: skip
    assert list(frame["cell"]) == [
        "rope-tiny/niah/512", "rope-tiny/niah_single_1/512", "yarn-tiny/niah/512", "yarn-tiny/niah_single_1/512",
    ]  # fmt: skip
    assert (frame["n"] == 22).all()
    assert (frame["low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["high"]).all()
    assert 0 < frame["score"][0] < 1, "the echo finds needles in the middle alone"
    cell = json.loads((tmp_path / "runs/tiny/yarn/niah/512/cell.json").read_text())
    assert cell["applied"]["rope_parameters"]["factor"] == 2.0
    assert {"spec_hash", "environment", "engine", "seconds", "finished"} <= set(cell)
    one, other = (tmp_path / f"runs/tiny/{method}/niah/512/records.jsonl" for method in ("rope", "yarn"))
    assert one.read_bytes() == other.read_bytes(), "every method gets the same prompts"
    assert len(report(tmp_path)) == 4


def test_a_second_run_measures_nothing(tiny_folder: Path, tmp_path: Path, registry: Registry, monkeypatch: Any) -> None:
    arguments: dict[str, Any] = {"length": [512], "limit": 5, "engine": "echo", "out": tmp_path, "registry": registry}
    run(str(tiny_folder), "niah", **arguments)
    before = folder_bytes(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(EchoEngine, "generate", lambda *_: pytest.fail("must not generate"))
        run(str(tiny_folder), "niah", **arguments)
    assert folder_bytes(tmp_path) == before


def test_a_larger_limit_adds_examples(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    for limit in (5, 12, 8):
        run(str(tiny_folder), "niah", length=[512], limit=limit, engine="echo", out=tmp_path, registry=registry)
    lines = (tmp_path / "runs/tiny/rope/niah/512/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"{index:06d}" for index in range(12)]


def test_an_extension_that_breaks_off_is_not_done(
    tiny_folder: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"length": [512], "engine": "echo", "out": tmp_path, "registry": registry}
    run(str(tiny_folder), "niah", limit=5, **arguments)
    generate = EchoEngine.generate

    def breaks(self: EchoEngine, batch: Any, *rest: Any) -> Any:
        if any(int(request.example_id) < 7 for request in batch):
            raise UserError("broken off")
        return generate(self, batch, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(EchoEngine, "generate", breaks)
        with pytest.raises(UserError, match="broken off"):
            run(str(tiny_folder), "niah", limit=40, batch_tokens=600, **arguments)
    cell = Cell("tiny", "rope", "niah", 512)
    store = ResultStore(tmp_path)
    assert store.summary(cell) is None
    assert len(list(store.records(cell))) < len((store.path(cell) / "records.jsonl").read_text().splitlines())
    frame = run(str(tiny_folder), "niah", limit=6, **arguments)
    assert list(frame["n"]) == [6], "what lies behind a gap does not count"
    frame = run(str(tiny_folder), "niah", limit=40, **arguments)
    assert list(frame["n"]) == [40]


def test_other_weights_in_the_same_folder_run_again(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    arguments: dict[str, Any] = {"length": [512], "limit": 3, "engine": "echo", "out": tmp_path, "registry": registry}
    run(str(folder), "niah", **arguments)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run(str(folder), "niah", **arguments)
    assert len(list((tmp_path / "superseded").rglob("records.jsonl"))) == 1


def test_a_changed_spec_runs_again_and_keeps_the_old(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    for seed in (1, 2):
        run(str(tiny_folder), "niah", length=[512], limit=3, seed=seed, engine="echo", out=tmp_path, registry=registry)
    kept = list((tmp_path / "superseded").rglob("records.jsonl"))
    assert len(kept) == 1
    current = json.loads((tmp_path / "runs/tiny/rope/niah/512/cell.json").read_text())
    assert current["spec"]["seed"] == 2
    run(
        str(tiny_folder),
        "niah",
        length=[512],
        limit=3,
        seed=2,
        engine="echo",
        out=tmp_path,
        registry=registry,
        overwrite=True,
    )
    assert len(list((tmp_path / "superseded").rglob("records.jsonl"))) == 2


def run_slowly(model: str, out: str, essays: str, pause: float) -> None:
    """Two cells of 40 examples, without weights, with a pause before each is stored."""
    generate = EchoEngine.generate

    def slow(self: EchoEngine, *arguments: Any) -> Iterator[Any]:
        for item in generate(self, *arguments):
            time.sleep(pause)
            yield item

    EchoEngine.generate = slow  # type: ignore[assignment]
    registry = Registry(local_data={"ruler-essays": Path(essays)})
    run(model, "niah,niah_single_1", length=[512], limit=40, engine="echo", batch_tokens=1024, out=out,
        registry=registry)  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_twice(tiny_folder: Path, tmp_path: Path, essays: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    # Each is forked from a process that has imported what takes seconds to import.
    processes.set_forkserver_preload(["longctx_bench.api.evaluation", "transformers.models.auto.tokenization_auto"])

    def start(out: Path, pause: float) -> BaseProcess:
        process = processes.Process(target=run_slowly, args=(str(tiny_folder), str(out), str(essays), pause))
        process.start()
        return process

    def ended(process: BaseProcess) -> int | None:
        process.join()
        return process.exitcode

    assert ended(start(tmp_path / "whole", 0)) == 0
    killed = tmp_path / "killed"
    seen = 0
    for _ in range(4):
        process = start(killed, 0.03)
        target = seen + 6
        while process.is_alive() and seen < target:
            time.sleep(0.01)
            seen = sum(content.count(b"\n") for content in folder_bytes(killed).values()) if killed.exists() else 0
        process.kill()
        assert ended(process) == -signal.SIGKILL, "it was killed before its end"
    partial = killed / "runs/tiny/rope/niah/512/records.jsonl"
    with partial.open("ab") as file:
        file.write(b'{"id": "0000')  # what a kill in the middle of a write leaves
    if (partial.parent / "cell.json").exists():
        partial.write_bytes(partial.read_bytes()[: -len(b'{"id": "0000')])
    assert ended(start(killed, 0)) == 0
    assert folder_bytes(killed) == folder_bytes(tmp_path / "whole")


def test_the_second_process_says_so_and_stops(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    with (
        ResultStore(tmp_path).locked(),
        pytest.raises(UserError, match="another run is writing there"),
    ):
        run(str(tiny_folder), "niah", length=[512], limit=3, engine="echo", out=tmp_path, registry=registry)


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cell = ResultStore(tmp_path), Cell("m", "rope", "niah", 512)
    store.start(cell, spec_of(cell, {}))
    item = SampleRecord({"id": "000000", "score": 1.0}, 0.1)
    store.append(cell, [item])
    before = (store.path(cell) / "records.jsonl").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; what was measured before is kept"):
        store.append(cell, [item])
    assert (store.path(cell) / "records.jsonl").read_bytes() == before


def test_a_task_that_does_not_fit_is_skipped(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    frame = run(
        str(tiny_folder), "vt,niah_single_1", length=[200, 512], limit=2, engine="echo", out=tmp_path, registry=registry
    )
    assert list(frame["cell"]) == ["rope-tiny/niah_single_1/512", "rope-tiny/vt/512"]
    assert list(frame.attrs["skipped"]) == ["rope-tiny/vt/200", "rope-tiny/niah_single_1/200"]


def test_a_qwen2_base_in_the_hubs_format(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path / "qwen"
    shutil.copytree(tiny_folder, folder)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(**shape, num_key_value_heads=2, max_position_embeddings=256, vocab_size=600)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    frame = run(
        f"{folder},yarn:{folder},ntk:{folder}",
        "niah",
        scale=[2],
        limit=2,
        device="cpu",
        out=tmp_path,
        registry=registry,
    )
    assert list(frame["method"]) == ["ntk", "rope", "yarn"]
    assert set(frame["factor"]) == {2.0}


def test_real_engine_gives_every_method_the_same_prompts(tiny_folder: Path, tmp_path: Path, registry: Registry) -> None:
    frame = run(
        f"{tiny_folder},pi:{tiny_folder},nope:{tiny_folder},dynamic-ntk:{tiny_folder}", "niah", scale=[2], limit=3,
        dtype="float32", device="cpu", out=tmp_path, registry=registry,
    )  # fmt: skip
    assert set(frame["method"]) == {"rope", "pi", "nope", "dynamic-ntk"}
    hashes = {
        tuple(json.loads(line)["hash"] for line in path.read_text().splitlines())
        for path in tmp_path.rglob("records.jsonl")
    }
    assert len(hashes) == 1
