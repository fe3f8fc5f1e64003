"""``python scripts/run_on_gpus.py JOBS.yaml``: run commands that wait for each other on all GPUs of a machine.

The file maps names of jobs to a command each::

    train: {run: longctx-bench train drope-tiny --out out/drope-tiny, alone: true}
    needles: {run: "longctx-bench run --model drope:out/drope-tiny --out out/needles", after: [train]}

``alone`` gives a job a GPU to itself; the others share one, up to ``--per-gpu``. Jobs start in the order of the file as
soon as those named in ``after`` have succeeded; while a job waits for a GPU of its own, no later one starts on that.
Output goes to ``--logs``; a job whose log ends in ``done`` from an earlier start is not run again. ``--minutes`` ends
all jobs after that time, for a machine with a time limit.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

_DONE = "done"


@dataclass
class Job:
    """A command, and the jobs that it waits for."""

    name: str
    run: str
    after: tuple[str, ...] = ()
    alone: bool = False
    process: subprocess.Popen[bytes] | None = None
    gpu: str = ""
    status: str = "waiting"
    """``waiting``, ``running``, ``done`` or ``failed``."""


def read_jobs(path: Path) -> list[Job]:
    """Return the jobs of a file; exit with a message where it is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        jobs = [Job(name, **{**fields, "after": tuple(fields.get("after", ()))}) for name, fields in content.items()]
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        sys.exit(f"{path}: {error}")
    names = {job.name for job in jobs}
    for job in jobs:
        if unknown := set(job.after) - names:
            sys.exit(f"{path}: {job.name} waits for {min(unknown)}, which is no job")
    return jobs


def running_by_gpu(jobs: list[Job], gpus: Iterable[str]) -> dict[str, list[Job]]:
    """Return the running jobs of each GPU."""
    return {gpu: [job for job in jobs if job.status == "running" and job.gpu == gpu] for gpu in gpus}


def free_gpu(jobs: list[Job], job: Job, gpus: Iterable[str], per_gpu: int) -> str | None:
    """Return the GPU with the fewest jobs that has room for this one."""
    by_gpu = running_by_gpu(jobs, gpus)
    room = [
        gpu
        for gpu, others in by_gpu.items()
        if not others or (not job.alone and len(others) < per_gpu and not any(other.alone for other in others))
    ]
    return min(room, key=lambda gpu: len(by_gpu[gpu]), default=None)


def start(job: Job, gpu: str, logs: Path) -> None:
    """Start a job on a GPU."""
    job.gpu, job.status = gpu, "running"
    with (logs / f"{job.name}.log").open("wb") as log:
        job.process = subprocess.Popen(
            ["bash", "-c", job.run], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu}, start_new_session=True,
        )  # fmt: skip


def stop(jobs: list[Job], seconds: float = 10.0) -> None:
    """End all running jobs with their children, by force after some seconds; what is not done has failed."""
    running = [job.process for job in jobs if job.status == "running" and job.process is not None]
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kind)
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in running) and time.monotonic() < end:
            time.sleep(0.1)
    for job in jobs:
        if job.status in ("waiting", "running"):
            job.status = "failed"


def step(jobs: list[Job], gpus: list[str], per_gpu: int, logs: Path) -> None:
    """Note which jobs ended, and start those that can."""
    by_name = {job.name: job for job in jobs}
    available = list(gpus)
    for job in jobs:
        if job.process is not None and job.status == "running" and job.process.poll() is not None:
            job.status = _DONE if job.process.returncode == 0 else "failed"
            if job.status == _DONE:
                with (logs / f"{job.name}.log").open("a", encoding="utf-8") as log:
                    print(_DONE, file=log)
            print(f"{time.strftime('%H:%M:%S')} {job.name}: {job.status}", flush=True)
        if job.status == "waiting":
            statuses = {by_name[name].status for name in job.after}
            if "failed" in statuses:
                job.status = "failed"
                print(f"{job.name}: not run, a job that it waits for failed", flush=True)
            elif statuses <= {_DONE}:
                if (gpu := free_gpu(jobs, job, available, per_gpu)) is not None:
                    start(job, gpu, logs)
                    print(f"{time.strftime('%H:%M:%S')} {job.name}: started on GPU {gpu}", flush=True)
                elif job.alone and available:
                    # Later jobs that share GPUs would never let one become empty.
                    running = running_by_gpu(jobs, available)
                    available.remove(min(available, key=lambda gpu: len(running[gpu])))


def main(arguments: list[str] | None = None) -> int:
    """Run all jobs; return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Run commands that wait for each other on all GPUs of a machine.")
    parser.add_argument("jobs", type=Path, help="YAML file of the jobs.")
    parser.add_argument("--gpus", default="0", help="GPUs to use, such as 0,1.")
    parser.add_argument("--per-gpu", type=int, default=6, help="Jobs that share a GPU at most.")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="Folder of the jobs' output.")
    parser.add_argument("--minutes", type=float, default=math.inf, help="Minutes after which all jobs are ended.")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    jobs = read_jobs(options.jobs)
    options.logs.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        log = options.logs / f"{job.name}.log"
        if log.is_file() and log.read_bytes().splitlines()[-1:] == [_DONE.encode()]:
            job.status = _DONE
    try:
        while any(job.status in ("waiting", "running") for job in jobs) and time.monotonic() < end:
            step(jobs, options.gpus.split(","), options.per_gpu, options.logs)
            time.sleep(0.2)
    finally:
        stop(jobs)
    failed = [job.name for job in jobs if job.status == "failed"]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs done" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
