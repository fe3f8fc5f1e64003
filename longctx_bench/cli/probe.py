"""``longctx-bench probe``: measurements of model internals."""

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
    help="Results folder; the probe is written to its probes/, where figures find it.",
)  # fmt: skip


@click.group("probe")
def probe_group() -> None:
    """Measure model internals, for `longctx-bench figures --kind attention,factors`."""


@probe_group.command("attention")
@click.argument("model")
@click.option(
    "--scale",
    default="1x,2x,4x,8x",
    show_default=True,
    metavar="SCALES",
    help="Lengths as multiples of the training context; 1x, which selects the heads, is always included.",
)
@click.option("--limit", default=8, show_default=True, type=click.IntRange(min=1), help="Prompts per length.")
@click.option("--depth", default=50.0, show_default=True, help="Needle depth in per cent: 0, 10, ..., 100.")
@click.option("--seed", default=42, show_default=True, help="Random seed of the prompts.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Data type of the weights; auto is bfloat16 where the device supports it.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@_OUT
@registry_options
def attention_command(
    model: str, scale: str, limit: int, depth: float, seed: int, dtype: str, device: str, out: Path,
    **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure what the last token of a niah prompt attends to in a MODEL, e.g. yarn-tiny, by length.

    For one positional and one semantic head, with and without the method's scaling (rotary factors, softmax
    temperature).
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
@click.option("--factor", default="2,4,8,16", show_default=True, metavar="NUMBERS", help="Repetitions of each token.")
@click.option("--limit", default=8, show_default=True, type=click.IntRange(min=1), help="Number of prompts.")
@click.option("--seed", default=42, show_default=True, help="Random seed of the prompts.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@_OUT
@registry_options
def virtual_length_command(
    model: str, factor: str, limit: int, seed: int, device: str, out: Path, **options: tuple[str, ...]
) -> None:
    """Measure how well virtual length emulates repeated tokens in a MODEL without positions, e.g. drope-tiny.

    Compares prompts whose tokens are repeated with prompts whose attention logits get the equivalent bias: hidden
    states by layer and next-token distributions, in fp32.
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
@click.option(
    "--scale", default="8x", show_default=True, metavar="SCALES", help="Extension factors (length / training context)."
)
@_OUT
@registry_options
def factors_command(model: str, scale: str, out: Path, **options: tuple[str, ...]) -> None:
    """Compute by how much methods reduce the frequency of each pair of rotary dimensions of a MODEL.

    MODEL is a base, e.g. tiny (for pi, ntk, yarn, llama3 and, if its lists are given, longrope), or comma-separated
    METHOD-BASE names.
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
    """Return the named methods, or for a base all methods that change rotary frequencies."""
    from longctx_bench.analysis.probes.rope_frequency_factors import METHODS

    if len(variants) > 1 or variants[0].method_name != variants[0].model.native_method:
        return {variant.method_name: variant.method for variant in variants}
    name = variants[0].model.name
    methods: dict[str, Method] = {}
    for method in METHODS:
        candidate = registry.variant(
            f"{method}-{name}" if name in registry.models else f"{method}:{text.rpartition(':')[2]}"
        ).method
        try:
            candidate.model_overrides(base, 2 * base.training_context)
        except UserError as error:
            say(f"left out: {method}: {error}", err=True)
            continue
        methods[method] = candidate
    return methods
