"""``longctx-bench run``: from names to measured cells."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from longctx_bench.cli.engine_options import engine_arguments, engine_choice, executor_options
from longctx_bench.cli.options import make_registry, parse_lengths, parse_scales, parse_settings, registry_options
from longctx_bench.cli.output import put_list, say
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import require_writable
from longctx_bench.core.sanitize import pluralize, single_line


@click.command("run")
@click.option(
    "--model",
    "models",
    default="drope-tiny",
    show_default=True,
    metavar="NAMES",
    help="METHOD-BASE, BASE, METHOD:HUB_ID_OR_PATH or a path; several with commas.",
)
@click.option("--tasks", default="niah", show_default=True, metavar="NAMES", help="Tasks or groups, with commas.")
@click.option("--scale", metavar="SCALES", help="Multiples of the model's training context, such as 1x,2x,4x.")
@click.option("--length", metavar="TOKENS", help="Absolute lengths: 4096,8k (prompt and new tokens), or natural.")
@click.option("--limit", type=click.IntRange(min=1), help="Examples a cell; each task has its own default.")
@click.option("--seed", default=42, show_default=True, help="Of all random choices in the examples.")
@click.option("--protocol", help="Whose procedure writes the prompts: ruler@paper is upstream's own.")
@engine_choice
@click.option(
    "--temperature",
    type=click.Choice(["auto", "none", "paper", "perplexity", "retrieval"]),
    help="Where DroPE's softmax temperature comes from; short for --set drope.calibration=.",
)
@click.option("--chat-template", is_flag=True, help="Put prompts into the model's chat template.")
@click.option(
    "--out",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder.",
)
@click.option("--resume/--rerun", default=True, show_default=True, help="Keep what is measured, or measure it again.")
@click.option("--dry-run", is_flag=True, help="Print the plan (cells, tokens, time, memory) and stop.")
@executor_options
@registry_options
def run_command(
    models: str, tasks: str, scale: str | None, length: str | None, limit: int | None, seed: int, protocol: str | None,
    chat_template: bool, out: Path, resume: bool, dry_run: bool, temperature: str | None,
    executor: str, workers: int | None, ray_address: str | None,
    baselines: tuple[Path, ...], task_folder: tuple[Path, ...], local_data: tuple[str, ...], settings: tuple[str, ...],
    **engine: Any,
) -> None:  # fmt: skip
    """Measure models on tasks at lengths. Stopped at any moment, the same command goes on where it was."""
    scales, lengths = parse_scales(scale), parse_lengths(length)
    if not scales and not lengths:
        scales = (1.0, 2.0)
    if temperature is not None:
        settings = (*settings, f"drope.calibration={temperature}")
    registry = make_registry(baselines, task_folder, local_data, settings)
    variants = registry.variants(models)
    if temperature is not None and not any(variant.method_name == "drope" for variant in variants):
        raise UserError(f"--temperature {temperature}: no model here is drope's (drope-tiny, drope:FOLDER)")
    used = {variant.method_name for variant in variants}
    for method in parse_settings(settings):
        if method not in used:
            raise UserError(f"--set {method}.…: no model of this run uses {method}{did_you_mean(method, used)}")
    chosen = registry.select_tasks(tasks, protocol)
    made = engine_arguments(**engine)
    if not dry_run:
        require_writable(out)

    from longctx_bench.cli.progress_bar import Bars
    from longctx_bench.engines import check_server
    from longctx_bench.runner.executors import make_executor
    from longctx_bench.runner.plan import RunSpec, plan
    from longctx_bench.runner.run import Runner
    from longctx_bench.store.run_store import ResultStore

    spec = RunSpec(variants, chosen, scales, lengths, limit, seed, chat_template, rerun=not resume)
    store = ResultStore(out)
    with make_executor(executor, made, registry, workers, ray_address) as runs_on:
        cells = plan(spec, runs_on.engine, store, registry)
        if dry_run:
            sys.exit(_print_plan(cells, runs_on.engine))
        if not all(planned.done for planned in cells):
            check_server(runs_on.engine)
        with Bars() as bars:
            outcome = Runner(runs_on, store, registry, spec, bars).run(cells)
    _print_summary(outcome, out, bars.said)
    sys.exit(2 if outcome.failed else 1 if outcome.skipped else 0)


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
        time = "-" if item.seconds is None else _duration(item.seconds)
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
    say(f"{pluralize(len(cells), 'cell')}, about {_duration(total)} at most on {engine.device} in {engine.dtype}")
    return 0 if not refused else 1 if all(isinstance(error, ContextTooShort) for error in refused.values()) else 2


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_summary(outcome: Any, out: Path, said: set[str]) -> None:
    from rich.console import Console

    from longctx_bench.reporting.formats import print_tables
    from longctx_bench.reporting.results import read_cells
    from longctx_bench.reporting.tables.scores_by_length import length_tables

    if outcome.finished:
        finished = set(outcome.finished)
        print_tables(length_tables([summary for summary in read_cells(out).finished if summary.cell in finished]))
    console = Console(stderr=True)
    for what, cells in (("skipped", outcome.skipped), ("failed", outcome.failed)):
        for cell, reason in cells:
            line = f"{what}: {cell}: {reason}"
            # What was said while the run went on may have scrolled away: only how much it was is said again.
            if line not in said:
                console.print(single_line(line), markup=False, soft_wrap=True)
        if len(cells) > 1:
            console.print(f"{pluralize(len(cells), 'cell')} {what}, each with its reason above", soft_wrap=True)
    if outcome.finished:
        number = len(outcome.finished)
        what = "it" if number == 1 else "them"
        line = f"{pluralize(number, 'cell')} in {out}/runs; `longctx-bench figures {out}` draws {what}"
        say(line)
