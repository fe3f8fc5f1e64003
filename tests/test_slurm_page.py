"""The job scripts of docs/slurm.md, run by bash as SLURM would, with stand-ins for srun, scontrol and a Ray cluster."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.document_blocks import blocks

pytestmark = pytest.mark.slow

SCRIPTS = [block.text for block in blocks("docs/slurm.md") if block.kind == "bash"]
ONE, ARRAY, MERGE, NODE, NODES = SCRIPTS
# Ray's own parser reads the options; a cluster is what test_ray_cluster.py starts.
RAY = """
import subprocess, sys
from ray.scripts import scripts, symmetric_run
_, *arguments = sys.argv[1:]
split = arguments.index("--")
rest = symmetric_run.curate_and_validate_ray_start_args(arguments[:split])
scripts.start.make_context("ray start", ["--head", *rest], resilient_parsing=True)
sys.exit(subprocess.run(arguments[split + 1:], check=False).returncode)
"""
# What a script calls is run by the test's own process, which has imported torch: a call and its environment go there,
# and what it prints and its exit code come back.
CALL = """
import json, os, socket, sys
port, *arguments = sys.argv[1:]
environment = {name: os.environ[name] for name in os.environ if name.startswith(("LONGCTX_BENCH_", "HF_"))}
with socket.create_connection(("127.0.0.1", int(port))) as asked, asked.makefile("rw") as lines:
    print(json.dumps([arguments, environment]), file=lines, flush=True)
    code, out, error = json.loads(lines.readline())
sys.stdout.write(out)
sys.stderr.write(error)
sys.exit(code)
"""

Submit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def submit(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Run a script with the variables that SLURM sets."""

    def short(arguments: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
        """Run a command; runs without weights and without a cluster, and only two examples."""
        for option in ("--executor", "--ray-address"):
            if option in arguments:
                place = arguments.index(option)
                del arguments[place : place + 2]
        if arguments[0] == "run":
            arguments += ["--limit", "2", "--engine", "echo"]
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            found: tuple[int, str, str] = call(*arguments)
        return found

    def submitted(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        python = shlex.quote(sys.executable)
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.02)
            commands = {
                "longctx-bench": f'exec {python} -c {shlex.quote(CALL)} {server.getsockname()[1]} "$@"',
                "ray": f'exec {python} -c {shlex.quote(RAY)} "$@"',
                "srun": 'exec "$@"',
                "scontrol": "echo 127.0.0.1",
            }
            for name, command in commands.items():
                (programs / name).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
                (programs / name).chmod(0o755)
            path = f"{programs}:{os.environ['PATH']}"
            process = subprocess.Popen(
                ["bash", "-euc", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, **variables, "SCRATCH": str(tmp_path), "PATH": path},
            )  # fmt: skip
            while process.poll() is None:
                with suppress(TimeoutError):
                    asked, _ = server.accept()
                    asked.setblocking(True)
                    with asked, asked.makefile("rw") as lines:
                        print(json.dumps(short(*json.loads(lines.readline()))), file=lines, flush=True)
        return subprocess.CompletedProcess(script, process.returncode, *process.communicate())

    return submitted


def cells(folder: Path) -> list[str]:
    """Return the finished cells of a results folder."""
    return sorted(str(file.parent.relative_to(folder / "runs")) for file in folder.glob("runs/*/*/*/*/cell.json"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_options_of_a_job_stand_before_its_first_command(script: str) -> None:
    if script is not MERGE:
        assert script.startswith("#!/bin/bash\n#SBATCH ")
        assert "#SBATCH" not in script.split("\n", 3)[3]
        assert "--requeue --open-mode=append" in script


def test_a_job_is_submitted_twice_and_measures_once(submit: Submit, tmp_path: Path) -> None:
    done = submit(ONE)
    assert done.returncode == 0, done.stderr
    assert len(cells(tmp_path / "results")) == 4
    records = tmp_path / "results/runs/tiny/rope/niah/512/records.jsonl"
    measured = records.stat()
    assert submit(ONE).returncode == 0
    assert records.stat() == measured


def test_the_parts_of_an_array_are_one_folder_once_they_are_copied(submit: Submit, tmp_path: Path) -> None:
    for task in range(3):
        done = submit(ARRAY, SLURM_ARRAY_TASK_ID=str(task))
        assert done.returncode == 0, done.stderr
    merged = submit(MERGE)
    assert merged.returncode == 0, merged.stderr
    assert len(cells(tmp_path / "results")) == 6
    assert "McNemar" in merged.stdout


@pytest.mark.parametrize("script", [NODE, NODES], ids=["one node", "several nodes"])
def test_a_job_of_ray_calls_what_there_is(script: str, submit: Submit, tmp_path: Path) -> None:
    assert "--executor ray" in script
    done = submit(script, SLURM_JOB_NODELIST="gpu[01-02]", SLURM_JOB_NUM_NODES="2")
    assert done.returncode == 0, done.stderr
    assert len(cells(tmp_path / "results")) == 6
