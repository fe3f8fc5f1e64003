"""``longctx-bench list``: a row a line in a pipe, folded in a terminal, records for programs."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.cli.output import put_list
from longctx_bench.core.errors import UserError
from longctx_bench.engines.vllm_backend.hf_overrides import vllm_overrides
from longctx_bench.registry import Registry


def test_in_a_pipe_each_task_is_one_line_with_its_suite(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, shown, _ = call("list", "tasks")
    assert code == 0
    lines = shown.splitlines()
    for name, spec in Registry().tasks.items():
        [line] = [line for line in lines if line.split()[1:2] == [name]]
        assert line.endswith(spec.description)
    suites = {line.split()[1]: line.split()[0] for line in lines[1:] if line.strip()}
    assert suites["narrativeqa"] == "longbench"
    assert suites["hotpotqa_e"] == "longbench_e"
    assert suites["niah"] == suites["niah_multikey"] == "needle-in-a-haystack"
    assert suites["niah_multiquery"] == "ruler"
    assert suites["vt@paper"] == "ruler@paper"
    assert "\x1b" not in shown


def test_the_long_form_has_what_the_short_one_leaves_out(call: Any) -> None:
    _, short, _ = call("list", "tasks")
    _, long, _ = call("list", "tasks", "--long")
    for text in ("string_match_all", "lcc_e, repobench-p_e", "CC BY-SA 4.0"):
        assert text in long
    for text in ("string_match_all", "CC BY-SA 4.0"):
        assert text not in short
    [group] = [line for line in short.splitlines() if line.startswith("longbench_en ")]
    assert len(group) < 80


@pytest.mark.parametrize("what", ["tasks", "models", "methods"])
def test_lists_for_programs(call: Any, what: str) -> None:
    code, shown, error = call("list", what, "--format", "json")
    assert (code, error) == (0, "")
    found = json.loads(shown)
    registry = Registry()
    assert {one[what[:-1]] for one in found} == set(getattr(registry, what))
    code, shown, _ = call("list", what, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(shown)))
    assert [line[what[:-1]] for line in lines] == [one[what[:-1]] for one in found]
    assert list(lines[0]) == list(found[0])
    if what == "models":
        assert found[0]["context"] == registry.models[found[0]["model"]].original_length


def test_a_narrow_terminal_folds_the_longest_column_and_then_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("niah", "word " * 20), ("vt", "short")]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    put_list(("task", "description"), rows)
    shown = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    assert all(len(line) <= 60 for line in shown.splitlines())
    assert shown.split().count("word") == 20
    put_list(("task", "source", "description"), [("niah", "s" * 40, "word " * 20), ("vt", "", "short")])
    lines = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert "niah" in lines[0]
    assert lines[1].strip() == f"source: {'s' * 40}"
    assert sum("source:" in line for line in lines) == 1


def test_a_method_of_an_entry_point_is_described_by_its_docstring(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "methods.py").write_text(
        'raise SystemExit("is not imported")\nclass Theirs:\n    """Interpolate as they do.\n\n    More."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = [
        EntryPoint("theirs", "their_package.methods:Theirs", "longctx_bench.methods"),
        EntryPoint("gone", "no_such_package:Gone", "longctx_bench.methods"),
    ]
    monkeypatch.setattr("longctx_bench.core.plugin_registry.entry_points", lambda group: plugins)
    code, shown, _ = call("list", "methods")
    assert code == 0
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines() if line.strip()}
    assert rows["theirs"].strip() == "Interpolate as they do"
    assert "no_such_package:Gone" in rows["gone"]


def test_methods_are_listed_with_the_engines_that_have_what_they_need(call: Any, tmp_path: Path) -> None:
    (tmp_path / "misspelt.yaml").write_text("use: longctx_bench.methods.rope_scaling:YARN\n")
    code, shown, _ = call("list", "methods", "--format", "json", "--include-path", tmp_path)
    engines = {row["method"]: row["engines"] for row in json.loads(shown)}
    assert code == 0
    assert engines["yarn"] == engines["self-extend"] == engines["jet-long"] == "hf, vllm"
    assert engines["dynamic-ntk"] == engines["alibi"] == "hf"
    assert not engines["misspelt"]


def test_vllm_is_listed_for_exactly_the_methods_that_its_engine_takes(call: Any) -> None:
    _, shown, _ = call("list", "methods", "--format", "json")
    listed = {row["method"]: "vllm" in row["engines"].split(", ") for row in json.loads(shown)}
    registry = Registry()
    lists = {"short_factor": (1.0,) * 32, "long_factor": (2.0,) * 32}
    refusals = {}
    for name in registry.methods:
        variant = registry.variant(f"{name}-tiny")
        method = variant.method.with_parameters(lists) if name == "longrope" else variant.method
        try:
            vllm_overrides(variant.resolve().base, method, 1024, 1024)
        except UserError as error:
            refusals[name] = str(error)
    assert {name for name, runs in listed.items() if not runs} == refusals.keys()
    assert all(refusal.startswith("--engine vllm") for refusal in refusals.values())
    assert {"yarn-heads", "longrope", "rnope-swa", "drope"} <= refusals.keys()
    assert not {"yarn", "drope-uniform", "jet-long"} & refusals.keys()


@pytest.mark.slow
def test_a_loss_is_no_percentage(call: Any, tmp_path: Path) -> None:
    reference = Path(__file__).parents[2] / "results" / "reference" / "tiny.bundle"
    code, shown, _ = call("list", "results", reference)
    assert code == 0
    [line] = [line for line in shown.splitlines() if line.startswith("yarn-tiny/perplexity_last/512 ")]
    assert "nats a token" in line
    code, shown, _ = call("list", "results", reference, "--format", "json")
    assert code == 0
    [found] = [one for one in json.loads(shown) if one["cell"] == "yarn-tiny/perplexity_last/512"]
    assert f"{found['score']:.2f}" in line
    assert found["n"] == 20
