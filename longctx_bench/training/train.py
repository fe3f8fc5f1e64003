"""``longctx-bench train``: pretrain, recalibrate (DroPE) or continue a model, with exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.training.recipe import read_recipe


def train(recipe: str | Path, out: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Run a recipe; return ``out``, a model folder in Hugging Face format with model card and loss curve.

    A killed run resumes from its last checkpoint when called again with the same ``out``. On one device with
    deterministic kernels (the CPU's are) it ends with the weights of an uninterrupted run.

    Args:
        recipe: path of a YAML, or the name of a built-in recipe.
        out: folder of the run: new, or of an earlier start of the same recipe.
        overrides: values that override the recipe's, by dotted key.

    Raises:
        UserError: invalid recipe or data, full disk, or ``out`` belongs to another recipe.
    """
    checked_recipe = read_recipe(recipe, overrides)
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UserError("training needs the package 'accelerate': pip install 'longctx-bench[train]'") from error
    from longctx_bench.training.trainer import Trainer

    Trainer(checked_recipe, out).train()
    return out
