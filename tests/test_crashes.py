"""Power that fails at any moment: nothing that was finished is lost, and the same command goes on to the same end."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.crash_states import Recorder, State, recorded
from safetensors.torch import load_file, save_file

from longctx_bench import run
from longctx_bench.core.file_cache import find_damage
from longctx_bench.core.io import append, atomic_write
from longctx_bench.core.specs import PathSource
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.models.checkpoint import checkpoint_folder
from longctx_bench.registry import Registry
from longctx_bench.store.run_store import ResultStore
from longctx_bench.training import checkpointing, trainer
from longctx_bench.training.quantize_delta import pack

pytestmark = pytest.mark.slow

STATES = int(os.environ.get("LONGCTX_BENCH_CRASH_STATES", "120"))
"""Of each test, drawn from all that there are; a number beyond them takes all."""


def drawn(recorder: Recorder, most: int = STATES) -> list[State]:
    """Return some of the states that crashes leave, of every part of what was done."""
    states = recorder.states()
    places = sorted(random.Random(0).sample(range(len(states)), min(most, len(states))))
    print(f"{len(places)} of {len(states)} states")
    return [states[place] for place in places]


# -- the model itself -------------------------------------------------------------------------------------------------


def trees(recorder: Recorder) -> set[tuple[tuple[str, bytes | None], ...]]:
    return {state.tree for state in recorder.states()}


def test_what_is_not_synced_may_be_cut_lost_or_nameless(tmp_path: Path) -> None:
    with recorded(tmp_path) as recorder:
        (tmp_path / "a").write_bytes(b"1234")
        recorder.note("written")
    assert trees(recorder) == {(), (("a", b""),), (("a", b"12"),), (("a", b"1234"),)}


def test_a_rename_before_its_file_is_synced_may_leave_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with recorded(tmp_path) as recorder:
        (tmp_path / "b").write_bytes(b"new")
        (tmp_path / "b").replace(tmp_path / "a")
        recorder.note("renamed")
    assert (("a", b""),) in trees(recorder)
    assert (("a", b"old"),) in trees(recorder)
    assert () not in trees(recorder), "a rename takes nothing away"


def test_what_is_written_atomically_is_there_whole_once_that_is_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with recorded(tmp_path) as recorder:
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_bytes(b"new")
        recorder.note("replaced")
    for state in recorder.states():
        content = dict(state.tree)["a"]
        assert content == b"new" if state.notes else content in (b"old", b"new")


def test_what_is_appended_is_there_once_that_is_over(tmp_path: Path) -> None:
    with recorded(tmp_path) as recorder:
        append(tmp_path / "a", b"one")
        recorder.note("one")
        append(tmp_path / "a", b"two")
        recorder.note("two")
    for state in recorder.states():
        assert dict(state.tree).get("a", b"").startswith(b"onetwo"[: 3 * len(state.notes)])
    assert recorder.calls["fsync"] == 3


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def echo(tiny_folder: Path, essays: Path) -> Any:
    """Run some examples, each in a batch of its own."""
    registry = Registry(local_data={"ruler-essays": essays})

    def made(out: Path, limit: int, seed: int = 42) -> None:
        run(
            str(tiny_folder), "niah_single_1", length=[512], limit=limit, engine="echo", batch_tokens=1, seed=seed,
            out=out, registry=registry,
        )  # fmt: skip

    return made


def measured(out: Path) -> dict[str, bytes]:
    """All records below a folder, one line each, wherever they are."""
    return {
        line: b"" for path in out.rglob("records*.jsonl") for line in path.read_bytes().splitlines(keepends=True)
    }  # fmt: skip


def end(out: Path) -> dict[str, Any]:
    """What a run leaves in the end."""
    [cell] = (out / "runs").rglob("cell.json")
    kept = {"score", "n", "spec_hash", "prompt_tokens"}
    return {
        "records": (cell.parent / "records.jsonl").read_bytes(),
        **{name: value for name, value in json.loads(cell.read_text()).items() if name in kept},
    }


def noted(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    """Note each record that the store has taken, and each cell that it has finished."""
    append_, finish = ResultStore.append, ResultStore.finish

    def appended(self: ResultStore, cell: Any, finished: Any) -> None:
        append_(self, cell, finished)
        for item in finished:
            recorder.note(json.dumps(item.record, ensure_ascii=True).encode() + b"\n")

    def finished(self: ResultStore, cell: Any, summary: Any) -> None:
        finish(self, cell, summary)
        recorder.note("finished")

    monkeypatch.setattr(ResultStore, "append", appended)
    monkeypatch.setattr(ResultStore, "finish", finished)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The examples that the engine is asked for."""
    generate = EchoEngine.generate
    names: list[str] = []

    def counted(self: EchoEngine, batch: Any, *rest: Any) -> Any:
        names.extend(request.example_id for request in batch)
        return generate(self, batch, *rest)

    monkeypatch.setattr(EchoEngine, "generate", counted)
    return names


def test_a_run_goes_on_from_whatever_a_crash_leaves(
    echo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    echo(tmp_path / "whole", 3)
    expected = end(tmp_path / "whole")
    (tmp_path / "top").mkdir()
    with recorded(tmp_path / "top") as recorder, monkeypatch.context() as patch:
        noted(patch, recorder)
        echo(tmp_path / "top/out", 2)
        recorder.note("extended")  # from here on it is not finished
        echo(tmp_path / "top/out", 3)
    assert recorder.calls["fsync"] > 20
    for number, state in enumerate(drawn(recorder)):
        top = state.write(tmp_path / f"crash-{number}")
        lines = {note for note in state.notes if isinstance(note, bytes)}
        assert lines <= measured(top).keys(), "what was stored is there"
        if state.notes and state.notes[-1] == "finished":
            assert list((top / "out/runs").rglob("cell.json"))
        asked.clear()
        echo(top / "out", 3)
        assert end(top / "out") == expected
        assert len(asked) <= 3 - len(lines), "what was stored is not measured again"
        assert not list(top.rglob(".*partial*")), "nothing is left behind"
        shutil.rmtree(top)


def test_what_another_spec_replaces_is_kept_whatever_a_crash_leaves(
    echo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top").mkdir()
    echo(tmp_path / "whole", 2, seed=2)
    expected = end(tmp_path / "whole")
    echo(tmp_path / "top/out", 2, seed=1)
    before = measured(tmp_path / "top")
    with recorded(tmp_path / "top") as recorder:
        echo(tmp_path / "top/out", 2, seed=2)
    assert recorder.calls["replace"] > 2
    for number, state in enumerate(drawn(recorder)):
        top = state.write(tmp_path / f"crash-{number}")
        assert before.keys() <= measured(top).keys()
        echo(top / "out", 2, seed=2)
        assert end(top / "out") == expected
        assert before.keys() <= measured(top).keys()
        shutil.rmtree(top)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_merged_weights_are_whole_or_made_again_whatever_a_crash_leaves(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top").mkdir()
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path / "top/cache"))
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    trained = shutil.copytree(tiny_folder, tmp_path / "trained")
    weights = {name: (0.9 * weight).bfloat16() for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    pack(trained, str(base), tmp_path / "packed", share=0.04)
    with recorded(tmp_path / "top") as recorder:
        folder = checkpoint_folder(PathSource(path=tmp_path / "packed"))
        recorder.note("merged")
    expected = {file.name: file.read_bytes() for file in folder.iterdir()}
    for number, state in enumerate(drawn(recorder)):
        top = state.write(tmp_path / f"crash-{number}")
        monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(top / "cache"))
        for left in top.glob("cache/models/.converting*"):
            # Where its lock is lost, it may be another process' for a day.
            os.utime(left, (0, 0))
        whole = find_damage(top / "cache/models" / folder.name) is None
        again = checkpoint_folder(PathSource(path=tmp_path / "packed"))
        assert {file.name: file.read_bytes() for file in again.iterdir()} == expected
        assert whole or not list(top.rglob(".converting*")), "nothing is left behind"
        shutil.rmtree(top)


# -- training ---------------------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "kind": "pretrain", "positions": "rope", "data": [{"path": "text.txt"}], "validation": {"path": "text.txt"},
    "shape": {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32, "vocab_size": 300},
    "validation_tokens": 64, "sequence_length": 32, "tokens": 4 * 64, "tokens_per_step": 64, "lr": 1e-3,
    "warmup_steps": 1, "precision": "fp32", "compile": False, "checkpoint_every": 1, "evaluate_every": 100,
}  # fmt: skip


def test_training_goes_on_from_whatever_a_crash_leaves(
    tmp_path: Path, essays: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    from longctx_bench.training.train import train

    monkeypatch.setattr("longctx_bench.training.trainer.matmul_rate", lambda device: 1e12)
    monkeypatch.setattr("longctx_bench.training.trainer.plot_loss_curve", lambda *_: None)
    top = tmp_path / "top"
    top.mkdir()
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(top / "cache"))
    shutil.copyfile(essays, tmp_path / "text.txt")
    (tmp_path / "small.yaml").write_text(json.dumps(RECIPE | {"corpus": str(tmp_path)}))
    save = checkpointing.save_state

    with recorded(top) as recorder, monkeypatch.context() as patch:

        def saved(out: Path, step: int, *rest: Any) -> None:
            save(out, step, *rest)
            recorder.note(step)

        patch.setattr(checkpointing, "save_state", saved)
        train(tmp_path / "small.yaml", top / "out")
        recorder.note(RECIPE["tokens"] // 64)
    expected = (top / "out/model.safetensors").read_bytes()
    steps: list[int] = []
    one_step = trainer.Trainer._train_step

    def counted(self: Any, inputs: Any) -> Any:
        steps.append(self.step)
        return one_step(self, inputs)

    monkeypatch.setattr(trainer.Trainer, "_train_step", counted)
    # A training takes longer than a run.
    for number, state in enumerate(drawn(recorder, STATES // 3)):
        again = state.write(tmp_path / f"crash-{number}")
        monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(again / "cache"))
        steps.clear()
        train(tmp_path / "small.yaml", again / "out")
        assert (again / "out/model.safetensors").read_bytes() == expected
        assert min(steps, default=99) >= max(state.notes, default=0), "no step that was kept is taken again"
        assert (again / "out/README.md").is_file()
        assert not (again / "out/state").exists()
        shutil.rmtree(again)
