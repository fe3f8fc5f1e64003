"""Whole runs of a one-million-parameter model on the CPU: pretrained, then recalibrated, killed and resumed."""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from longctx_bench.core.errors import UserError
from longctx_bench.training import checkpointing
from longctx_bench.training.__main__ import main
from longctx_bench.training.data.tokenizer_training import END
from longctx_bench.training.train import train
from longctx_bench.training.trainer import Trainer

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run goes on."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Trainer._train_step

    def one_step(self: Trainer, rows: torch.Tensor) -> torch.Tensor:
        if self.step == step:
            raise Killed
        return before(self, rows)

    monkeypatch.setattr(Trainer, "_train_step", one_step)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_pretrained_recalibrated_killed_and_resumed(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = train(small(), tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    assert 900_000 < model.num_parameters() < 1_200_000
    assert AutoTokenizer.from_pretrained(base).eos_token == END
    card = (base / "README.md").read_text(encoding="utf-8")
    assert "1,536" in card
    assert "no synthetic retrieval" in card
    assert (base / "loss.png").stat().st_size > 1000
    header, *lines = (base / "loss.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("step,tokens,lr,train_loss,validation_loss")
    assert [line.split(",")[0] for line in lines] == ["4", "6", "6"]
    said = capsys.readouterr().out
    assert "1,536 tokens seen" in said
    assert "tokens/s, MFU" in said

    recipe = small(kind="recalibrate", positions="drope", base=str(base), shape=None, qk_norm=True, candidates=1,
                   candidate_every=1)  # fmt: skip
    whole = train(recipe, tmp_path / "whole")
    assert (whole / "candidates" / "step-000005" / "config.json").is_file()
    assert not (whole / "state").exists()
    with monkeypatch.context() as patch:
        killed_at(5, patch)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "resumed")
    assert [state.name for state in (tmp_path / "resumed" / "state").iterdir()] == ["step-00000004"]
    with pytest.raises(UserError, match=r"another recipe \(lr was 0.001, is 0.002\)"):
        train(recipe, tmp_path / "resumed", {"lr": "0.002"})
    resumed = train(recipe, tmp_path / "resumed")
    assert "resumed at step 4" in capsys.readouterr().out
    expected, got = weights(whole), weights(resumed)
    assert set(expected) == set(got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert not torch.equal(got["model.norm.weight"], weights(base)["model.norm.weight"])
    train(recipe, resumed)
    assert "finished already" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(small: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not a training run"):
        train(small(), tmp_path / "out")


def test_a_corpus_smaller_than_a_batch_is_refused(small: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give more text or a smaller tokens_per_step"):
        train(small(tokens=64 * 4096, tokens_per_step=64 * 4096), tmp_path / "out")


def test_no_space_for_a_checkpoint_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "save_file", full)
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="No space left on device"):
        checkpointing.save_state(tmp_path, 3, layer, torch.optim.AdamW(layer.parameters()), {})
    assert not list((tmp_path / "state").iterdir())


def test_a_damaged_state_is_one_clear_line(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    adam = torch.optim.AdamW(layer.parameters())
    checkpointing.save_state(tmp_path, 3, layer, adam, {})
    (tmp_path / "state" / "step-00000003" / "optimiser.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged state"):
        checkpointing.load_state(tmp_path, layer, adam)


def test_two_processes_give_the_weights_of_one(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = small(tokens_per_step=512, tokens=3 * 512, micro_batch=2)
    one, two = train(recipe, tmp_path / "one"), tmp_path / "two"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    # As torchrun, but without a process of its own that imports torch; it raises if one of the two fails.
    from torch.distributed.run import main as torchrun

    handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
    try:
        torchrun(["--standalone", "--nproc-per-node", "2", "-m", "longctx_bench.training", *map(str, (recipe, two))])
    finally:
        for each, handler in handlers.items():
            if signal.getsignal(each) is not handler:
                signal.signal(each, handler)
    said = capfd.readouterr()
    assert "on 2 x cpu" in said.out
    assert "destroy_process_group" not in said.err
    expected, got = weights(one), weights(two)
    # Saved in bf16; the gradients of two halves are added in another order than those of the whole.
    assert all(torch.allclose(expected[name].float(), got[name].float(), atol=2e-3) for name in expected)
    assert all((expected[name] == got[name]).float().mean() > 0.99 for name in expected)


def test_the_recipe_of_the_readme(
    prose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: Any
) -> None:
    document = (Path(__file__).parents[2] / "baselines" / "README.md").read_text(encoding="utf-8")
    section = document.partition("## A recipe of your own")[2].partition("\n## ")[0]
    [recipe, commands] = re.findall(r"```(?:yaml)?\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # The loss and its gradients are captured as graphs; what torch makes of them in C++ is its own, and takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    Path("small.yaml").write_text(recipe, encoding="utf-8")
    for seed, name in enumerate(("train.txt", "val.txt")):
        Path(name).write_text(prose(seed, 4000), encoding="utf-8")
    for command in commands.strip().splitlines():
        # An eighth of its steps, which are all alike.
        shorter = ["--set", "tokens=16384"] if " train " in command else []
        code, shown, error = call(*command.removeprefix("longctx-bench ").split(), *shorter)
        assert code == 0, error
        # transformers' own bar of writing one file.
        assert "Writing model shards" not in error
    assert "yarn-small" in shown
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert "`longctx-bench train small.yaml`" in card
    assert " of 0 TFLOP/s" not in card


def test_the_process_group_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed

    def start(recipe: str, out: Path, overrides: dict[str, Any]) -> None:
        assert (recipe, out, overrides) == ("recipe.yaml", tmp_path, {"lr": "0.1"})
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    monkeypatch.setattr("longctx_bench.training.__main__.train", start)
    assert main(["recipe.yaml", str(tmp_path), "lr=0.1"]) == 0
    assert not torch.distributed.is_initialized()


def test_an_argument_that_sets_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe.yaml", str(tmp_path), "lr"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err
