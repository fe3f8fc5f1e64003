"""``longctx-bench check``: whether a method keeps to what every run relies on."""

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
@click.option("--model", "base", default="tiny", show_default=True, metavar="BASE", help="A base, hub id or folder.")
@click.option(
    "--prompt-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of the longest prompt and its answer; at most twice the training context.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    type=click.Choice(["terminal", "json"]),
    help="How the result is written.",
)
@registry_options
def check_command(
    method: str, base: str, prompt_tokens: int, device: str, form: str, **options: tuple[str, ...]
) -> None:
    """Try a METHOD such as yarn, or one of your own (--baselines), on a small model in fp32.

    The same prompts alone and beside others, padded, in chunks, from a cache, with drafts, in other batches; at the
    training context against the base; and what is left of the method afterwards. Exit code 1 when a check fails.
    """
    registry = make_registry(**options)  # type: ignore[arg-type]
    variant = _variant(registry, method, base)

    from longctx_bench.analysis.probes.method_contract import check_method

    found = check_method(variant, device, prompt_tokens)
    if form == "json":
        click.echo(json.dumps(asdict(found) | {"passed": found.passed}, indent=2))
    else:
        _show(found)
    sys.exit(0 if found.passed else 1)


def _variant(registry: Registry, method: str, base: str) -> ModelVariant:
    if method not in registry.methods:
        raise UserError(f"{method}: unknown method{did_you_mean(method, registry.methods)}")
    if ":" in base and base.partition(":")[0] in registry.methods:
        raise UserError(f"--model {base}: expected a base or its folder, without a method; '{method}' is tried on it")
    if base in registry.models or "/" in base or Path(base).is_dir():
        return registry.variant(f"{method}:{base}")
    # A contestant's name, such as rope-tiny, says which base is meant.
    return registry.variant(f"{method}:{registry.variant(base).model.name}")


def _show(found: CheckReport) -> None:
    prompts = ", ".join(map(str, found.prompts))
    say(f"{found.method} on {found.model}, applied for {found.length} tokens, on {found.device}; prompts of {prompts}")
    for check in found.checks:
        difference = "" if check.difference is None else f"largest difference {check.difference:.1e}"
        said = "; ".join(filter(None, (difference, check.detail)))
        say(f"{check.result:14}  {check.name:16}  {said}".rstrip())
