"""Whether vLLM gives a method's numbers as transformers does: a certificate for each model and length."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench import provenance
from longctx_bench.engines.base import Contestant
from longctx_bench.engines.checkpoints import checkpoint_folder, end_ids, load_tokenizer, read_config
from longctx_bench.errors import UserError
from longctx_bench.files import safe_name, write_json
from longctx_bench.metrics import metric
from longctx_bench.plan import PlannedCell, RunSpec, plan
from longctx_bench.prompts import PromptCache
from longctx_bench.records import NATURAL, Request
from longctx_bench.registry import Registry
from longctx_bench.store import ResultStore

if TYPE_CHECKING:
    from longctx_bench.engines.hf import HFEngine
    from longctx_bench.engines.vllm import VLLMEngine

TOP = 20
"""Tokens whose log-probabilities are kept at each step: vLLM gives no more unless it is told to."""
_FREQUENCY = {"float32": 1e-5, "bfloat16": 1e-2}
"""Largest relative difference of a rotary frequency: some units of the precision that the tables are held in."""


@dataclass(frozen=True)
class Answer:
    """What an engine wrote after one prompt."""

    tokens: list[int]
    steps: list[dict[int, float]]
    """Log-probabilities of the likeliest tokens before each of its own."""


@dataclass(frozen=True)
class Rotation:
    """How queries and keys are turned."""

    frequencies: list[float]
    """Radians a token by pair of dimensions; all 0 without positions."""
    factor: float
    """What cos and sin are multiplied with."""


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same."""

    log_probability: float = 1e-3
    """Nats, of a first token; and between two candidates of which each engine chose another."""
    equal_share: float = 0.99
    """Of the prompts, whose greedy tokens must all be equal."""


def certify(
    spec: RunSpec, registry: Registry, hf: HFEngine, vllm: VLLMEngine, tolerance: Tolerance, new_tokens: int, out: Path
) -> dict[Path, dict[str, Any]]:
    """Compare both engines on the same prompts and write a certificate for each model.

    Args:
        spec: models, one task, lengths and number of prompts.
        registry: what names mean.
        hf: chooses the device; its own decoder is not used, the reference is transformers' ``generate``.
        vllm: the engine to be certified.
        tolerance: what counts as the same.
        new_tokens: written after each prompt, at most.
        out: the run's folder; certificates lie below its ``parity/``.

    Returns:
        Each certificate by the path that it was written to.

    Raises:
        UserError: vLLM does not run a method, or a prompt does not fit its length.
    """
    cells = plan(spec, hf, ResultStore(out), registry)
    if any(cell.kind != "generate" or cell.cell.length == NATURAL for cell in cells):
        raise UserError("parity compares what is written: name a task such as niah, and lengths in tokens")
    prompts = PromptCache(registry, spec)
    asked = {cell.cell: _requests(prompts, cell, new_tokens) for cell in cells}
    # vLLM takes a fixed share of the memory, so transformers goes first and leaves.
    references = {cell.cell: _reference(hf, cell, asked[cell.cell]) for cell in cells}
    gc.collect()
    sections: dict[str, dict[str, Any]] = {}
    for cell in cells:
        variant = cell.variant
        vllm.load(checkpoint_folder(variant.source))
        found = vllm.answers(asked[cell.cell], _contestant(cell), TOP)
        answers = [Answer(tokens, steps) for tokens, steps in found]
        rotation = rotation_of(vllm.ask_workers("rotary_table", [1]))
        section = compare(references[cell.cell], (answers, rotation), tolerance, hf.dtype)
        section["scores"] = _scores(prompts, cell, references[cell.cell][0], answers)
        name = f"{variant.method_name}-{variant.model.name}"
        sections.setdefault(name, {})[str(cell.cell.length)] = section
    written = {}
    for name, lengths in sections.items():
        certificate = {
            "contestant": name,
            "certified": all(section["passed"] for section in lengths.values()),
            "task": spec.tasks[0].name,
            "seed": spec.seed,
            "dtype": hf.dtype,
            "new_tokens": new_tokens,
            "tolerance": {
                "log_probability": tolerance.log_probability,
                "equal_share": tolerance.equal_share,
                "frequency": _FREQUENCY[hf.dtype],
            },
            "weights": next(cell.spec["weights"] for cell in cells if _name(cell) == name),
            "digests": next(cell.spec["digests"] for cell in cells if _name(cell) == name),
            "method": next(cell.spec["method"] for cell in cells if _name(cell) == name),
            "engines": {"hf": hf.describe(), "vllm": vllm.describe()},
            "lengths": lengths,
            "environment": provenance.environment(),
            "finished": provenance.now(),
        }
        path = out / "parity" / f"{safe_name(name)}.json"
        write_json(path, certificate)
        written[path] = certificate
    return written


def compare(
    reference: tuple[Sequence[Answer], Rotation | None],
    other: tuple[Sequence[Answer], Rotation | None],
    tolerance: Tolerance,
    dtype: str,
) -> dict[str, Any]:
    """Compare two engines' answers to the same prompts, in the same order, and their rotations.

    Returns:
        One length's section of a certificate; ``passed`` is True when frequencies, first log-probabilities and greedy
        tokens are within the tolerance and each difference of tokens is a near tie for the reference.
    """
    (mine, turned), (theirs, turned_too) = reference, other
    rotary = _rotary(turned, turned_too, _FREQUENCY[dtype])
    first = [_first_difference(a.steps[0], b.steps[0]) for a, b in zip(mine, theirs, strict=True)]
    differences = []
    for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.tokens != b.tokens:
            differences.append({"prompt": place} | explain(a, b, tolerance.log_probability))
    share = 1 - len(differences) / len(mine)
    passed = (
        rotary["same"] is not False
        and max(first) <= tolerance.log_probability
        and share >= tolerance.equal_share
        and all(difference["explained"] for difference in differences)
    )
    return {
        "passed": passed,
        "prompts": len(mine),
        "rotary": rotary,
        "first_token": {"largest_difference": max(first)},
        "greedy": {"equal_share": share, "differences": differences},
    }


def explain(mine: Answer, theirs: Answer, tolerance: float) -> dict[str, Any]:
    """Say where two greedy answers part and how near a tie it was for the first engine.

    Returns:
        The step, both tokens (None where one had ended), both engines' gaps between the two candidates in nats, None
        where a candidate was not among the kept ones; ``explained`` is True when the first engine's gap is known and
        below the tolerance.
    """
    pairs = zip_longest(mine.tokens, theirs.tokens)
    step, (own, other) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
    gap, gap_too = (_gap(answer, step, own, other) for answer in (mine, theirs))
    explained = gap is not None and gap < tolerance
    return {"step": step, "hf": own, "vllm": other, "hf_gap": gap, "vllm_gap": gap_too, "explained": explained}


def _gap(answer: Answer, step: int, one: int | None, other: int | None) -> float | None:
    known = answer.steps[step] if step < len(answer.steps) else {}
    if one not in known or other not in known:
        return None
    return abs(known[one] - known[other])


def rotation_of(rows: list[list[float]] | None) -> Rotation | None:
    """Return what a table's row for position 1 says: cos in its first half, sin in its second; None without a table."""
    if rows is None:
        return None
    [row] = rows
    half = len(row) // 2
    pairs = list(zip(row[:half], row[half:], strict=True))
    return Rotation([math.atan2(sin, cos) for cos, sin in pairs], math.hypot(*pairs[0]))


def _rotary(mine: Rotation | None, theirs: Rotation | None, tolerance: float) -> dict[str, Any]:
    """Compare two rotations; frequencies below 1e-20 radians a token count as none."""
    still = [0.0] * len((mine or theirs or Rotation([], 1.0)).frequencies)
    a, b = mine or Rotation(still, 1.0), theirs or Rotation(still, 1.0)
    pairs = [(x, y) for x, y in zip(a.frequencies, b.frequencies, strict=True) if max(abs(x), abs(y)) > 1e-20]
    largest = max((abs(x - y) / max(abs(x), abs(y)) for x, y in pairs), default=0.0)
    largest = max(largest, abs(a.factor - b.factor) / a.factor)
    kept = {"positions": bool(pairs), "largest_relative_difference": largest, "factor": [a.factor, b.factor]}
    return {"same": largest <= tolerance} | kept


def _first_difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Return the largest difference over the five tokens that the first engine finds likeliest."""
    likeliest = sorted(mine, key=lambda token: -mine[token])[:5]
    return max(abs(mine[token] - theirs[token]) if token in theirs else math.inf for token in likeliest)


def _requests(prompts: PromptCache, cell: PlannedCell, new_tokens: int) -> list[Request]:
    folder = checkpoint_folder(cell.variant.source)
    found = prompts.requests(cell, folder, cell.variant.base(read_config(folder)))
    return [
        Request(item.example_id, item.input_ids, min(new_tokens, item.max_new_tokens), item.stop_ids) for item in found
    ]


def _reference(hf: HFEngine, cell: PlannedCell, asked: Sequence[Request]) -> tuple[list[Answer], Rotation | None]:
    """Let transformers' own ``generate`` answer, prompt by prompt, and read its rotation."""
    import torch

    from longctx_bench.engines.hf import load_model, prepared

    folder = checkpoint_folder(cell.variant.source)
    model: Any = load_model(folder, hf.dtype, hf.device)
    answers = []
    with prepared(model, _contestant(cell), cell.cell.length), torch.inference_mode():
        rotary = model.base_model.rotary_emb
        turned = None
        if not cell.variant.base(read_config(folder)).config["model_type"].endswith("_drope"):
            turned = Rotation(rotary.inv_freq.double().tolist(), float(rotary.attention_scaling))
        for request in asked:
            ids = torch.tensor([list(request.input_ids)], device=model.device)
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=request.max_new_tokens,
                eos_token_id=sorted(end_ids(folder) | request.stop_ids),
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
            steps = []
            for logits in found.logits:
                values, tokens = torch.log_softmax(logits[0].float(), dim=-1).topk(TOP)
                steps.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
            answers.append(Answer(found.sequences[0, ids.shape[1] :].tolist(), steps))
    return answers, turned


def _scores(
    prompts: PromptCache, cell: PlannedCell, mine: Sequence[Answer], theirs: Sequence[Answer]
) -> dict[str, float]:
    folder = checkpoint_folder(cell.variant.source)
    tokenizer, measure = load_tokenizer(folder), metric(cell.task.metric)
    examples = prompts.examples(cell, folder)
    means = {}
    for name, answers in (("hf", mine), ("vllm", theirs)):
        texts = [tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
        pairs = zip(texts, examples, strict=True)
        means[name] = sum(measure.score(text, item.references, item.classes) for text, item in pairs) / len(texts)
    return means


def _contestant(cell: PlannedCell) -> Contestant:
    folder = checkpoint_folder(cell.variant.source)
    return Contestant(cell.variant.base(read_config(folder)), cell.variant.method, cell.cell.length)


def _name(cell: PlannedCell) -> str:
    return f"{cell.variant.method_name}-{cell.variant.model.name}"
