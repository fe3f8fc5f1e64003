"""``python scripts/memory.py``: peak memory of a run and a report, by the number of examples per cell.

The engine is ``echo``, so that this project is measured, not a model. Each measurement is a separate process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

_PROGRAM = """
import sys
from longctx_bench.cli import main
try:
    main()
finally:
    from resource import RUSAGE_SELF, getrusage
    print("peak", getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), file=sys.stderr)
"""


def peak(*arguments: str) -> int:
    """Run the command line in a separate process and return its peak memory in bytes.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stderr.rpartition("peak ")[2])


def main() -> None:
    """Print a line for each number of examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", default="1000,20000,100000")
    parser.add_argument("--length", default="256")
    chosen = parser.parse_args()
    for examples in chosen.examples.split(","):
        with TemporaryDirectory() as out:
            began = time.monotonic()
            load = ("--model", "rope-tiny", "--tasks", "niah_single_1", "--length", chosen.length, "--limit", examples)
            ran = peak("run", *load, "--engine", "echo", "--out", out)
            again = peak("run", *load, "--engine", "echo", "--out", out)
            table = peak("report", out)
            size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
            print(
                f"{int(examples):7,} examples, {size / 1e6:6.1f} MB stored: run {ran / 1e6:.0f} MB, again "
                f"{again / 1e6:.0f} MB, report {table / 1e6:.0f} MB ({time.monotonic() - began:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
