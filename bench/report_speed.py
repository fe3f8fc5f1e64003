"""``python -m bench.report_speed``: how long a report of a million records takes, and how much memory."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from bench.synthetic_store import make_store

_READ = "import sys; from pathlib import Path; from longctx_bench.reporting.results import read_cells; "
_READ += "read_cells(Path(sys.argv[1]))"
_REPORT = "from longctx_bench.cli import main; main()"


def measure(contestants: int, tasks: int, lengths: int, examples: int, folder: Path) -> list[str]:
    """Make a store of invented results below ``folder`` and return a line for each thing timed.

    Each runs in a process of its own with one thread, from the start of Python on; the files were written just before,
    so that the disk is not part of it.
    """
    began = perf_counter()
    records = make_store(folder, contestants, tasks, lengths, examples)
    size = sum(path.stat().st_size for path in folder.rglob("*.json*"))
    cells = contestants * tasks * lengths
    lines = [f"made {records:,} records in {cells:,} cells, {size / 2**20:,.0f} MiB: {perf_counter() - began:.1f} s"]
    report = ["report", "--format", "md", "--out", str(folder / "report.md")]
    for what, code, arguments in (("reading", _READ, []), ("`longctx-bench report`, all of it", _REPORT, report)):
        lines.append(f"{what}: {_run([sys.executable, '-c', code, *arguments, str(folder)])}")
    return lines


def _run(command: list[str]) -> str:
    """Run a command and say how long it took, how much of that it computed, and how much memory it held at most."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    began = perf_counter()
    process = subprocess.Popen(command, env=os.environ | one_thread, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    computed = usage.ru_utime + usage.ru_stime
    return f"{seconds:.1f} s ({computed:.1f} s of processor time), peak memory {peak / 2**30:.2f} GiB"


def main() -> None:
    """Measure a store of 100 contestants x 10 tasks x 10 lengths x 100 examples, or of the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestants", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--lengths", type=int, default=10)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="a folder for the store, which stays; a temporary one by default")
    chosen = parser.parse_args()
    sizes = (chosen.contestants, chosen.tasks, chosen.lengths, chosen.examples)
    if chosen.keep:
        print("\n".join(measure(*sizes, chosen.keep)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(measure(*sizes, Path(folder))))


if __name__ == "__main__":
    main()
