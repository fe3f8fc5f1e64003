"""longctx-bench: does a method really let a model read beyond the context it was trained on?

``from longctx_bench import load, run, report`` is the Python door; ``longctx-bench`` the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longctx_bench.api import load, report, run

__all__ = ["load", "report", "run"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line does not pay for what it does not use.
    if name in __all__:
        from longctx_bench import api

        return getattr(api, name)
    raise AttributeError(f"module 'longctx_bench' has no attribute '{name}'")
