"""``longctx-bench probe``: what is measured inside a model or a method, for figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from longctx_bench.cli.options import make_registry, parse_scales, registry_options, writable
from longctx_bench.cli.output import say
from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    from longctx_bench.methods.base import Method
    from longctx_bench.models.variant import ModelVariant
    from longctx_bench.registry import Registry

_OUT = click.option(
    "--out", default="results", show_default=True, type=click.Path(path_type=Path), callback=writable,
    help="The run's folder; the probe lies below its probes/, where figures find it.",
)  # fmt: skip


@click.group("probe")
def probe_group() -> None:
    """Look inside a model or a method, for `longctx-bench figures --kind attention,factors`."""


@probe_group.command("attention")
@click.argument("model")
@click.option(
    "--scale",
    default="1x,2x,4x,8x",
    show_default=True,
    metavar="SCALES",
    help="Lengths as multiples of the training context; 1x, where the heads are chosen, is always measured.",
)
@click.option("--limit", default=8, show_default=True, type=click.IntRange(min=1), help="Prompts a length.")
@click.option("--depth", default=50.0, show_default=True, help="Of the needle, in per cent: 0, 10 ... 100.")
@click.option("--seed", default=42, show_default=True, help="Of the prompts.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Precision; auto is bfloat16 where the device computes in it.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@_OUT
@registry_options
def attention_command(
    model: str, scale: str, limit: int, depth: float, seed: int, dtype: str, device: str, out: Path,
    **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure what the last token of a niah prompt attends to in a MODEL such as yarn-tiny, by length.

    In a positional and in a semantic head, with the method's scaling (rotary factors, softmax temperature) and
    without it.
    """
    registry = make_registry(**options)  # type: ignore[arg-type]
    variant = registry.variant(model)
    scales = parse_scales(scale)
    if not scales or min(scales) < 1:
        raise UserError(f"--scale {scale}: expected multiples of at least 1x, such as 1x,2x,4x")

    from longctx_bench.analysis.probes.run_attention_probe import probe_attention

    path = probe_attention(variant, registry, scales, limit, depth, seed, dtype, device, out)
    say(f"wrote {path}; `longctx-bench figures {out} --kind attention` draws it")


@probe_group.command("virtual-length")
@click.argument("model")
@click.option("--factor", default="2,4,8,16", show_default=True, metavar="NUMBERS", help="How often tokens stand.")
@click.option("--limit", default=8, show_default=True, type=click.IntRange(min=1), help="Prompts.")
@click.option("--seed", default=42, show_default=True, help="Of the prompts.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@_OUT
@registry_options
def virtual_length_command(
    model: str, factor: str, limit: int, seed: int, device: str, out: Path, **options: tuple[str, ...]
) -> None:
    """Measure how well virtual length stands for repeated tokens in a MODEL without positions such as drope-tiny.

    Prompts whose tokens stand several times are compared with prompts whose keys have as much more on their logits:
    hidden states by layer and next-token distributions, in fp32.
    """
    registry = make_registry(**options)  # type: ignore[arg-type]
    variant = registry.variant(model)
    factors = [int(number) if number.strip().isdecimal() else 0 for number in factor.split(",")]
    if min(factors) < 2 or max(factors) > 1024:
        raise UserError(f"--factor {factor}: expected whole numbers from 2 to 1024, such as 2,4,8")

    from longctx_bench.analysis.probes.virtual_length import probe_virtual_length

    path, results = probe_virtual_length(variant, registry, factors, limit, seed, device, out)
    for result in results:
        click.echo(
            f"{result.factor} times: KL divergence {result.divergence:.3f} nats ({result.divergence_without:.3f} "
            f"without the bias), same next token {result.same_token:.1%} ({result.same_token_without:.1%})"
        )
    click.echo(f"wrote {path}")


@probe_group.command("factors")
@click.argument("model")
@click.option("--scale", default="8x", show_default=True, metavar="SCALES", help="Extension factors s.")
@_OUT
@registry_options
def factors_command(model: str, scale: str, out: Path, **options: tuple[str, ...]) -> None:
    """Compute by how much methods slow each pair of rotary dimensions of a MODEL down.

    MODEL is a base such as tiny (then pi, ntk, yarn, llama3 and, where its lists are given, longrope) or METHOD-BASE
    names with commas.
    """
    from longctx_bench.analysis.probes.rope_frequency_factors import scaling_factors, write_factors

    registry = make_registry(**options)  # type: ignore[arg-type]
    scales = parse_scales(scale)
    if not scales or min(scales) <= 1:
        raise UserError(f"--scale {scale}: up to the training context no method changes anything; try 8x")
    variants = registry.variants(model)
    if len({variant.model.name for variant in variants}) > 1:
        raise UserError(f"{model}: names more than one base; probe them one by one")
    base = variants[0].resolve().base
    methods = _methods(registry, model, variants, base)
    for value in scales:
        say(f"wrote {write_factors(out, scaling_factors(base, methods, value))}")
    say(f"`longctx-bench figures {out} --kind factors` draws it")


def _methods(registry: Registry, text: str, variants: tuple[ModelVariant, ...], base: Any) -> dict[str, Method]:
    """Return the methods that were named, or all that change frequencies where a base was."""
    from longctx_bench.analysis.probes.rope_frequency_factors import METHODS

    if len(variants) > 1 or variants[0].method_name != variants[0].model.native_method:
        return {variant.method_name: variant.method for variant in variants}
    name = variants[0].model.name
    chosen: dict[str, Method] = {}
    for method in METHODS:
        found = registry.variant(
            f"{method}-{name}" if name in registry.models else f"{method}:{text.rpartition(':')[2]}"
        ).method
        try:
            found.model_overrides(base, 2 * base.training_context)
        except UserError as error:
            say(f"left out: {method}: {error}", err=True)
            continue
        chosen[method] = found
    return chosen
