"""``longctx-bench train``."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.output import say


@click.command("train")
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="The model's folder; results/models/RECIPE by default.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe's value, such as lr=3e-4 or shape.layers=4; may be repeated.",
)
def train_command(recipe: str, out: Path | None, settings: tuple[str, ...]) -> None:  # fmt: skip
    """Pretrain, recalibrate (DroPE) or continue a model by a RECIPE: a YAML file or a name in baselines/recipes.

    Stopped at any moment, the same command goes on from its last state. On several GPUs:
    torchrun --nproc-per-node 4 -m longctx_bench.training RECIPE OUT.
    """
    from longctx_bench.training.recipe import parse_overrides
    from longctx_bench.training.train import train

    folder = out or Path("results/models") / Path(recipe).stem
    say(f"wrote {train(recipe, folder, parse_overrides(settings))}")
