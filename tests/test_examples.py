"""The packages in ``examples/`` are installed into a folder of their own and run by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in (ROOT / "examples").glob("*/pyproject.toml"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, backend = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("backend")
    projects = [tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8")) for path in PACKAGES]
    # The build backend once, and not once per package as pip's isolated builds do.
    _pip_install(backend, sorted({name for project in projects for name in project["build-system"]["requires"]}))
    _pip_install(folder, ["--no-deps", "--no-build-isolation", *map(str, PACKAGES)], PYTHONPATH=str(backend))
    return folder


def _pip_install(target: Path, arguments: list[str], **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=600, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def results(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages in one run: their task, benchmark and metric, on their method, by their engine."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine").mkdir()
    (folder / "mine" / "passkey.yaml").write_text(
        "passkey:\n  use: passkey\n  metric: first_number\n  max_new_tokens: 8\n  samples: 10\n  params: {depths: 5}\n"
    )
    written = called(
        site, "examples", "passkey", "--model", "log-n-tiny", "--length", 512, "--limit", 5, "--include-path",
        folder / "mine",
    )  # fmt: skip
    examples = [json.loads(line) for line in written.splitlines()]
    # All but the second answer are right.
    answers = [{"id": e["id"], "text": e["references"][0] if e["id"] != "000001" else "7"} for e in examples]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    called(
        site, "run", "--model", "log-n-tiny", "--tasks", "passkey", "--length", 512, "--limit", 5, "--include-path",
        folder / "mine", "--engine", "recorded", "--engine-arg", f"answers={folder / 'answers.jsonl'}", "--out",
        folder / "out",
    )  # fmt: skip
    return folder / "out"


def called(site: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    code = "from longctx_bench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment,
        stdin=subprocess.DEVNULL, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_one_of_each_kind() -> None:
    kinds = {path.name.removeprefix("example-") for path in PACKAGES}
    assert kinds == {"task", "benchmark", "metric", "method", "engine", "figure", "table"}
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme for path in PACKAGES)


def test_benchmark_metric_method_and_engine(results: Path) -> None:
    cell = json.loads((results / "runs/tiny/log-n/passkey/512/cell.json").read_text())
    assert (cell["score"], cell["metric"], cell["spec"]["engine"]) == (0.8, "first_number", "recorded")
    assert (cell["spec"]["method"]["id"], cell["spec"]["task"]["benchmark"]) == ("LogN", "passkey")
    assert set(cell["spec"]["code"]) == {"method", "task", "metric"}


def test_task(site: Path, tmp_path: Path) -> None:
    assert "niah_two_of_six" in called(site, "list", "tasks")
    called(
        site, "run", "--model", "tiny", "--tasks", "niah_two_of_six", "--length", 1024, "--limit", 2, "--engine",
        "echo", "--out", tmp_path,
    )  # fmt: skip
    assert (tmp_path / "runs/tiny/rope/niah_two_of_six/1024/cell.json").is_file()


def test_method_on_weights(site: Path, tmp_path: Path) -> None:
    called(site, "run", "--model", "log-n-tiny", "--tasks", "niah_two_of_six", "--scale", "2x", "--limit", 1, "--out",
           tmp_path, "--device", "cpu")  # fmt: skip
    assert (tmp_path / "runs/tiny/log-n/niah_two_of_six/1024/cell.json").is_file()


def test_figure_and_table(site: Path, results: Path, tmp_path: Path) -> None:
    called(site, "figures", results, "--kind", "examples", "--out", tmp_path)
    assert (tmp_path / "passkey-histogram.png").is_file()
    assert "| log-n-tiny | passkey | 512 | 80 [" in called(
        site, "report", results, "--table", "worst", "--format", "md"
    )
    # A benchmark's grid of depths is a heatmap's axis, whoever wrote the benchmark.
    called(site, "figures", results, "--kind", "heatmap", "--out", tmp_path)
    assert (tmp_path / "passkey-heatmap.png").is_file()
