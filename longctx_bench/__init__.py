"""longctx-bench: does a method really let a model read beyond the context it was trained on?

The functions here are the Python API; ``longctx-bench`` is the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longctx_bench.api.evaluation import compare, figures, report, run
    from longctx_bench.api.models import calibrate, calibrate_heads, calibrate_parameters, export, load, search_factors

    __version__: str

__all__ = [
    "__version__", "calibrate", "calibrate_heads", "calibrate_parameters", "compare", "export", "figures", "load",
    "report", "run", "search_factors",
]  # fmt: skip
_OF_A_MODEL = frozenset(("calibrate", "calibrate_heads", "calibrate_parameters", "export", "load", "search_factors"))


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line does not pay for what it does not use.
    if name == "__version__":
        from longctx_bench.core.provenance import package_version

        return package_version()
    if name in __all__:
        from longctx_bench.api import evaluation, models

        return getattr(models if name in _OF_A_MODEL else evaluation, name)
    raise AttributeError(f"module 'longctx_bench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
