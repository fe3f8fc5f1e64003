"""The job scripts of docs/slurm.md, run by bash as SLURM would, with stand-ins for srun, scontrol and a Ray cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

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
# Short, without weights and without a cluster.
RUN = """
import sys
from longctx_bench.cli import main
arguments = sys.argv[1:]
for option in ("--executor", "--ray-address"):
    if option in arguments:
        place = arguments.index(option)
        del arguments[place:place + 2]
sys.argv[1:] = [*arguments, "--limit", "2", "--engine", "echo"] if arguments[0] == "run" else arguments
main()
"""


def submit(script: str, scratch: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the variables that SLURM sets."""
    programs = scratch / "bin"
    programs.mkdir(exist_ok=True)
    commands = {
        "longctx-bench": f'exec {shlex.quote(sys.executable)} -c {shlex.quote(RUN)} "$@"',
        "ray": f'exec {shlex.quote(sys.executable)} -c {shlex.quote(RAY)} "$@"',
        "srun": 'exec "$@"',
        "scontrol": "echo 127.0.0.1",
    }
    for name, command in commands.items():
        (programs / name).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {**os.environ, **variables, "SCRATCH": str(scratch), "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-euc", script], cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )


def cells(folder: Path) -> list[str]:
    """Return the finished cells of a results folder."""
    return sorted(str(file.parent.relative_to(folder / "runs")) for file in folder.glob("runs/*/*/*/*/cell.json"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_options_of_a_job_stand_before_its_first_command(script: str) -> None:
    if script is not MERGE:
        assert script.startswith("#!/bin/bash\n#SBATCH ")
        assert "#SBATCH" not in script.split("\n", 3)[3]
        assert "--requeue --open-mode=append" in script


def test_a_job_is_submitted_twice_and_measures_once(tmp_path: Path) -> None:
    done = submit(ONE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(cells(tmp_path / "results")) == 4
    records = tmp_path / "results/runs/tiny/rope/niah/512/records.jsonl"
    measured = records.stat()
    assert submit(ONE, tmp_path).returncode == 0
    assert records.stat() == measured


def test_the_parts_of_an_array_are_one_folder_once_they_are_copied(tmp_path: Path) -> None:
    for task in range(3):
        done = submit(ARRAY, tmp_path, SLURM_ARRAY_TASK_ID=str(task))
        assert done.returncode == 0, done.stderr
    merged = submit(MERGE, tmp_path)
    assert merged.returncode == 0, merged.stderr
    assert len(cells(tmp_path / "results")) == 6
    assert "McNemar" in merged.stdout


@pytest.mark.parametrize("script", [NODE, NODES], ids=["one node", "several nodes"])
def test_a_job_of_ray_calls_what_there_is(script: str, tmp_path: Path) -> None:
    assert "--executor ray" in script
    done = submit(script, tmp_path, SLURM_JOB_NODELIST="gpu[01-02]", SLURM_JOB_NUM_NODES="2")
    assert done.returncode == 0, done.stderr
    assert len(cells(tmp_path / "results")) == 6
