"""scripts/run_on_gpus.py: order, GPUs, failures, and a second start."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.cli.main import cli
from longctx_bench.core.specs import read_yaml

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("run_on_gpus", ROOT / "scripts" / "run_on_gpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "run_on_gpus", module)
        spec.loader.exec_module(module)
        yield module


def run(script: Any, folder: Path, jobs: str, *more: str) -> int:
    file = folder / "jobs.yaml"
    file.write_text(jobs)
    return int(script.main([str(file), "--logs", str(folder / "logs"), *more]))


def test_jobs_wait_for_each_other_and_run_once(script: Any, tmp_path: Path) -> None:
    jobs = f"""
second: {{run: "cat {tmp_path}/made", after: [first]}}
first: {{run: "echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/made", alone: true}}
"""
    assert run(script, tmp_path, jobs, "--gpus", "3") == 0
    assert run(script, tmp_path, jobs, "--gpus", "3") == 0
    assert (tmp_path / "made").read_text() == "3\n"
    assert (tmp_path / "logs" / "second.log").read_text() == "3\ndone\n"


def test_a_failure_stops_what_waits_for_it_alone(script: Any, tmp_path: Path, capsys: Any) -> None:
    jobs = 'bad: {run: "exit 3"}\nneeds: {run: "true", after: [bad]}\ngood: {run: "true"}\n'
    assert run(script, tmp_path, jobs) == 1
    assert "1 of 3 jobs done; failed: bad, needs" in capsys.readouterr().out


def test_a_job_alone_shares_no_gpu(script: Any) -> None:
    job, other = script.Job("a", "true", alone=True), script.Job("b", "true", status="running", gpu="0")
    assert script.free_gpu([job, other], job, ["0", "1"], 4) == "1"
    assert script.free_gpu([job, other], job, ["0"], 4) is None
    assert script.free_gpu([other], script.Job("c", "true"), ["0"], 2) == "0"
    assert script.free_gpu([other], script.Job("c", "true"), ["0"], 1) is None


def test_a_job_that_waits_for_a_gpu_of_its_own_gets_the_next(script: Any, tmp_path: Path) -> None:
    busy = [script.Job(name, "true", status="running", gpu=gpu) for name, gpu in (("a", "0"), ("b", "0"), ("c", "1"))]
    alone, later = script.Job("alone", "true", alone=True), [script.Job(name, "true") for name in "de"]
    jobs = [*busy, alone, *later]
    script.step(jobs, ["0", "1"], 3, tmp_path)
    assert (alone.status, [job.status for job in later], later[0].gpu) == ("waiting", ["running", "waiting"], "0")
    busy[2].status = "done"
    script.step(jobs, ["0", "1"], 3, tmp_path)
    assert (alone.status, alone.gpu) == ("running", "1")
    for job in (alone, *later):
        if job.process is not None:
            job.process.wait()


def test_jobs_end_with_their_children_when_the_time_is_over(script: Any, tmp_path: Path, capsys: Any) -> None:
    alive = tmp_path / "alive"
    jobs = f"""
slow: {{run: "(while sleep 0.1; do touch {alive}; done) & wait"}}
next: {{run: "true", after: [slow]}}
quick: {{run: "true"}}
"""
    assert run(script, tmp_path, jobs, "--minutes", "0.05") == 1
    assert "1 of 3 jobs done; failed: slow, next" in capsys.readouterr().out
    alive.unlink(missing_ok=True)
    time.sleep(0.5)
    assert not alive.exists()


@pytest.mark.parametrize("content", ["a: {run: x, after: [b]}", "a: {walk: x}", "[", "a"])
def test_a_wrong_file_gets_one_line(script: Any, tmp_path: Path, content: str) -> None:
    with pytest.raises(SystemExit, match="jobs.yaml: "):
        run(script, tmp_path, content)


@pytest.mark.parametrize("file", sorted((ROOT / "results" / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_that_made_our_results_can_be_read(script: Any, file: Path) -> None:
    jobs = script.read_jobs(file)
    assert [job.name for job in jobs] == list(read_yaml(file))
    for command in (words for job in jobs for words in job.run.split("&&")):
        program, name, *arguments = shlex.split(command)
        assert program == "longctx-bench"
        # Raises if the command does not know an option, or a value is wrong.
        with cli.commands[name].make_context(name, arguments) as context:
            assert context.params["out"] is not None or name == "calibrate"
