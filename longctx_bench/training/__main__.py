"""``python -m longctx_bench.training RECIPE OUT [key=value ...]``: ``longctx-bench train`` as torchrun starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.training.train import train


def main(arguments: list[str]) -> int:
    """Run a recipe; return the exit code."""
    try:
        if len(arguments) < 2:
            raise UserError("usage: python -m longctx_bench.training RECIPE OUT [key=value ...]")
        recipe, out, *settings = arguments
        train(recipe, Path(out), dict(setting.split("=", 1) for setting in settings))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
