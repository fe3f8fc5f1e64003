"""``python tests/executors/random_kills.py``: a raylet killed at a random moment, again and again; no record suffers.

Each time the command line runs the same load on a local cluster of several raylets. One of them gets SIGKILL as soon as
a number of records that was drawn is stored, and a drawn fraction of a second later; a new node joins. In the end the
records must be a local run's, byte for byte, and no example may have been stored twice on the way. It takes minutes, so
pytest does not collect it; ``test_ray_cluster.py`` has one kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
_SENTENCE = "We walked on for a while and nobody spoke of it. Then, as if nothing had happened, the talk went on! "


class Nodes:
    """A head without CPUs, so that no worker runs there, and nodes of one CPU each."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _MEMORY}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._alive: list[Any] = []
        for _ in range(count):
            self.add()
        self.where = ("--executor", "ray", "--workers", str(count), "--ray-address", self._cluster.address)

    def add(self) -> None:
        """Let a new node join."""
        self._alive.append(self._cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=_MEMORY))

    def kill(self, chance: random.Random) -> None:
        """Kill the raylet of one node, whose worker dies with it."""
        node = self._alive.pop(chance.randrange(len(self._alive)))
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


def start(load: list[str], out: Path, *where: str) -> subprocess.Popen[bytes]:
    """Start the load; what it says goes to a file."""
    out.mkdir()
    command = [sys.executable, "-c", "from longctx_bench.cli import main; main()", "run", *load, "--out", str(out)]
    with (out / "said").open("wb") as said:
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
    wanted = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("records.jsonl")}
    given = {path.relative_to(out): path.read_bytes() for path in out.rglob("records.jsonl")}
    differ = sorted(str(name) for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
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


def main() -> None:
    """Kill, compare, and exit with 1 when any record was lost, changed or stored twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raylets", type=int, default=3, help="besides the head's")
    parser.add_argument("--model", default="rope-tiny,drope-tiny")
    parser.add_argument("--length", default="256,512")
    parser.add_argument("--limit", default="24")
    chosen = parser.parse_args()
    # Ray lets everything else on a machine run before its workers: on a busy one this would take hours.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chance = random.Random(chosen.seed)
    kills = wrong = number = 0
    with TemporaryDirectory() as scratch:
        essays, whole = Path(scratch, "essays.txt"), Path(scratch, "whole")
        essays.write_text(_SENTENCE * 300, encoding="utf-8")
        load = ["--model", chosen.model, "--tasks", "niah", "--length", chosen.length, "--limit", chosen.limit]
        load += ["--device", "cpu", "--dtype", "float32", "--batch-tokens", "1100", "--data", f"ruler-essays={essays}"]
        if start(load, whole).wait():
            raise SystemExit((whole / "said").read_text())
        records = stored(whole)
        nodes = Nodes(chosen.raylets)
        try:
            while kills < chosen.times:
                number += 1
                out, began = Path(scratch, str(number)), time.monotonic()
                process, there = killed(
                    nodes, load, out, chance.randrange(records), chance.uniform(0, 0.5), chance
                )  # fmt: skip
                found = faults(out, whole, process)
                kills, wrong = kills + (there is not None), wrong + bool(found)
                when = "over before the kill" if there is None else f"killed with {there} of {records} records stored"
                outcome = "; ".join(found) or "none lost, none twice"
                print(f"{number}: {when}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
        finally:
            nodes.close()
    print(f"{kills} kills: {f'{wrong} runs went wrong' if wrong else 'no record lost, none twice'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
