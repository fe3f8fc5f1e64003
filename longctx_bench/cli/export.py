"""``longctx-bench export``: a method as a plain checkpoint that any server can load."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, parse_lengths, parse_scales, registry_options
from longctx_bench.cli.output import put, say
from longctx_bench.errors import UserError
from longctx_bench.records import NATURAL


@click.command("export")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--scale", metavar="SCALE", help="A multiple of the training context, such as 4x.")
@click.option("--length", metavar="TOKENS", help="Tokens to read, such as 4096; the training context by default.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Of the weights; auto keeps theirs, but writes float32 where a temperature is multiplied into them.",
)
@registry_options
def export_command(
    model: str, folder: Path, scale: str | None, length: str | None, dtype: str, **options: tuple[str, ...]
) -> None:
    """Write MODEL at one length as a plain checkpoint in FOLDER, and check that it gives the method's logits.

    Positions go into the config, the softmax temperature into the queries' weights. `--model FOLDER` then runs it, and
    so does any server (`--engine openai`). Methods that no config can say are refused.
    """
    variant = make_registry(**options).variant(model)  # type: ignore[arg-type]
    original = variant.model.original_length
    tokens = [*parse_lengths(length), *(round(factor * original) for factor in parse_scales(scale))] or [original]
    if len(tokens) > 1 or NATURAL in tokens:
        raise UserError("export: a checkpoint is for one length; give --length TOKENS or --scale 4x, once")

    from longctx_bench.engines.base import Contestant
    from longctx_bench.engines.checkpoints import checkpoint_folder, read_config
    from longctx_bench.engines.exporting import export, refuse, summary

    refuse(variant.method, variant.method_name)
    source = checkpoint_folder(variant.source)
    contestant = Contestant(variant.base(read_config(source)), variant.method, tokens[0])
    written = export(contestant, variant.method_name, source, folder, dtype)
    say(f"wrote {written.folder}: {variant.name} for {tokens[0]} tokens, weights in {written.dtype}")
    put(summary(written) + "\n", None)
