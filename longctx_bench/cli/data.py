"""``longctx-bench data pull``: download data and weights."""

from __future__ import annotations

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import say
from longctx_bench.core.errors import UserError, did_you_mean


@click.group("data")
def data_group() -> None:
    """Download data and weights before a run."""


@data_group.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@registry_options
def pull_command(names: tuple[str, ...], **options: tuple[str, ...]) -> None:
    """Download and verify each NAME: a data source or model from `longctx-bench list`, or METHOD-BASE."""
    from longctx_bench.core.sources import fetch

    registry = make_registry(**options)  # type: ignore[arg-type]
    for name in names:
        if name in registry.sources:
            say(f"{name}: {fetch(registry.sources[name].source)}")
            continue
        try:
            variant = registry.variant(name)
        except UserError as error:
            available = [*registry.sources, *registry.models]
            raise UserError(
                f"data pull {name}: {error}"
                if ":" in name or "unknown model" not in str(error)
                else f"data pull: unknown name '{name}'{did_you_mean(name, available)}"
            ) from error
        from longctx_bench.models.checkpoint import checkpoint_folder
        from longctx_bench.models.trusted_sources import trust_source

        trust_source(variant.source)
        say(f"{name}: {checkpoint_folder(variant.source)}")
