"""``longctx-bench export``: write a method into a plain checkpoint that servers can load."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import put, say


@click.command("export")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--scale", metavar="SCALE", help="Length as a multiple of the training context, e.g. 4x.")
@click.option("--length", metavar="TOKENS", help="Length in tokens, e.g. 4096 (default: the training context).")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Data type of the weights; auto keeps theirs, or float32 if a temperature is folded into them.",
)
@registry_options
def export_command(
    model: str, folder: Path, scale: str | None, length: str | None, dtype: str, **options: tuple[str, ...]
) -> None:
    """Export MODEL at one length as a plain checkpoint in FOLDER, and verify its logits.

    Position changes go into the config, the softmax temperature into the query weights. Run the result with `--model
    FOLDER`, or on any server that supports its architecture (`--engine openai`). Methods that a config cannot express
    are refused.
    """
    from longctx_bench.api.models import export
    from longctx_bench.engines.hf.export import served_by, summary

    written = export(model, folder, scale, length, dtype, make_registry(**options))  # type: ignore[arg-type]
    mark = written.mark
    say(f"wrote {written.folder}: {mark.method}-{mark.model} for {mark.length} tokens, weights in {written.dtype}")
    put(f"{summary(written)}\n{served_by(written)}\n", None)
