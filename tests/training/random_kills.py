"""``python tests/training/random_kills.py``: ``train`` killed at random moments, 20 times; its weights do not suffer.

A recalibration under virtual length of a model of a million parameters gets SIGKILL again and again, each time a drawn
moment after it has stored another state, also while it stores one. The weights in the end must be those of a run that
nobody killed, bit for bit. It takes minutes, so pytest does not collect it; ``test_train.py`` has one kill.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.training_text import sentences

_PATIENCE = 600.0
"""Seconds after which a run hangs."""
_SHAPE = {"hidden_size": 160, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab_size": 420}


def recipe(folder: Path, name: str, **changes: Any) -> Path:
    """Write a recipe of many small steps, a state after each other one."""
    values = {
        "corpus": str(folder), "data": [{"path": "train.txt"}], "validation": {"path": "held.txt"},
        "validation_tokens": 256, "sequence_length": 64, "tokens_per_step": 256, "micro_batch": 2, "lr": 1e-3,
        "warmup_steps": 2, "precision": "fp32", "compile": False, "evaluate_every": 50, "checkpoint_every": 2,
    } | changes  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def start(path: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a run."""
    program = "from longctx_bench.cli import main; main()"
    command = [sys.executable, "-c", program, "train", str(path), "--out", str(out)]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def states(out: Path) -> set[str]:
    """Return the names of the states that a run has stored."""
    return {path.name for path in (out / "state").glob("step-*")}


def main() -> int:
    """Kill, resume, compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "train.txt").write_text("\0".join(sentences(seed, 200) for seed in range(4)), encoding="utf-8")
        (folder / "held.txt").write_text(sentences(99, 200), encoding="utf-8")
        base = recipe(folder, "base", kind="pretrain", positions="rope", shape=_SHAPE, tokens=1024)
        if start(base, folder / "base").wait(_PATIENCE):
            sys.exit((folder / "base.log").read_text())
        steps = 8 * asked.times
        longer = recipe(
            folder, "longer", kind="recalibrate", positions="drope", base=str(folder / "base"), qk_norm=True,
            tokens=steps * 256, virtual_length={"factor": 8},
        )  # fmt: skip
        whole, killed = folder / "whole", folder / "killed"
        if start(longer, whole).wait(_PATIENCE):
            sys.exit((folder / "whole.log").read_text())
        kills = 0
        while True:
            process, before, began = start(longer, killed), states(killed), time.monotonic()
            while process.poll() is None and not states(killed) - before:
                if time.monotonic() - began > _PATIENCE:
                    sys.exit("it stores no further state")
                time.sleep(0.002)
            if kills < asked.times and process.poll() is None:
                time.sleep(chance.random() * 0.3)
                process.send_signal(signal.SIGKILL)
            if process.wait(_PATIENCE) != -signal.SIGKILL:
                break
            kills += 1
            print(f"kill {kills}: {sorted(states(killed))}", flush=True)
        if process.returncode:
            sys.exit(killed.with_suffix(".log").read_text()[-2000:])
        expected, got = (load_file(each / "model.safetensors") for each in (whole, killed))
        same = expected.keys() == got.keys() and all(expected[name].equal(got[name]) for name in expected)
        print(f"{kills} kills in {steps} steps, weights {'equal' if same else 'DIFFER'}")
    return 0 if same and kills == asked.times else 1


if __name__ == "__main__":
    sys.exit(main())
