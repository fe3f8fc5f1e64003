"""The results that the repository holds in ``results/reference``, as folders or as bundles."""

from __future__ import annotations

from pathlib import Path

from longctx_bench.store.bundle import default_bundle, open_store
from longctx_bench.store.run_store import ResultStore

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def reference(name: str) -> Path:
    """Return the bundle of some results, or the folder where they are not packed."""
    packed = default_bundle(REFERENCE / name)
    return packed if packed.exists() else REFERENCE / name


def reference_stores() -> list[ResultStore]:
    """Open all results below ``results/reference``."""
    folders = [runs.parent for runs in REFERENCE.rglob("runs") if runs.is_dir()]
    return [open_store(path) for path in sorted((*folders, *REFERENCE.rglob("*.bundle")))]
