"""``longctx-bench parity``: certify that vLLM reproduces transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from longctx_bench.cli.options import (
    make_registry,
    parse_lengths,
    parse_scales,
    registry_options,
    renamed_option,
    writable,
)
from longctx_bench.cli.output import put, rows_option, say
from longctx_bench.core.errors import UserError


@click.command("parity")
@click.argument("models", metavar="MODEL")
@renamed_option("--engines", "hf and vllm are always compared", default="hf,vllm")
@click.option("--task", default="niah", show_default=True, help="Task that supplies the prompts.")
@click.option("--scale", metavar="SCALES", help="Lengths as multiples of the training context (default: 1x,2x).")
@click.option("--length", metavar="TOKENS", help="Lengths in tokens, prompt and new tokens together, e.g. 4096,8k.")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(min=1), help="Prompts per length.")
@click.option(
    "--new-tokens", default=32, show_default=True, type=click.IntRange(min=1), help="Maximum new tokens per prompt."
)
@click.option("--seed", default=42, show_default=True, help="Random seed of the prompts.")
@click.option(
    "--first-token-tolerance",
    default=5e-3,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Maximum difference of first-token log-probabilities, in nats.",
)
@click.option(
    "--tolerance",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Maximum gap between the top two candidates where greedy tokens differ, in nats.",
)
@click.option(
    "--fp64-prompts",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="Prompts per length also computed in fp64 by transformers, as an accuracy reference.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16"]),
    help="Data type of both engines.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--out", default="results", show_default=True, type=click.Path(path_type=Path), callback=writable,
    help="Results folder.",
)  # fmt: skip
@rows_option
@registry_options
def parity_command(
    models: str, engines: str, task: str, scale: str | None, length: str | None, limit: int, new_tokens: int, seed: int,
    first_token_tolerance: float, tolerance: float, fp64_prompts: int, dtype: str, device: str, out: Path,
    form: str, **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Check that vLLM reproduces transformers for a MODEL, e.g. drope-tiny, and write a certificate.

    Compares rotary frequencies, first-token log-probabilities, greedy tokens and scores per length, on identical
    prompts. Exit code 1 if a model is not certified.
    """
    if engines.replace(" ", "") != "hf,vllm":
        raise UserError(f"--engines {engines}: only hf,vllm can be compared; leave it out")
    scales, lengths = parse_scales(scale), parse_lengths(length)
    registry = make_registry(**options)  # type: ignore[arg-type]

    from longctx_bench.analysis.parity.certify import certify
    from longctx_bench.analysis.parity.output_comparison import Tolerance
    from longctx_bench.engines.hf.engine import HFEngine
    from longctx_bench.engines.vllm_backend.engine import VLLMEngine
    from longctx_bench.runner.plan import RunSpec

    tasks = registry.select_tasks(task, None)
    if len(tasks) != 1:
        raise UserError(f"--task {task}: names {len(tasks)} tasks; one is enough")
    scales = scales if scales or lengths else (1.0, 2.0)
    spec = RunSpec(registry.variants(models), tasks, scales, lengths, limit, seed, overwrite=True)
    # vLLM first: fails at once if it is not installed.
    vllm = VLLMEngine(device, dtype)
    reference = HFEngine(device, dtype)
    tolerances = Tolerance(first_token_tolerance, tolerance)
    written = certify(spec, registry, reference, vllm, tolerances, new_tokens, out, fp64_prompts)
    _show(written, form)
    sys.exit(0 if all(certificate["certified"] for certificate in written.values()) else 1)


def _show(written: dict[Path, dict[str, Any]], form: str) -> None:
    from longctx_bench.reporting.formats import FORMATS, print_tables
    from longctx_bench.reporting.tables.base import Table

    per_length = [
        (certificate["contestant"], length, entry)
        for certificate in written.values()
        for length, entry in certificate["lengths"].items()
    ]
    rows = tuple((name, f"{int(length):,}", *_row(entry)) for name, length, entry in per_length)
    judged = ("frequencies", "first token", "hf to fp64", "greedy equal", "unexplained", "score of hf", "score of vllm")
    header = ("model", "length", "verdict", "prompts", *judged)
    records = tuple({"contestant": name, "length": int(length)} | _record(entry) for name, length, entry in per_length)
    notes = (
        "frequencies: largest relative difference; first token: largest difference of log-probabilities, in nats; hf "
        "to fp64: the same of transformers to itself in fp64",
        "unexplained: greedy answers that differ otherwise than at a tie",
    )
    table = Table("vllm against hf: the same prompts read by both engines", header, rows, notes, records, keys=3)
    if form == "terminal":
        print_tables([table])
    else:
        put(FORMATS[form]([table]), None)
    for path in written:
        say(f"wrote {path}", err=form != "terminal")


def _record(entry: dict[str, Any]) -> dict[str, object]:
    """Return a certificate's entry for one length, unrounded."""
    rotary = entry["rotary"]
    return {
        "passed": entry["passed"],
        "prompts": entry["prompts"],
        "frequency_difference": rotary["largest_relative_difference"] if rotary["positions"] else None,
        "first_token_difference": entry["first_token"]["largest_difference"],
        "hf_against_fp64": entry["first_token"].get("hf_against_fp64"),
        "greedy_equal_share": entry["greedy"]["equal_share"],
        "unexplained": sum(not difference["explained"] for difference in entry["greedy"]["differences"]),
        "score_hf": entry["scores"]["hf"],
        "score_vllm": entry["scores"]["vllm"],
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    record = _record(entry)
    frequency, exact = record["frequency_difference"], record["hf_against_fp64"]
    return (
        "passed" if record["passed"] else "FAILED",
        str(record["prompts"]),
        "none" if frequency is None else f"{frequency:.1e}",
        f"{record['first_token_difference']:.1e}",
        "" if exact is None else f"{exact:.1e}",
        f"{100 * entry['greedy']['equal_share']:.1f} %",
        str(record["unexplained"]),
        f"{record['score_hf']:.4f}",
        f"{record['score_vllm']:.4f}",
    )
