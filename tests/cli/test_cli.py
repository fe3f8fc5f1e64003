"""The command line: every form that README names, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from longctx_bench.cli.output import say


@pytest.fixture
def done(call, tiny_folder: Path, tmp_path: Path, essays: Path) -> Path:  # type: ignore[no-untyped-def]
    """A finished run of two methods at two lengths."""
    out = tmp_path / "run"
    code, shown, _ = call(
        "run", "--model", f"{tiny_folder},yarn:{tiny_folder}", "--tasks", "niah", "--length", "512,1k", "--limit", "22",
        "--engine", "echo", "--out", out, "--data", f"ruler-essays={essays}",
    )  # fmt: skip
    assert code == 0, shown
    assert "rope-tiny" in shown
    assert "4 cells" in shown
    return out


@pytest.mark.slow
def test_list_and_help_need_no_torch() -> None:
    code = (
        "import sys; from longctx_bench.cli import main; sys.argv = ['x', *{}]\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += (
        "bad = [m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules]; sys.exit(bool(bad))"
    )
    for arguments in (["--help"], ["list", "tasks"], ["list", "models"], ["list", "methods"], ["report", "nowhere"]):
        assert (
            subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, check=False).returncode
            == 0
        )


@pytest.mark.slow
def test_report_formats(call, done: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, shown, _ = call("report", done)
    assert code == 0
    assert "512 (2x)" in shown
    code, markdown, _ = call("report", done, "--format", "md")
    assert "| rope-tiny |" in markdown
    code, latex, _ = call("report", done, "--format", "latex")
    assert r"\toprule" in latex
    code, csv, _ = call("report", done, "--format", "csv")
    assert csv.splitlines()[0].startswith("model,base,method,task,length,scale,factor,factor_source,metric,score")
    assert len(csv.splitlines()) == 5
    code, _, _ = call("report", done, "--format", "html", "--out", tmp_path / "page.html")
    assert "<table" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_figures(call, done: Path) -> None:  # type: ignore[no-untyped-def]
    code, _shown, _ = call("figures", done)
    assert code == 0
    assert (done / "figures/niah-heatmap.png").stat().st_size > 10_000
    code, _, error = call("figures", done, "--task", "vt")
    assert code == 2
    assert "--task vt: not measured in" in error


def test_list_results_and_unfinished(call, done: Path) -> None:  # type: ignore[no-untyped-def]
    cell = done / "runs/tiny/rope/niah/512"
    (cell / "cell.json").rename(cell / "started.json")
    code, shown, _ = call("list", "results", done)
    assert code == 0
    assert "yarn-tiny/niah/1024" in shown
    assert "missing: tiny/rope/niah/512" in shown


@pytest.mark.slow
def test_show(call, done: Path, essays: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = ["--data", f"ruler-essays={essays}"]
    code, shown, error = call("show", "yarn-tiny/niah/512", "5", "--out", done)
    assert code == 0, error
    assert "--- references" in shown
    code, both, error = call("show", "yarn-tiny/niah/512", "5", "--out", done, "--compare-with", "rope-tiny")
    assert code == 0, error
    assert both.startswith(shown.rstrip("\n"))
    assert "=== rope-tiny/niah/512" in both[len(shown) - 1 :]
    code, _, error = call("show", "yarn-tiny/niah/512", "5", "--out", done, "--compare-with", "rop-tiny")
    assert (code, "did you mean" in error) == (2, True)
    done = shutil.copytree(done, tmp_path / "without-prompts", ignore=shutil.ignore_patterns("prompts"))
    code, _, error = call("show", "yarn-tiny/niah/512", "5", "--out", done)
    assert (code, "--data" in error) == (2, True)
    code, shown, error = call("show", "yarn-tiny/niah/512", "5", "--out", done, *data)
    assert code == 0, error
    assert "--- references" in shown
    assert "A special magic number is hidden" in shown
    code, _, error = call("show", "yarn-tiny/niah/513", "--out", done)
    assert (code, "did you mean 'yarn-tiny/niah/512'?" in error) == (2, True)
    code, _, error = call("show", "yarn-tiny/niah/512", "99", "--out", done)
    assert (code, "has no example 99" in error) == (2, True)


@pytest.mark.slow
def test_what_show_says_reads_as_words(call, done: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, shown, _ = call("show", "yarn-tiny/niah/512", "5", "--out", done)
    first = shown.splitlines()[0]
    assert re.search(r"needle at \d+ % of its length$", first), first
    assert "settled" not in shown
    [line] = [line for line in shown.splitlines() if line.startswith("--- generation")]
    assert line.endswith("cut off at the most new tokens)")
    cell = "runs/tiny/yarn/niah/512"
    records = (done / cell / "records.jsonl").read_text()
    for reason, words in (("settled", "its score could no longer change"), ("eos", "end token"), ("x", "ended by x")):
        folder = shutil.copytree(done, tmp_path / reason)
        (folder / cell / "records.jsonl").write_text(records.replace('"length"', f'"{reason}"'))
        assert words in call("show", "yarn-tiny/niah/512", "5", "--out", folder)[1]


def test_one_cell_is_not_cells_and_a_failure_is_said_once(
    call, tiny_folder: Path, tmp_path: Path, essays: Path
) -> None:  # type: ignore[no-untyped-def]
    run = ["run", "--model", tiny_folder, "--length", "512", "--limit", "1", "--engine", "echo", "--out", tmp_path]
    code, shown, error = call(*run, "--tasks", "niah", "--data", f"ruler-essays={essays}")
    assert code == 0, error
    assert "1 cell in " in shown
    code, _, error = call(*run, "--tasks", "qasper,hotpotqa", "--data", f"longbench={tmp_path}")
    assert code == 2
    lines = error.splitlines()
    for task in ("qasper", "hotpotqa"):
        assert [line.partition(": ")[0] for line in lines if f"{task}.jsonl" in line] == ["failed"]
    assert any(line.startswith("2 cells failed") for line in lines)


def test_missing_longbench_says_how_to_name_a_copy(call, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = call(
        "run", "--model", tiny_folder, "--length", "512", "--engine", "echo", "--tasks", "qasper", "--out", tmp_path
    )
    assert code == 2
    assert "--data longbench=FOLDER" in error


def test_report_as_json(call, done: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, shown, error = call("report", done, "--format", "json")
    assert (code, error) == (0, "")
    found = json.loads(shown)
    assert {(one["method"], one["length"]) for one in found} == {(m, n) for m in ("rope", "yarn") for n in (512, 1024)}
    assert all(0 <= one["score"] <= 1 and one["n"] == 22 for one in found)
    path = tmp_path / "table.json"
    assert call("report", done, "--out", path)[0] == 0
    assert path.read_text() == shown
    code, shown, _ = call("compare", "rope-tiny", "yarn-tiny", done, "--format", "json")
    assert code == 0
    assert [(one["task"], one["length"], one["higher_is_better"]) for one in json.loads(shown)] == [
        ("niah", 512, True), ("niah", 1024, True),
    ]  # fmt: skip


@pytest.mark.slow
def test_examples_then_score(call, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, shown, error = call("examples", "niah_single_1", "--model", tiny_folder, "--length", "512", "--limit", "4")
    assert code == 0, error
    lines = [json.loads(line) for line in shown.splitlines()]
    assert set(lines[0]) == {
        "task", "id", "hash", "prompt", "answer_prefix", "references", "depths", "n_tokens", "max_new_tokens",
    }  # fmt: skip
    for place, line in enumerate(lines):
        line["prediction"] = line["references"][0] if place < 3 else "nothing"
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, shown, _ = call("score", file, "--json")
    assert json.loads(shown) == {"niah_single_1": 75.0}
    code, shown, _ = call("score", file, "--task", "niah")
    assert shown == "niah: 75.00 % (n = 4)\n"
    file.write_text('{"task": "niah", "references": ["1"], "prediction": "1"}\n{"task": "niah", "references": ["1"]}\n')
    code, _, error = call("score", file)
    assert (code, "line 2: 'prediction' is missing" in error) == (2, True)
    for content in (
        b"[1]\n",
        b'{"task": 5}\n',
        b'{"task": "ruler", "references": ["1"], "prediction": "1"}\n',
        b"\xff\n",
    ):
        file.write_bytes(content)
        code, _, error = call("score", file)
        assert (code, "line 1" in error, len(error.strip().splitlines())) == (2, True, 1)


@pytest.mark.slow
def test_dry_run_writes_nothing(call, tiny_folder: Path, tmp_path: Path, essays: Path) -> None:  # type: ignore[no-untyped-def]
    code, shown, error = call(
        "run", "--model", tiny_folder, "--tasks", "niah,vt", "--scale", "2x,4x", "--dry-run",
        "--out", tmp_path / "none", "--device", "cpu", "--data", f"ruler-essays={essays}",
    )  # fmt: skip
    assert code == 0, error
    assert "4 cells, about" in shown
    cells = [line.split()[0] for line in shown.splitlines()[1:-1]]
    context = json.loads((tiny_folder / "config.json").read_text())["max_position_embeddings"]
    assert cells == [f"rope-{tiny_folder.name}/{t}/{s * context}" for t in ("niah", "vt") for s in (2, 4)]
    assert not (tmp_path / "none").exists()


MISTAKES = [
    (["--model", "yrn-smollm2-135m"], "unknown model; did you mean 'yarn-smollm2-135m'?"),
    (["--model", "yarm:org/name"], "unknown method 'yarm'; did you mean 'yarn'?"),
    (["--model", "drope-smollm2-135m"], "smollm2-135m has no drope checkpoint; name one as drope:FOLDER_OR_HUB_ID"),
    (["--model", "/no/such/folder"], "no such folder, and not a hub id"),
    (["--model", "yarn:HuggingFaceTB/nothing-here"], "not in the local cache and the hub cannot be reached"),
    (["--model", ","], "names no model"),
    (["--tasks", "niha"], "unknown task 'niha'; did you mean 'niah'?"),
    (["--tasks", "niah", "--protocol", "ruler@papr"], "task 'niah' does not have it; did you mean 'ruler@paper'?"),
    (["--scale", "0x"], "--scale 0x: must be above 0"),
    (["--scale", "two"], "--scale two: expected a number with x"),
    (["--length", "4kk"], "--length 4kk: expected a number of tokens"),
    (["--limit", "0"], "0 is not in the range x>=1"),
    (["--set", "yarn.facto=4", "--model", "yarn-smollm2-135m"], "unknown key 'facto'; did you mean 'factor'?"),
    (
        ["--set", "yarn.factor=0.5", "--model", "yarn-smollm2-135m"],
        "'factor': Input should be greater than or equal to 1",
    ),
    (["--set", "yarnfactor"], "expected METHOD.PARAM=VALUE"),
    (["--set", "yam.factor=2"], "unknown method; did you mean 'yarn'?"),
    (["--include-path", "/no/such"], "--include-path /no/such: no such folder"),
    (["--data", "ruler-essays"], "expected NAME=PATH"),
    (["--data", "ruler-esays=/tmp"], "unknown data source; did you mean 'ruler-essays'?"),
    (["--data", "ruler-essays=/no/such", "--engine", "echo", "--length", "512"], "/no/such: no such file or folder"),
    (["--device", "cuda:9"], "torch sees no CUDA device"),
    (["--dtype", "float16"], "'float16' is not one of"),
    (["--engine", "llama.cpp"], "llama.cpp: choose hf, vllm"),
    (["--out", "/proc/nowhere", "--engine", "echo"], "/proc/nowhere: cannot be written"),
    (["--modle", "x"], "No such option"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes_are_one_line_and_exit_2(
    call, arguments: list[str], message: str, tmp_path: Path, tiny_folder: Path
) -> None:  # type: ignore[no-untyped-def]
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_folder)]
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path)]
    code, _, error = call("run", *arguments)
    assert code == 2, error
    assert message in error
    assert "Traceback" not in error
    assert max(error.count(f"\n{prefix}") + error.startswith(prefix) for prefix in ("longctx-bench: ", "failed: ")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "run --tasks niah --length 512 --model {model} --out",
        "calibrate drope:{model} --out",
        "train drope-tiny-first --out",
        "parity rope:{model} --out",
        "probe factors {model} --out",
        "examples niah --model {model} --length 512 --out",
        "compare one two {model} --out",
        "report {model} --out",
        "figures {model} --out",
    ],
    ids=lambda command: command.split()[0],
)
def test_what_cannot_be_written_is_said_before_the_work(
    call, command: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "results"
    code, _, error = call(*command.format(model=tiny_folder).split(), out)
    [line] = error.strip().splitlines()
    assert code == 2
    assert line.startswith(f"longctx-bench: {out}: cannot be written: {tmp_path / 'file'} is a file; choose another")
    if command.startswith("run"):
        code, printed, _ = call(*command.format(model=tiny_folder).split(), out, "--dry-run", "--limit", "1")
        assert (code, "to run" in printed) == (0, True)
    # As another user than root, who may write everywhere.
    monkeypatch.setattr("longctx_bench.core.io.os.access", lambda path, mode: False)
    code, _, error = call(*command.format(model=tiny_folder).split(), tmp_path / "results")
    assert (code, "cannot be written: Permission denied; choose another" in error) == (2, True)


def test_a_task_that_does_not_fit_is_one_line_and_exit_1(call, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = call(
        "run", "--model", tiny_folder, "--tasks", "vt", "--length", "100", "--engine", "echo", "--out", tmp_path
    )
    assert code == 1
    assert "skipped: rope-tiny/vt/100: vt at 100: the shortest prompt takes" in error


def test_two_folders_of_one_name_are_refused(call, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other" / tiny_folder.name
    shutil.copytree(tiny_folder, other)
    code, _, error = call("run", "--model", f"{tiny_folder},{other}", "--out", tmp_path)
    assert (code, "another model is called rope-tiny too" in error) == (2, True)


def test_yaml_of_the_wrong_shape_is_one_line(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, text in (("models.yaml", "mine:\n"), ("mine.yaml", "- 1\n"), ("models.yaml", "1: {a: 2}\n")):
        (tmp_path / name).write_text(text)
        code, _, error = call("list", "models", "--include-path", tmp_path)
        assert (code, "expected a mapping" in error, len(error.strip().splitlines())) == (2, True, 1)
        (tmp_path / name).unlink()
    for text in ("mine: text\n", "groups: {mine: niah}\n", "groups:\n"):
        (tmp_path / "mine.yaml").write_text(text)
        code, _, error = call("list", "tasks", "--include-path", tmp_path)
        assert (code, len(error.strip().splitlines())) == (2, 1)


def test_a_typo_in_a_yaml_is_one_line(call, tmp_path: Path, tiny_folder: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.yaml").write_text("use: longctx_bench.methods.rope_scaling:YaRN\nparms: {factor: 4}\n")
    code, _, error = call("run", "--include-path", tmp_path, "--model", f"mine:{tiny_folder}")
    assert code == 2
    assert error.strip().endswith("mine.yaml: unknown key 'parms'; did you mean 'params'?")
    (tmp_path / "mine.yaml").write_text("use: [longctx")
    code, _, error = call("list", "methods", "--include-path", tmp_path)
    assert (code, "not valid YAML" in error, len(error.strip().splitlines())) == (2, True, 1)


def test_a_length_beyond_memory_is_refused_before_loading(call, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = call(
        "run", "--model", tiny_folder, "--tasks", "niah_single_1", "--length", "2000000000", "--limit", "1",
        "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert "needs about" in error
    assert "choose a smaller length" in error


@pytest.mark.slow
def test_a_plugin_that_raises_is_one_line_and_the_rest_goes_on(
    call, tiny_folder: Path, tmp_path: Path, essays: Path
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "mine.yaml").write_text("use: ./mine.py:Mine\n")
    (folder / "mine.py").write_text(
        textwrap.dedent(
            """
            from longctx_bench.methods.base import Method

            class Mine(Method):
                def model_overrides(self, base, length):
                    return 1 / 0
            """
        )
    )
    arguments = [
        "--tasks",
        "niah",
        "--length",
        "512",
        "--limit",
        "2",
        "--device",
        "cpu",
        "--data",
        f"ruler-essays={essays}",
    ]
    code, shown, error = call(
        "run",
        "--include-path",
        folder,
        "--model",
        f"mine:{tiny_folder},rope:{tiny_folder}",
        *arguments,
        "--out",
        tmp_path,
    )
    assert code == 2
    assert "ZeroDivisionError" in error
    assert "Traceback" not in error
    assert "rope-tiny" in shown
    (folder / "mine.py").write_text("import nothing_like_this\n")
    code, _, error = call(
        "run", "--include-path", folder, "--model", f"mine:{tiny_folder}", *arguments, "--out", tmp_path
    )
    assert code == 2
    assert error.startswith("longctx-bench: baselines/mine: use: ./mine.py:Mine: cannot be loaded (ModuleNotFoundError")


def test_a_setting_for_a_method_that_is_not_run_is_a_mistake(call, tiny_folder: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = call("run", "--model", f"yarn:{tiny_folder}", "--set", "pi.factor=8", "--dry-run")
    assert (code, "--set pi.…: no model of this run uses pi" in error) == (2, True)


def test_what_is_said_goes_to_standard_output_and_errors_to_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    say("wrote a file")
    say("a mistake", err=True)
    assert tuple(capsys.readouterr()) == ("wrote a file\n", "a mistake\n")
