"""``python tests/runner/executors/random_kills.py``: a raylet killed at random moments; no record suffers.

Each time the command line runs the same load on a local cluster of several raylets. One of them gets SIGKILL as soon as
a number of records that was drawn is stored, and a drawn fraction of a second later; a new node joins. In the end the
records must be a local run's, byte for byte, and no example may have been stored twice on the way.

With ``--two-runs`` two command lines start at once, on one cluster and one cache without weights in it, each with cells
of its own; raylets, workers and the command lines themselves are killed, two to five of them each time. Every second
pair shares its folder of results, too: the later one is refused until the first has ended. A command line that was
killed, failed or was refused starts again. It takes minutes, so pytest does not collect it;
``test_ray_cluster.py`` has one kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_MEMORY = 100 << 20
"""Bytes of each node's object store, about the least that Ray takes."""
_PATIENCE = 900.0
"""Seconds after which a run hangs, even where two of them share one core."""
_MOST_STARTS = 8
"""Of one command line, after which it is said not to end well."""
_SENTENCE = "We walked on for a while and nobody spoke of it. Then, as if nothing had happened, the talk went on! "


class Nodes:
    """A head without CPUs, so that no worker runs there, and nodes of one CPU each; ``workers`` is what a run takes."""

    def __init__(self, count: int, workers: int | None = None) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _MEMORY}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._alive: list[Any] = []
        for _ in range(count):
            self.add()
        self.where = ("--executor", "ray", "--workers", str(workers or count), "--ray-address", self._cluster.address)

    def add(self) -> None:
        """Let a new node join."""
        self._alive.append(self._cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=_MEMORY))

    def kill(self, chance: random.Random) -> None:
        """Kill the raylet of one node, whose worker dies with it."""
        node = self._alive.pop(chance.randrange(len(self._alive)))
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def kill_worker(self, chance: random.Random) -> bool:
        """Kill a process in which an engine is, or is being started; False where there is none."""
        import psutil

        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self._alive]
        children = [child for raylet in raylets for child in raylet.children(recursive=True)]
        engines = [child for child in children if is_engine(child)]
        if not engines:
            return False
        chance.choice(engines).kill()
        return True

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


def is_engine(process: Any) -> bool:
    """Tell whether an engine is in a process, or is being started there; one that has ended has none."""
    import psutil

    try:
        return any("ray::Worker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def start(load: list[str], out: Path, *where: str, said_in: str = "said") -> subprocess.Popen[bytes]:
    """Start the load; what it says goes to a file."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", "from longctx_bench.cli import main; main()", "run", *load, "--out", str(out)]
    with (out / said_in).open("wb") as said:
        return subprocess.Popen([*command, *where], stdout=said, stderr=said)


def stored(folder: Path) -> int:
    """Return how many records there are by now."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("records.jsonl"))


def faults(out: Path, whole: Path, process: subprocess.Popen[bytes]) -> list[str]:
    """Say what is wrong with a run that should have ended well, with the same records, each stored once."""
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return [f"it did not end within {_PATIENCE:.0f} s"]
    found = [f"exit code {code}: {(out / 'said').read_text()[-2000:]}"] if code else []
    return found + differences(out, whole)


def differences(out: Path, whole: Path) -> list[str]:
    """Say which records are not those of a whole run, and which were stored twice."""
    found = []
    # By model, method, task and length: there may be two folders of results.
    wanted, given = (
        {"/".join(path.parts[-5:-1]): path.read_bytes() for path in folder.rglob("records.jsonl")}
        for folder in (whole, out)
    )
    differ = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    found += [f"other records in {name}" for name in differ]
    for path in out.rglob("timings.jsonl"):
        # Records are put in order at the end; this file is as it was appended.
        names = [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]
        found += [f"stored twice: {path.relative_to(out)}"] if len(names) != len(set(names)) else []
    return found


def killed(nodes: Nodes, load: list[str], out: Path, after: int, pause: float, chance: random.Random) -> Any:
    """Run the load and kill a raylet under it.

    Returns:
        The process, ended or not, and how many records were stored at the kill; None when it had ended before.
    """
    process = start(load, out, *nodes.where)
    while process.poll() is None and stored(out) < after:
        time.sleep(0.005)
    time.sleep(pause)
    if process.poll() is not None:
        return process, None
    there = stored(out)
    nodes.kill(chance)
    nodes.add()
    return process, there


class Pair:
    """Two command lines; each has cells of its own."""

    def __init__(self, nodes: Nodes, loads: list[list[str]], out: Path, shared: bool) -> None:
        self.nodes, self.loads = nodes, loads
        self.outs = [out, out] if shared else [out / "a", out / "b"]
        for folder in self.outs:
            folder.mkdir(parents=True, exist_ok=True)
        self.starts = [0, 0]
        self.refused = 0
        self.processes = [self._start(which) for which in range(2)]

    def _start(self, which: int) -> subprocess.Popen[bytes]:
        self.starts[which] += 1
        return start(self.loads[which], self.outs[which], *self.nodes.where, said_in=self._said(which))

    def _said(self, which: int) -> str:
        return f"said-{which}-{self.starts[which]}"

    def kill(self, chance: random.Random) -> str | None:
        """Kill something, and return what; None where that was over already."""
        kind = chance.choice(["raylet", "worker", "worker", "run"])
        if kind == "raylet":
            self.nodes.kill(chance)
            self.nodes.add()
        elif kind == "worker":
            return kind if self.nodes.kill_worker(chance) else None
        else:
            which = chance.randrange(2)
            if self.processes[which].poll() is not None:
                return None
            self.processes[which].kill()
            self.processes[which].wait()
            self.processes[which] = self._start(which)
        return kind

    def over(self) -> bool:
        """Tell whether both have ended."""
        return all(process.poll() is not None for process in self.processes)

    def finish(self) -> list[str]:
        """Wait for both, start again what failed, and say what never ended well."""
        found = []
        for which in range(2):
            while True:
                try:
                    code = self.processes[which].wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    self.processes[which].kill()
                    return [f"run {which} did not end within {_PATIENCE:.0f} s"]
                said = (self.outs[which] / self._said(which)).read_text()
                if "Traceback" in said:
                    found.append(f"run {which} ended in a traceback: {said[-2000:]}")
                if code == 0:
                    break
                if "another run is writing there" in said:
                    # As it should be; the other one goes first.
                    self.refused += 1
                    self.processes[1 - which].wait(_PATIENCE)
                elif self.starts[which] > _MOST_STARTS:
                    return [*found, f"run {which}: exit code {code}: {said[-2000:]}"]
                self.processes[which] = self._start(which)
        return found


def two_runs(pair: Pair, out: Path, records: int, chance: random.Random) -> str:
    """Kill two to five times under a pair of runs, and return what was killed."""
    done = []
    # The first may come while weights are being merged, before anything is stored.
    for after in sorted(chance.randrange(-records // 4, records) for _ in range(chance.randint(2, 5))):
        pause = chance.uniform(0, 4 if after < 0 else 0.5)
        while not pair.over() and stored(out) < after:
            time.sleep(0.005)
        time.sleep(pause)
        if pair.over():
            break
        there = stored(out)
        killed_kind = pair.kill(chance)
        done += [f"{killed_kind} at {there}"] if killed_kind else []
    return ", ".join(done)


def packed_model(folder: Path) -> Path:
    """Make a model that lies as a difference from another one, so that it is merged into the cache on first use."""
    from safetensors.torch import load_file, save_file

    from longctx_bench.core.sources import shipped_checkpoint_folder
    from longctx_bench.training.quantize_delta import pack

    base = shutil.copytree(shipped_checkpoint_folder("rope-tiny"), folder / "base")
    trained = shutil.copytree(base, folder / "trained")
    weights = load_file(base / "model.safetensors")
    changed = {name: (0.99 * weight.float()).bfloat16() for name, weight in weights.items()}
    save_file(changed, trained / "model.safetensors", metadata={"format": "pt"})
    pack(trained, str(base), folder / "packed", share=0.04)
    return folder / "packed"


def main() -> None:
    """Kill, compare, and exit with 1 when any record was lost, changed or stored twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raylets", type=int, default=3, help="besides the head's")
    parser.add_argument("--model", default="rope-tiny,drope-tiny")
    parser.add_argument("--length", default="256,512")
    parser.add_argument("--limit", default="24")
    parser.add_argument("--two-runs", action="store_true", help="on one cluster, cache and results folder")
    chosen = parser.parse_args()
    # Ray lets everything else on a machine run before its workers: on a busy one this would take hours.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with TemporaryDirectory() as scratch:
        wrong = (of_two if chosen.two_runs else of_one)(chosen, Path(scratch))
    sys.exit(1 if wrong else 0)


def load_of(chosen: argparse.Namespace, scratch: Path, model: str, length: str) -> list[str]:
    """Return the arguments of a run on a text that it is to hide its needles in."""
    essays = scratch / "essays.txt"
    essays.write_text(_SENTENCE * 300, encoding="utf-8")
    load = ["--model", model, "--tasks", "niah", "--length", length, "--limit", chosen.limit]
    return [
        *load,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--batch-tokens",
        "1100",
        "--data",
        f"ruler-essays={essays}",
    ]


def whole_run(load: list[str], out: Path) -> int:
    """Run a load undisturbed, and return how many records that gave."""
    if start(load, out).wait():
        raise SystemExit((out / "said").read_text())
    return stored(out)


def of_one(chosen: argparse.Namespace, scratch: Path) -> int:
    """Kill a raylet under each of several runs; return how many went wrong."""
    chance = random.Random(chosen.seed)
    kills = wrong = number = 0
    whole, load = scratch / "whole", load_of(chosen, scratch, chosen.model, chosen.length)
    records = whole_run(load, whole)
    nodes = Nodes(chosen.raylets)
    try:
        while kills < chosen.times:
            number += 1
            out, began = scratch / str(number), time.monotonic()
            process, there = killed(nodes, load, out, chance.randrange(records), chance.uniform(0, 0.5), chance)
            found = faults(out, whole, process)
            kills, wrong = kills + (there is not None), wrong + bool(found)
            when = "over before the kill" if there is None else f"killed with {there} of {records} records stored"
            outcome = "; ".join(found) or "none lost, none twice"
            print(f"{number}: {when}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    finally:
        nodes.close()
    print(f"{kills} kills: {f'{wrong} runs went wrong' if wrong else 'no record lost, none twice'}")
    return wrong


def of_two(chosen: argparse.Namespace, scratch: Path) -> int:
    """Kill under pairs of runs that share all they can; return how many pairs went wrong."""
    chance = random.Random(chosen.seed)
    # Before the cluster starts: workers have the environment of their raylet.
    cache = scratch / "cache"
    os.environ["LONGCTX_BENCH_CACHE"] = str(cache)
    models = f"{packed_model(scratch)},drope-tiny"
    loads = [load_of(chosen, scratch, models, length) for length in chosen.length.split(",")[:2]]
    whole = scratch / "whole"
    records = whole_run(load_of(chosen, scratch, models, chosen.length), whole)
    merged = files_below(cache / "models")
    # Half of them each, or one run would wait until the other has ended.
    nodes = Nodes(chosen.raylets, workers=max(1, chosen.raylets // 2))
    kills = wrong = restarts = 0
    try:
        for number in range(1, chosen.times + 1):
            out, began = scratch / str(number), time.monotonic()
            shutil.rmtree(cache / "models")
            pair = Pair(nodes, loads, out, shared=number % 2 == 0)
            done = two_runs(pair, out, records, chance)
            found = pair.finish() + differences(out, whole)
            found += ["other merged weights"] if files_below(cache / "models") != merged else []
            kills, wrong = kills + len(done.split(", ")) * bool(done), wrong + bool(found)
            restarts += sum(pair.starts) - 2
            outcome = "; ".join(found) or "none lost, none twice"
            print(f"{number}: killed {done or 'nothing'} of {records}; {sum(pair.starts) - 2} starts again, "
                  f"{pair.refused} of them refused before: {outcome} "
                  f"({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip
    finally:
        nodes.close()
    outcome = f"{wrong} pairs went wrong" if wrong else "no record lost, none twice"
    print(f"{kills} kills under {chosen.times} pairs, {restarts} starts again: {outcome}")
    return wrong


def files_below(folder: Path) -> dict[str, str]:
    """Return the sha256 of all weights below a folder, and the names of all folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.is_dir() or path.suffix == ".safetensors"
    }


if __name__ == "__main__":
    main()
