"""``python -m longctx_bench.training RECIPE OUT [KEY=VALUE ...]``: the entry point for torchrun.

Imports no torch at module level: a spawned worker process may import this module again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.training.recipe import parse_overrides
from longctx_bench.training.train import train


def main(arguments: list[str]) -> int:
    """Run a recipe; return the exit code."""
    try:
        if len(arguments) < 2:
            raise UserError("usage: python -m longctx_bench.training RECIPE OUT [KEY=VALUE ...]")
        recipe, out, *settings = arguments
        train(recipe, Path(out), parse_overrides(settings))
        _end_process_group()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _end_process_group() -> None:
    """Leave torch.distributed, where torchrun has started several processes."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
