"""``longctx-bench check``: contract tests of a method."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import say
from longctx_bench.core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from longctx_bench.analysis.probes.method_contract import CheckReport
    from longctx_bench.models.variant import ModelVariant
    from longctx_bench.registry import Registry


@click.command("check")
@click.argument("method")
@click.option(
    "--model", "base", default="tiny", show_default=True, metavar="BASE", help="Base model, hub id or folder."
)
@click.option(
    "--prompt-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens of the longest prompt and its answer; at most twice the training context.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    type=click.Choice(["terminal", "json"]),
    help="Output format.",
)
@registry_options
def check_command(
    method: str, base: str, prompt_tokens: int, device: str, form: str, **options: tuple[str, ...]
) -> None:
    """Test a METHOD, e.g. yarn or your own (--include-path), on a small model in fp32.

    Runs the same prompts alone and batched, padded, in chunks, from a KV cache, with draft tokens and in other batches;
    compares with the base at the training context; and checks that the method is fully undone. Exit code 1 if a check
    fails.
    """
    registry = make_registry(**options)  # type: ignore[arg-type]
    variant = _variant(registry, method, base)

    from longctx_bench.analysis.probes.method_contract import check_method

    report = check_method(variant, device, prompt_tokens)
    if form == "json":
        click.echo(json.dumps(asdict(report) | {"passed": report.passed}, indent=2))
    else:
        _show(report)
    sys.exit(0 if report.passed else 1)


def _variant(registry: Registry, method: str, base: str) -> ModelVariant:
    if not registry.has_method(method):
        raise UserError(f"{method}: unknown method{did_you_mean(method, registry.methods)}")
    if ":" in base and registry.has_method(base.partition(":")[0]):
        raise UserError(f"--model {base}: expected a base or its folder, without a method; '{method}' is tried on it")
    if base in registry.models or "/" in base or Path(base).is_dir():
        return registry.variant(f"{method}:{base}")
    # A model name such as rope-tiny names its base.
    return registry.variant(f"{method}:{registry.variant(base).model.name}")


def _show(report: CheckReport) -> None:
    prompts = ", ".join(map(str, report.prompts))
    applied = f"{report.method} on {report.model}, applied for {report.length} tokens"
    say(f"{applied}, on {report.device}; prompts of {prompts}")
    for check in report.checks:
        difference = "" if check.difference is None else f"largest difference {check.difference:.1e}"
        details = "; ".join(filter(None, (difference, check.detail)))
        say(f"{check.result:14}  {check.name:16}  {details}".rstrip())
