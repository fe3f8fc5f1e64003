"""``longctx-bench run``: measure models on tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from longctx_bench.cli.engine_options import engine_arguments, engine_choice, executor_options
from longctx_bench.cli.options import (
    make_registry,
    parse_lengths,
    parse_scales,
    parse_settings,
    registry_options,
    renamed_option,
)
from longctx_bench.cli.output import duration, put_list, say
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import require_writable
from longctx_bench.core.sanitize import pluralize, single_line

_TEMPERATURES = click.Choice(["auto", "none", "paper", "perplexity", "retrieval"])


@click.command("run")
@click.option(
    "--model",
    "models",
    default="drope-tiny",
    show_default=True,
    metavar="NAMES",
    help="Comma-separated models: METHOD-BASE, BASE, METHOD:HUB_ID_OR_PATH or a path.",
)
@click.option(
    "--tasks", default="niah", show_default=True, metavar="NAMES", help="Comma-separated tasks or task groups."
)
@click.option(
    "--scale", metavar="SCALES", help="Lengths as multiples of the training context, e.g. 1x,2x,4x (default: 1x,2x)."
)
@click.option(
    "--length", metavar="TOKENS", help="Lengths in tokens, prompt and new tokens together, e.g. 4096,8k; or natural."
)
@click.option("--limit", type=click.IntRange(min=1), help="Examples per task and length (default: the task's).")
@click.option("--seed", default=42, show_default=True, help="Random seed of the examples.")
@click.option("--protocol", help="Prompt protocol; ruler@paper uses RULER's own scripts.")
@engine_choice
@click.option(
    "--attention-temperature",
    type=_TEMPERATURES,
    help="Source of DroPE's softmax temperature; short for --set drope.calibration=SOURCE.",
)
@renamed_option("--temperature", "use --attention-temperature", type=_TEMPERATURES)
@click.option("--chat-template", is_flag=True, help="Apply the model's chat template to prompts.")
@click.option(
    "--out",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Results folder.",
)
@click.option("--overwrite", is_flag=True, help="Measure existing cells again; their old results move to superseded/.")
@renamed_option("--rerun", "use --overwrite", is_flag=True)
@renamed_option("--resume", "a run resumes unless --overwrite is given", is_flag=True)
@click.option("--dry-run", is_flag=True, help="Print the plan (cells, tokens, time, memory) without running it.")
@executor_options
@registry_options
def run_command(
    models: str, tasks: str, scale: str | None, length: str | None, limit: int | None, seed: int, protocol: str | None,
    chat_template: bool, out: Path, overwrite: bool, rerun: bool, resume: bool, dry_run: bool,
    attention_temperature: str | None, temperature: str | None,
    executor: str, workers: int | None, ray_address: str | None,
    include_paths: tuple[Path, ...], baselines: tuple[Path, ...], task_folder: tuple[Path, ...],
    local_data: tuple[str, ...], settings: tuple[str, ...],
    **engine: Any,
) -> None:  # fmt: skip
    """Measure models on tasks at given context lengths.

    Interrupted runs resume when the command is repeated.
    """
    scales, lengths = parse_scales(scale), parse_lengths(length)
    if not scales and not lengths:
        scales = (1.0, 2.0)
    temperature = attention_temperature or temperature
    if temperature is not None:
        settings = (*settings, f"drope.calibration={temperature}")
    registry = make_registry(include_paths, baselines, task_folder, local_data, settings)
    variants = registry.variants(models)
    if temperature is not None and not any(variant.method_name == "drope" for variant in variants):
        raise UserError(f"--attention-temperature {temperature}: no model here is drope's (drope-tiny, drope:FOLDER)")
    from longctx_bench.registry import plain_method_name

    method_names = {plain_method_name(variant.method_name) for variant in variants}
    for method in parse_settings(settings):
        if method not in method_names:
            raise UserError(f"--set {method}.…: no model of this run uses {method}{did_you_mean(method, method_names)}")
    task_specs = registry.select_tasks(tasks, protocol)
    engine_options = engine_arguments(**engine)
    if not dry_run:
        require_writable(out)

    from longctx_bench.engines import check_server
    from longctx_bench.runner.executors import make_executor
    from longctx_bench.runner.plan import RunSpec, plan
    from longctx_bench.runner.progress_bar import ProgressBar
    from longctx_bench.runner.run import Runner
    from longctx_bench.store.run_store import ResultStore

    overwrite = overwrite or (rerun and not resume)
    spec = RunSpec(variants, task_specs, scales, lengths, limit, seed, chat_template, overwrite)
    store = ResultStore(out)
    with make_executor(executor, engine_options, registry, workers, ray_address) as batch_executor:
        cells = plan(spec, batch_executor.engine, store, registry)
        if dry_run:
            sys.exit(_print_plan(cells, batch_executor.engine))
        if not all(planned.done for planned in cells):
            check_server(batch_executor.engine)
        with ProgressBar() as progress:
            result = Runner(batch_executor, store, registry, spec, progress).run(cells)
    _print_summary(result, out, progress.printed)
    sys.exit(2 if result.failed else 1 if result.skipped else 0)


def _print_plan(cells: list[Any], engine: Any) -> int:
    """Print what a run would take, and return the exit code that it would end with for what is refused already."""
    from longctx_bench.core.errors import ContextTooShort
    from longctx_bench.registry import ALL_EXAMPLES
    from longctx_bench.runner.estimate import estimate

    rows = []
    refused: dict[str, UserError] = {}
    total = 0.0
    for item in estimate(cells, engine):
        total += item.seconds or 0.0
        time = "-" if item.seconds is None else duration(item.seconds)
        memory = "-" if item.memory is None else f"{item.memory / 2**30:.1f} GiB"
        state = "refused" if item.refusal else "done" if item.planned.done else "to run"
        if item.refusal:
            refused[str(item.planned.cell)] = item.refusal
        examples = "all" if item.planned.n == ALL_EXAMPLES else str(item.planned.n)
        tokens = "-" if item.tokens is None else f"{item.tokens:,}"
        rows.append((str(item.planned.cell), examples, tokens, time, memory, state))
    put_list(("cell", "examples", "tokens", "time", "memory", "state"), rows)
    for cell, error in refused.items():
        say(f"{'skipped' if isinstance(error, ContextTooShort) else 'failed'}: {cell}: {error}", err=True)
    say(f"{pluralize(len(cells), 'cell')}, about {duration(total)} at most on {engine.device} in {engine.dtype}")
    return 0 if not refused else 1 if all(isinstance(error, ContextTooShort) for error in refused.values()) else 2


def _print_summary(result: Any, out: Path, printed: set[str]) -> None:
    from rich.console import Console

    from longctx_bench.reporting.formats import print_tables
    from longctx_bench.reporting.results import read_cells
    from longctx_bench.reporting.tables.scores_by_length import length_tables

    if result.finished:
        finished = set(result.finished)
        print_tables(length_tables([summary for summary in read_cells(out).finished if summary.cell in finished]))
    console = Console(stderr=True)
    for what, cells in (("skipped", result.skipped), ("failed", result.failed)):
        for cell, reason in cells:
            line = f"{what}: {cell}: {reason}"
            # Printed during the run already: only their number is repeated below.
            if line not in printed:
                console.print(single_line(line), markup=False, soft_wrap=True)
        if len(cells) > 1:
            console.print(f"{pluralize(len(cells), 'cell')} {what}, each with its reason above", soft_wrap=True)
    if result.finished:
        number = len(result.finished)
        what = "it" if number == 1 else "them"
        line = f"{pluralize(number, 'cell')} in {out}/runs; `longctx-bench figures {out}` draws {what}"
        say(line)
