"""``longctx-bench train``: pretrain, recalibrate or continue, on one device or many (torchrun), resuming exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.training.recipe import read_recipe


def train(recipe: str | Path, out: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Run a recipe and return ``out``, a model folder in Hugging Face format with card and loss curve.

    A run that was killed goes on from its last checkpoint when called again with the same ``out``; on one
    device and deterministic kernels (a CPU's are) it ends with the weights of an uninterrupted run.

    Args:
        recipe: path of a YAML, or the name of a built-in recipe.
        out: folder of the run; new, or an earlier start of the same recipe.
        overrides: values over the recipe's, by dotted key.

    Raises:
        UserError: a wrong recipe, bad data, no space, or an ``out`` of another recipe.
    """
    wanted = read_recipe(recipe, overrides)
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UserError("training needs the package 'accelerate': pip install 'longctx-bench[train]'") from error
    from longctx_bench.training.trainer import Run

    Run(wanted, out).finish()
    return out
