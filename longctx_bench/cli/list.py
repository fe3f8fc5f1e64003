"""``longctx-bench list``: tasks, models, methods and results."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import put_list, put_records, rows_option, say
from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    from longctx_bench.core.specs import MethodSpec
    from longctx_bench.methods.base import Method

_long_option = click.option(
    "--long", is_flag=True, help="Also show metrics, protocols, all tasks of each group, and data sources."
)


@click.group("list")
def list_group() -> None:
    """List tasks, models, methods or results.

    In a pipe, each row is printed on one line.
    """


@list_group.command("tasks")
@_long_option
@rows_option
@registry_options
def tasks_command(long: bool, form: str, **options: tuple[str, ...]) -> None:
    """List the tasks by suite, and the task groups."""
    registry = make_registry(**options)  # type: ignore[arg-type]
    suites = _suites(registry)
    tasks = sorted(
        registry.tasks.values(), key=lambda spec: list(dict.fromkeys(suites.values())).index(suites[spec.name])
    )
    if form != "terminal":
        groups = {name: [group for group, members in registry.groups.items() if name in members] for name in suites}
        put_records(
            [
                {
                    "task": spec.name, "suite": suites[spec.name], "groups": groups[spec.name],
                    "protocol": spec.protocol, "metric": spec.metric, "max_new_tokens": spec.max_new_tokens,
                    "examples": spec.samples, "description": spec.description,
                }
                for spec in tasks
            ],
            form,
        )  # fmt: skip
        return
    header: tuple[str, ...] = ("task", "examples", "description")
    rows: dict[str, tuple[str, ...]] = {spec.name: (spec.name, str(spec.samples), spec.description) for spec in tasks}
    if long:
        header = ("task", "protocol", "metric", "new tokens", "examples", "description")
        rows = {
            s.name: (s.name, s.protocol, s.metric, str(s.max_new_tokens), str(s.samples), s.description) for s in tasks
        }
    if sys.stdout.isatty():
        for suite in dict.fromkeys(suites[spec.name] for spec in tasks):
            say(f"{suite}:")
            put_list(header, [row for name, row in rows.items() if suites[name] == suite])
            click.echo()
    else:
        put_list(("suite", *header), [(suites[name], *row) for name, row in rows.items()])
        click.echo()
    put_list(
        ("group", "tasks"),
        [(name, ", ".join(members) if long else _abbreviated(members)) for name, members in registry.groups.items()],
    )
    if long:
        click.echo()
        put_list(
            ("data source", "licence", "description"),
            [(name, spec.licence, spec.description) for name, spec in registry.sources.items()],
        )
    elif sys.stdout.isatty():
        click.echo()
        say("--long: metrics, protocols, all tasks of each group, and where the data come from")


def _suites(registry: Any) -> dict[str, str]:
    """Return each task's suite: the largest group that mostly holds tasks of no other suite, else its benchmark.

    A group that only selects from other groups (``longbench_en``, ``niah_multi``) is not a suite.
    """
    from longctx_bench.benchmarks import BENCHMARKS

    largest: dict[str, str] = {}
    for group, members in sorted(registry.groups.items(), key=lambda item: len(item[1])):
        largest |= dict.fromkeys((name for name in members if name in registry.tasks), group)
    num_tasks = Counter(largest.values())
    suites = {}
    for name, spec in registry.tasks.items():
        group = largest.get(name)
        if group and 2 * num_tasks[group] > len(registry.groups[group]):
            suites[name] = group
        else:
            suites[name] = spec.use if spec.use in BENCHMARKS.shipped else "your own"
    return suites


def _abbreviated(members: Sequence[str], max_names: int = 3) -> str:
    """Return the number of tasks in a group and its first names."""
    if len(members) <= max_names + 1:
        return ", ".join(members)
    return f"{len(members)}: {', '.join(members[:max_names])} ..."


@list_group.command("models")
@rows_option
@registry_options
def models_command(form: str, **options: tuple[str, ...]) -> None:
    """List the base models; any hub id or folder works as METHOD:ID."""
    from longctx_bench.core.sources import source_label

    registry = make_registry(**options)  # type: ignore[arg-type]
    records = [
        {
            "model": spec.name,
            "context": spec.original_length,
            "licence": spec.licence,
            "own_checkpoints": list(spec.checkpoints),
            "source": source_label(spec.source),
            "description": spec.description,
        }
        for spec in registry.models.values()
    ]
    if form != "terminal":
        put_records(records, form)
        return
    rows = [
        (
            spec.name,
            f"{spec.original_length:,}",
            spec.licence,
            ", ".join(spec.checkpoints),
            source_label(spec.source),
            spec.description,
        )
        for spec in registry.models.values()
    ]
    put_list(("model", "context", "licence", "own checkpoints", "source", "description"), rows)


@list_group.command("methods")
@rows_option
@registry_options
def methods_command(form: str, **options: tuple[str, ...]) -> None:
    """List the context-extension methods; METHOD-BASE names a model to run."""
    registry = make_registry(**options)  # type: ignore[arg-type]
    rows = [
        (spec.name, spec.description or _docstring(spec), spec.paper, _engines(spec))
        for spec in registry.methods.values()
    ]
    header = ("method", "description", "paper", "engines")
    if form == "terminal":
        put_list(header, rows)
    else:
        put_records([dict(zip(header, row, strict=True)) for row in rows], form)


def _engines(spec: MethodSpec) -> str:
    """Return the engines that have all that a method of this package may need, with the parameters of its YAML.

    Methods of other packages are not imported, and have no entry.
    """
    from longctx_bench.core.code_digest import is_own_module
    from longctx_bench.core.specs import validate
    from longctx_bench.engines.vllm_backend.hf_overrides import SUPPORTED
    from longctx_bench.methods import METHODS

    location = METHODS.location(spec.use)
    if not is_own_module(location.partition(":")[0]):
        return ""
    try:
        kind: type[Method] = METHODS.resolve(spec.use, f"baselines/{spec.name}: use", None).value
        method = validate(kind, spec.params, f"method {spec.name}")
    except UserError:  # a YAML may misspell a class or a parameter of this package; `run` says so
        return ""
    return "hf, vllm" if method.required_capabilities() <= SUPPORTED else "hf"


def _docstring(spec: MethodSpec) -> str:
    """Return the first line of the class's docstring, parsed without importing the module.

    An entry point of an installed package names a class and has no description.
    """
    from longctx_bench.methods import METHODS

    location = METHODS.location(spec.use)
    module, _, name = location.partition(":")
    try:
        spec_of_module = importlib.util.find_spec(module)
        origin = spec_of_module.origin if spec_of_module else None
        tree = ast.parse(Path(origin).read_text(encoding="utf-8")) if origin else ast.Module([], [])
        [text] = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    except Exception:  # noqa: BLE001 (finding a third-party package may raise anything)
        text = None
    return (text or f"{location} (no description)").partition("\n")[0].rstrip(".")


@list_group.command("results")
@click.argument("folder", default="results", type=click.Path(path_type=Path))
@rows_option
def results_command(folder: Path, form: str) -> None:
    """List the cells of a run's FOLDER, or of a bundle."""
    from longctx_bench.reporting.results import read_cells
    from longctx_bench.reporting.tables.formatting import cell_columns, score_entry, unit_of

    results = read_cells(folder)
    if form == "terminal":
        rows = [
            (
                str(s.cell), f"{score_entry(s)} {unit_of(s)}".rstrip(), str(s.n), s.result.spec.dtype,
                s.result.finished,
            )
            for s in results.finished
        ]  # fmt: skip
        put_list(("cell", "score [95 % interval]", "examples", "dtype", "finished"), rows)
    else:
        records = [
            {
                "cell": str(s.cell), **cell_columns(s), "metric": s.metric,
                "score": s.score, "low": s.low, "high": s.high, "n": s.n,
                "dtype": s.result.spec.dtype, "finished": s.result.finished,
            }
            for s in results.finished
        ]  # fmt: skip
        put_records(records, form)
    for line in results.missing:
        say(f"missing: {line}", err=form != "terminal")
