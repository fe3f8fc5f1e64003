"""Build the distributions and check their sizes (``make wheels``).

``longctx-bench`` (wheel and sdist) must stay below 5 MB, each file of weights below 95 MB: a package index takes 100.
Weights come as wheels alone: an sdist could not find ``baselines/checkpoints``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "baselines" / "checkpoints"
CODE, WEIGHTS = 5_000_000, 95_000_000
"""Largest sizes in bytes."""


def packed_checkpoints(package: Path) -> list[str]:
    """Return the names of the checkpoints that a package of weights holds."""
    with (package / "pyproject.toml").open("rb") as file:
        included = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    folders = [(package / path).resolve() for path in included]
    return [folder.name for folder in folders if folder.parent == CHECKPOINTS]


def main() -> int:
    """Build all distributions; return 1 when one is too large, or a checkpoint is in none or in two of them."""
    parser = argparse.ArgumentParser(description="Build the distributions and check their sizes.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="Folder for them, emptied first.")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    packages = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))
    for project, kinds in ((ROOT, []), *((package, ["--wheel"]) for package in packages)):
        command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(project)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
            return 1
    packed = sorted(name for package in packages for name in packed_checkpoints(package))
    present = sorted(folder.name for folder in CHECKPOINTS.iterdir() if folder.is_dir())
    wrong = [] if packed == present else [f"packages/ hold {packed}, baselines/checkpoints has {present}"]
    for file in sorted(out.iterdir()):
        limit = CODE if file.name.startswith("longctx_bench-") else WEIGHTS
        size = file.stat().st_size
        print(f"{size / 1e6:8.2f} MB of {limit / 1e6:.0f}  {file.name}")
        if size >= limit:
            wrong.append(f"{file.name}: {size:,} bytes, not below {limit:,}")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
