"""Parity certificates: does vLLM run a method with the numbers of transformers? One certificate per model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.analysis.parity.hf_reference import TOP_LOGPROBS, generate_reference
from longctx_bench.analysis.parity.output_comparison import (
    FREQUENCY,
    Generation,
    Tolerance,
    compare_outputs,
    rotation_of,
)
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import safe_name, write_json
from longctx_bench.core.types import NATURAL, Request
from longctx_bench.core.untrusted_files import read_object
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import PlannedCell, RunSpec, plan
from longctx_bench.runner.request_builder import RequestBuilder
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import to_builtins

if TYPE_CHECKING:
    from longctx_bench.engines.hf.engine import HFEngine
    from longctx_bench.engines.vllm_backend.engine import VLLMEngine


def certify(
    spec: RunSpec,
    registry: Registry,
    hf: HFEngine,
    vllm: VLLMEngine,
    tolerance: Tolerance,
    new_tokens: int,
    out: Path,
    in_fp64: int = 0,
) -> dict[Path, dict[str, Any]]:
    """Compare both engines on the same prompts and write a certificate for each model.

    Args:
        spec: models, one task, lengths and number of prompts.
        registry: resolves models, methods, tasks and metrics.
        hf: chooses the device; its own decoder is not used, the reference is transformers' ``generate``.
        vllm: the engine to be certified.
        tolerance: differences that count as equal.
        new_tokens: maximum per prompt.
        out: the run's folder; certificates lie below its ``parity/``.
        in_fp64: prompts per length whose first token transformers also computes in fp64, to measure its rounding error.

    Returns:
        The certificates by path. Lengths of an earlier certificate of the same model, settings and versions are kept.

    Raises:
        UserError: vLLM does not run a method, or a prompt does not fit its length.
    """
    cells = plan(spec, hf, ResultStore(out), registry)
    if any(cell.kind != "generate" or cell.cell.length == NATURAL for cell in cells):
        raise UserError("parity compares generated tokens: name a generation task such as niah, and lengths in tokens")
    prompts = RequestBuilder(registry, spec)
    requests = {cell.cell: _requests(prompts, cell, new_tokens) for cell in cells}
    # vLLM reserves a fixed share of the memory, so transformers runs first and is freed.
    references = {}
    for cell in cells:
        resolved = cell.variant.resolve()
        model = resolved.at(cell.cell.length)
        references[cell.cell] = generate_reference(
            resolved.folder, model, requests[cell.cell], hf.dtype, hf.device, in_fp64
        )
    gc.collect()
    sections: dict[str, dict[str, Any]] = {}
    for cell in cells:
        resolved = cell.variant.resolve()
        vllm.load(resolved.folder)
        model = resolved.at(cell.cell.length)
        outputs = vllm.generate_with_logprobs(requests[cell.cell], model, TOP_LOGPROBS)
        generations = [Generation(tokens, steps) for tokens, steps in outputs]
        rotation = rotation_of(vllm.rotary_table(requests[cell.cell][0], model))
        reference = references[cell.cell]
        section = compare_outputs((reference.answers, reference.rotation), (generations, rotation), tolerance, hf.dtype)
        if reference.rounding is not None:
            section["first_token"] |= {
                "hf_against_fp64": reference.rounding,
                "fp64_prompts": min(in_fp64, len(generations)),
            }
        section["scores"] = _scores(registry, prompts, cell, reference.answers, generations)
        sections.setdefault(_name(cell), {})[str(cell.cell.length)] = section
    certificates = {}
    for name, measured in sections.items():
        cell = next(cell for cell in cells if _name(cell) == name)
        # What reports match with a cell, and what two measurements must share to be one certificate.
        certificate = {
            "contestant": name,
            "model": to_builtins(cell.spec.model),
            "method": to_builtins(cell.spec.method),
            "weights": cell.spec.weights,
            "digests": cell.spec.digests,
            # As in a cell: only where the method is a plug-in.
            **({"code": cell.spec.code} if cell.spec.code else {}),
            "task": spec.tasks[0].name,
            "seed": spec.seed,
            "dtype": hf.dtype,
            "new_tokens": new_tokens,
            "tolerance": {
                "first_token": tolerance.first_token,
                "gap": tolerance.gap,
                "equal_share": tolerance.equal_share,
                "frequency": FREQUENCY[hf.dtype],
            },
            "engines": {"hf": hf.settings(), "vllm": vllm.settings()},
            "environment": provenance.environment(),
        }
        path = out / "parity" / f"{safe_name(name)}-{hf.dtype}.json"
        lengths = _kept(path, certificate) | measured
        certificates[path] = certificate | {
            "certified": all(section["passed"] for section in lengths.values()),
            "lengths": dict(sorted(lengths.items(), key=lambda item: int(item[0]))),
            "finished": provenance.now(),
        }
        write_json(path, certificates[path])
    return certificates


def _kept(path: Path, certificate: dict[str, Any]) -> dict[str, Any]:
    """Return the lengths of an earlier certificate that is equal in all other entries."""
    earlier = read_object(path) or {}
    same = all(earlier.get(key) == value for key, value in certificate.items())
    return dict(earlier["lengths"]) if same else {}


def _requests(prompts: RequestBuilder, cell: PlannedCell, new_tokens: int) -> list[Request]:
    resolved = cell.variant.resolve()
    requests = prompts.requests(cell, resolved.folder, resolved.base)
    return [
        Request(item.example_id, item.input_ids, min(new_tokens, item.max_new_tokens), item.stop_ids)
        for item in requests
    ]


def _scores(
    registry: Registry,
    prompts: RequestBuilder,
    cell: PlannedCell,
    mine: Sequence[Generation],
    theirs: Sequence[Generation],
) -> dict[str, float]:
    folder = cell.variant.resolve().folder
    tokenizer, metric = load_tokenizer(folder), registry.metric(cell.task).metric
    examples = prompts.examples(cell, folder)
    means = {}
    for name, answers in (("hf", mine), ("vllm", theirs)):
        texts = [tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
        pairs = zip(texts, examples, strict=True)
        means[name] = sum(metric.score(text, item.references, item.classes) for text, item in pairs) / len(texts)
    return means


def _name(cell: PlannedCell) -> str:
    return f"{cell.variant.method_name}-{cell.variant.model.name}"
