"""Install the wheels of ``dist/`` into new environments and use them where there is no checkout (``make wheels``).

Two environments. The first has ``longctx-bench`` alone, as somebody installs it who reads results: list, report,
compare and figures must work without torch. The second also has the weights of the tiny family and measures with them.
So that torch is not installed a second time, it sees the packages of the environment that runs this script, behind its
own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "reference" / "tiny.bundle"
DEMO = ["run", "--model", "drope-tiny", "--tasks", "niah", "--scale", "2x", "--limit", "2"]


def new_environment(folder: Path, *install: str | Path) -> Path:
    """Make a virtual environment, install into it, and return the path of its ``longctx-bench``."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    start = time.monotonic()
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, *install], check=True)
    print(f"installed {folder.name} in {time.monotonic() - start:.0f} s")
    return folder / "bin" / "longctx-bench"


def call(program: Path, *arguments: str | Path, code: int = 0) -> str:
    """Run a command in an empty folder, without the checkout on any path, and return all that it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [program, *arguments], cwd=program.parents[2], env=environment, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    if done.returncode != code:
        raise SystemExit(
            f"{program.parents[1].name}: {' '.join(map(str, arguments))}: exit code {done.returncode}\n{said}"
        )
    return said


def main() -> None:
    """Try both environments."""
    [wheel] = (ROOT / "dist").glob("longctx_bench-*.whl")
    [tiny] = (ROOT / "dist").glob("longctx_bench_tiny-*.whl")
    with tempfile.TemporaryDirectory() as scratch:
        reader = new_environment(Path(scratch) / "reader", wheel)
        call(reader.with_name("python"), "-c", "import importlib.util as u, sys; sys.exit(bool(u.find_spec('torch')))")
        assert "drope" in call(reader, "list", "methods")
        assert "niah" in call(reader, "list", "tasks")
        assert "drope-tiny" in call(reader, "report", RESULTS)
        assert "McNemar" in call(reader, "compare", "drope-tiny", "yarn-tiny", RESULTS)
        assert "niah-heatmap.png" in call(reader, "figures", RESULTS, "--kind", "heatmap", "--out", "figures")
        assert "wrote" in call(reader, "report", RESULTS, "--format", "html", "--out", "page.html")
        assert "pip install longctx-bench-tiny" in call(reader, *DEMO, code=2)
        print("reader: list, report, compare and figures work without torch")

        measurer = new_environment(Path(scratch) / "measurer", "--no-deps", wheel, tiny)
        there = sysconfig.get_path("purelib", vars={"base": str(measurer.parents[1]), "platbase": ""})
        # Only a path: an editable installation over there, which would be the checkout, stays unknown.
        behind = [place for place in sys.path if place.endswith("site-packages")]
        (Path(there) / "behind.pth").write_text("\n".join([*behind, ""]), encoding="utf-8")
        where = call(measurer.with_name("python"), "-c", "import longctx_bench; print(longctx_bench.__file__)")
        assert where.startswith(there), where
        table = call(measurer, *DEMO)
        assert "drope-tiny" in table
        assert "n = 2" in table, table
        print(table)


if __name__ == "__main__":
    main()
