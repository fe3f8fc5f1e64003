"""``longctx-bench train``: train a model from a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.output import say


@click.command("train")
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder (default: results/models/RECIPE).")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe value, e.g. lr=3e-4 or shape.layers=4; may be repeated.",
)
def train_command(recipe: str, out: Path | None, settings: tuple[str, ...]) -> None:  # fmt: skip
    """Pretrain, recalibrate (DroPE) or continue training a model from a RECIPE.

    RECIPE is a YAML file or a name in baselines/recipes.

    Interrupted runs resume from the last checkpoint when the command is repeated. On several GPUs:
    torchrun --nproc-per-node 4 -m longctx_bench.training RECIPE OUT.
    """
    from longctx_bench.training.recipe import parse_overrides
    from longctx_bench.training.train import train

    folder = out or Path("results/models") / Path(recipe).stem
    say(f"wrote {train(recipe, folder, parse_overrides(settings))}")
