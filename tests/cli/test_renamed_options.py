"""Options under their old names: accepted for one release, with a warning, and absent from ``--help``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import longctx_bench

Call = Callable[..., tuple[int, str, str]]

TASK = """
mine_task: {use: needle-in-a-haystack, metric: string_match_all, max_new_tokens: 16, samples: 5}
groups: {mine_group: [mine_task, niah]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own with a method, a model, a task and a group."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "half.yaml").write_text("use: pi\ndescription: interpolation of ours\nparams: {factor: 2}\n")
    (folder / "models.yaml").write_text("mine-model:\n  source: {embedded: rope-tiny}\n  original_length: 256\n")
    (folder / "tasks.yaml").write_text(TASK)
    return folder


def warnings(error: str) -> list[str]:
    return [line for line in error.splitlines() if line.startswith("warning: ")]


def test_one_folder_may_hold_methods_models_and_tasks(call: Call, folder: Path) -> None:
    for kind, names in (("methods", ["half"]), ("models", ["mine-model"]), ("tasks", ["mine_task", "mine_group"])):
        code, shown, error = call("list", kind, "--include-path", folder)
        assert (code, error) == (0, "")
        for name in names:
            assert name in shown, (kind, name)


@pytest.mark.parametrize("old", ["--baselines", "--task-folder"])
def test_folders_under_their_old_options(call: Call, folder: Path, old: str) -> None:
    expected = call("list", "methods", "--include-path", folder)[1]
    assert "half" in expected
    code, shown, error = call("list", "methods", old, folder)
    assert (code, shown) == (0, expected)
    [warning] = error.splitlines()
    assert old in warning
    assert "--include-path" in warning


def test_old_and_new_folders_are_read_together(call: Call, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "third.yaml").write_text("use: pi\nparams: {factor: 3}\n")
    code, shown, error = call("list", "methods", "--include-path", folder, "--baselines", other, "--task-folder", other)
    assert code == 0
    assert "half" in shown
    assert "third" in shown
    assert len(warnings(error)) == 2


def test_a_folder_that_does_not_exist_is_named_with_the_new_option(call: Call, tmp_path: Path) -> None:
    code, _, error = call("list", "methods", "--baselines", tmp_path / "nowhere")
    assert code == 2
    assert f"--include-path {tmp_path / 'nowhere'}" in error


def test_attention_temperature(call: Call, tmp_path: Path, essays: Path) -> None:
    arguments = [
        "run",
        "--model",
        "drope-tiny",
        "--tasks",
        "niah",
        "--length",
        "512",
        "--engine",
        "echo",
        "--limit",
        "1",
    ]
    arguments += ["--limit", "1", "--data", f"ruler-essays={essays}"]
    methods = {}
    for option in ("--attention-temperature", "--temperature"):
        code, _, error = call(*arguments, option, "none", "--out", tmp_path / option)
        assert code == 0, error
        assert len(warnings(error)) == (option == "--temperature")
        [cell] = (tmp_path / option).rglob("cell.json")
        methods[option] = json.loads(cell.read_text())["spec"]["method"]
        assert methods[option]["params"]["calibration"] == "none"
    assert methods["--attention-temperature"] == methods["--temperature"]


def test_overwrite(call: Call, tmp_path: Path, tiny_folder: Path, essays: Path) -> None:
    arguments = [
        "run",
        "--model",
        tiny_folder,
        "--tasks",
        "niah",
        "--length",
        "512",
        "--engine",
        "echo",
        "--limit",
        "1",
    ]
    arguments += ["--limit", "1", "--data", f"ruler-essays={essays}", "--out", tmp_path]

    def superseded() -> int:
        return len(list((tmp_path / "superseded").rglob("cell.json")))

    counts = []
    for options in ([], [], ["--resume"], ["--overwrite"], ["--rerun"]):
        code, _, error = call(*arguments, *options)
        assert code == 0, error
        counts.append(superseded())
        [*warned] = warnings(error)
        assert [option for line in warned for option in options if option in line] == (
            [] if options in ([], ["--overwrite"]) else options
        )
    assert counts == [0, 0, 0, 1, 2]


def test_compare_with(call: Call, tmp_path: Path, tiny_folder: Path, essays: Path) -> None:
    code, _, error = call(
        "run", "--model", f"{tiny_folder},yarn:{tiny_folder}", "--tasks", "niah", "--length", "512", "--limit", "1",
        "--engine", "echo", "--out", tmp_path, "--data", f"ruler-essays={essays}",
    )  # fmt: skip
    assert code == 0, error
    show = ["show", "yarn-tiny/niah/512", "--out", tmp_path]
    code, expected, error = call(*show, "--compare-with", "rope-tiny")
    assert (code, error) == (0, "")
    assert expected != call(*show)[1]
    code, shown, error = call(*show, "--beside", "rope-tiny")
    assert (code, shown) == (0, expected)
    [warning] = error.splitlines()
    assert "--beside" in warning
    assert "--compare-with" in warning


@pytest.mark.parametrize("command", ["run", "show", "list tasks", "check"])
def test_help_shows_the_new_names_only(call: Call, command: str) -> None:
    code, shown, _ = call(*command.split(), "--help")
    assert code == 0
    assert "--include-path" in shown
    for old in ("--baselines", "--task-folder", "--temperature ", "--rerun", "--resume", "--beside"):
        assert old not in shown


def test_the_python_function_takes_the_old_argument_too(tmp_path: Path, tiny_folder: Path, essays: Path) -> None:
    from longctx_bench.registry import Registry

    registry = Registry(local_data={"ruler-essays": essays})
    arguments = {"length": 512, "limit": 1, "engine": "echo", "out": tmp_path, "registry": registry}
    longctx_bench.run(str(tiny_folder), "niah", **arguments)
    longctx_bench.run(str(tiny_folder), "niah", overwrite=True, **arguments)
    with pytest.warns(FutureWarning, match="overwrite"):
        longctx_bench.run(str(tiny_folder), "niah", rerun=True, **arguments)
    assert len(list((tmp_path / "superseded").rglob("cell.json"))) == 2
