"""What new users met who came from README alone: each of these was a traceback, a wrong hint, or nothing at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.core.errors import UserError, did_you_mean

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]

METHOD = """
from longctx_bench.methods.base import BaseModelInfo, Method


class Mine(Method):
    def {name}(self, base: BaseModelInfo, length: int) -> dict:
        return {value}
"""
BENCHMARK = """
from longctx_bench.benchmarks.base import IndexedBenchmark


class Riddles(IndexedBenchmark):
    def {name}(self, encoder, length, max_new_tokens, seed, index):
        return {value}
"""
TASK = """
riddles:
  use: ./riddles.py:Riddles
  description: riddles
  metric: string_match_all
  max_new_tokens: 8
  samples: 2
  params: {}
"""


def method(folder: Path, name: str = "model_overrides", value: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text("use: ./mine.py:Mine\n", encoding="utf-8")
    (folder / "mine.py").write_text(METHOD.format(name=name, value=value), encoding="utf-8")
    return folder


def benchmark(folder: Path, name: str = "example", value: str = "None") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "riddles.yaml").write_text(TASK, encoding="utf-8")
    (folder / "riddles.py").write_text(BENCHMARK.format(name=name, value=value), encoding="utf-8")
    return folder


def test_a_misspelt_function_of_a_plug_in_is_one_line(call: Call, tmp_path: Path) -> None:
    folder = method(tmp_path / "mine", "model_overides")
    code, _, error = call("run", "--include-path", folder, "--model", "mine-tiny", "--dry-run")
    assert code == 2
    assert error == (
        "longctx-bench: baselines/mine: use: ./mine.py:Mine: does not define 'model_overrides', only 'model_overides'\n"
    )
    folder = benchmark(tmp_path / "tasks", "exmple")
    code, _, error = call("run", "--include-path", folder, "--tasks", "riddles", "--model", "rope-tiny", "--dry-run")
    assert code == 2
    assert error.endswith("use: ./riddles.py:Riddles: does not define 'example', only 'exmple'\n")
    folder = benchmark(tmp_path / "others", "riddle")
    code, _, error = call("run", "--include-path", folder, "--tasks", "riddles", "--model", "rope-tiny", "--dry-run")
    assert error.endswith("does not define 'example'\n")


def test_an_error_in_a_plug_in_names_its_line(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "tasks", value="misspelt")
    code, _, error = call(
        "run", "--include-path", folder, "--tasks", "riddles", "--model", f"rope:{tiny_folder}", "--length", "256",
        "--device", "cpu", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "NameError: name 'misspelt' is not defined (raised by ./riddles.py:Riddles, line 7)" in error


def test_a_plan_says_what_the_run_would_refuse(call: Call, tmp_path: Path) -> None:
    arguments = ("run", "--scale", "2x", "--dry-run", "--device", "cpu", "--model")
    code, shown, error = call(*arguments, "longrope-tiny-control,yarn-tiny")
    assert code == 2
    states = {line.split()[0]: line.split()[-1] for line in shown.splitlines() if "/niah/" in line}
    assert states == {"longrope-tiny-control/niah/1024": "refused", "yarn-tiny/niah/1024": "run"}
    assert error.startswith(
        "failed: longrope-tiny-control/niah/1024: longrope needs 'short_factor', a list of 32 numbers"
    )
    code, _, error = call(*arguments, "mine-tiny", "--include-path", method(tmp_path / "mine", value="1 / 0"))
    assert code == 2
    assert (
        "failed: mine-tiny/niah/1024: ZeroDivisionError: division by zero (raised by ./mine.py:Mine, line 7)" in error
    )
    assert call(*arguments, "yarn-tiny")[0] == 0


def test_long_lists_of_names_are_not_printed_and_far_names_not_suggested(call: Call) -> None:
    code, _, error = call("run", "--model", "neox", "--dry-run")
    assert code == 2
    assert len(error) < 200
    assert did_you_mean("half-pi", ["alibi", "pi"]) == "; known: alibi, pi"
    assert did_you_mean("yarn-tny", ["yarn-tiny"]) == "; did you mean 'yarn-tiny'?"


def test_a_missing_argument_comes_with_the_usage(call: Call) -> None:
    code, _, error = call("compare", "yarn-tiny")
    assert code == 2
    assert error == "longctx-bench: Missing argument 'B'. Usage: longctx-bench compare [OPTIONS] A B [FOLDER]\n"


def test_a_scale_that_no_figure_takes_is_a_mistake(call: Call, tmp_path: Path) -> None:
    code, _, error = call("figures", tmp_path, "--kind", "length,heatmap", "--scale", "2x")
    assert code == 2
    assert error.startswith("longctx-bench: --scale goes with the kinds bars, tasks and in-context")


def test_predictions_of_others_in_a_folder_need_a_format(call: Call, tmp_path: Path) -> None:
    code, _, error = call("score", tmp_path)
    assert code == 2
    assert "is a folder; prediction files of others are read with --format longbench or ruler" in error


def test_a_longbench_file_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    from longctx_bench.benchmarks.longbench.reader import _find

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "multi_news.jsonl").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UserError, match="has no hotpotqa.jsonl .* known: multi_news$"):
        _find(tmp_path, "hotpotqa")


def test_lists_do_not_help_longrope_on_a_base_with_a_scaling_of_its_own() -> None:
    from longctx_bench.methods.base import BaseModelInfo
    from longctx_bench.methods.rope_scaling import LongRoPE

    rope: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = {
        "model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10000.0, **rope},
    }  # fmt: skip
    with pytest.raises(UserError, match="already scaled .* and longrope on top of that is not defined"):
        LongRoPE().model_overrides(BaseModelInfo("mine", 2048, config), 4096)


def test_a_server_that_is_not_there_is_named_at_once(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    code, _, error = call(
        "run", "--engine", "openai", "--base-url", "http://127.0.0.1:9", "--model", f"rope:{tiny_folder}",
        "--length", "256", "--limit", "1", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert error.count("\n") == 1
    assert "http://127.0.0.1:9: cannot be reached" in error
    # It was 8 s of retries; the command itself takes one or two.
    assert time.monotonic() - start < 6
