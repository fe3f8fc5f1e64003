"""``longctx-bench export``: a method as a plain checkpoint that servers can load."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import put, say


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
    so does a server that knows its class (`--engine openai`). Methods that no config can say are refused.
    """
    from longctx_bench.api.models import export
    from longctx_bench.engines.hf.export import served_by, summary

    written = export(model, folder, scale, length, dtype, make_registry(**options))  # type: ignore[arg-type]
    mark = written.mark
    say(f"wrote {written.folder}: {mark.method}-{mark.model} for {mark.length} tokens, weights in {written.dtype}")
    put(f"{summary(written)}\n{served_by(written)}\n", None)
