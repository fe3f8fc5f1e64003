"""``longctx-bench examples``: export prompts as JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, parse_lengths, parse_scales, registry_options, writable
from longctx_bench.cli.output import say
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import atomic_write


@click.command("examples")
@click.argument("task")
@click.option("--model", default="smollm2-135m", show_default=True, help="Model whose tokenizer counts the tokens.")
@click.option("--length", metavar="TOKENS", help="Length in tokens, prompt and new tokens together, e.g. 4096 or 4k.")
@click.option("--scale", metavar="SCALE", help="Length as a multiple of the training context, instead of --length.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(min=1), help="Number of examples.")
@click.option("--seed", default=42, show_default=True, help="Random seed.")
@click.option("--protocol", help="Prompt protocol; ruler@paper uses RULER's own scripts.")
@click.option("--chat-template", is_flag=True, help="Include the tokens of the model's chat template in the length.")
@click.option(
    "--out", type=click.Path(path_type=Path), callback=writable, help="Output file (default: standard output)."
)
@registry_options
def examples_command(
    task: str, model: str, length: str | None, scale: str | None, limit: int, seed: int, protocol: str | None,
    chat_template: bool, out: Path | None, **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Export the examples of a TASK (or group) as JSON lines."""
    registry = make_registry(**options)  # type: ignore[arg-type]
    tasks = registry.select_tasks(task, protocol)
    variant = registry.variant(model)
    lengths = [*parse_lengths(length), *(round(s * variant.model.original_length) for s in parse_scales(scale))]
    if len(lengths) != 1:
        raise UserError("name one length: --length 4096 or --scale 2x")

    from longctx_bench.models.checkpoint import checkpoint_folder
    from longctx_bench.runner.export_prompts import ExportJob, export_lines

    jobs = [
        ExportJob(
            spec.name,
            registry.benchmark(spec),
            lengths[0],
            spec.max_new_tokens,
            limit,
            seed,
            chat_template and spec.chat_template,
        )
        for spec in tasks
    ]
    written = export_lines(jobs, checkpoint_folder(variant.source))
    if out is None:
        sys.stdout.writelines(written)
        return
    with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(written)
    say(f"wrote {out}")
