"""Head-wise temperatures by gradient descent (Wang et al. 2024, arXiv 2404.12224); no weight changes.

The loss is that of needles' answers plus that of the text before them, at the length that the temperatures are for. A
lower loss of answers is not always more right ones: it also falls where wrong answers get less confident. So the result
is an interpolation between one temperature for all heads and the fitted ones, its weight chosen by retrieval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from longctx_bench.analysis.calibration.calibrate import store_fit
from longctx_bench.analysis.calibration.objectives import Objective, answer_ids
from longctx_bench.benchmarks.base import IndexedBenchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import apply_method
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.head_temperatures import HeadGrid, HeadTemperatures, query_modules
from longctx_bench.models.variant import ModelUnderTest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 8
"""Sequences per step."""
LEARNING_RATE, FINAL_RATE = 0.03, 0.05
"""Adam's learning rate for ln T: its peak, and the share of it at the end of the cosine. At 0.05 the loss diverged."""
_WARMUP_STEPS = 5
TEXT_WEIGHT = 0.5
"""Weight of the text's loss, that of the answers being 1: without it the temperatures would suit needles alone."""
_TEXT_POSITIONS = 256
"""Positions per sequence at which the text's loss is taken."""
_BATCH_TOKENS = 65_536
"""Tokens in one pass on a GPU; on a CPU, one sequence."""
_NEW_TOKENS = 16
INTERPOLATION_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""In ln T: 0 is one temperature for all heads, 1 the fitted ones."""


@dataclass(frozen=True)
class FitPoint:
    """Mean losses of a few consecutive steps, in nats per token."""

    scale: float
    step: int
    answer_loss: float
    text_loss: float


@dataclass(frozen=True)
class InterpolationPoint:
    """Retrieval with temperatures between one for all heads and the fitted ones."""

    scale: float
    weight: float
    """One of :data:`INTERPOLATION_WEIGHTS`."""
    score: float


@dataclass(frozen=True)
class _Sequence:
    ids: tuple[int, ...]
    prompt: int
    """Tokens before the answer."""


def fit_head_temperatures(
    model: PreTrainedModel,
    method: Method,
    base: BaseModelInfo,
    encoder: PromptEncoder,
    benchmarks: Sequence[IndexedBenchmark],
    scales: Sequence[float],
    steps: int,
    seed: int,
    batch_tokens: int | None,
    tell: Callable[[FitPoint], None],
) -> tuple[HeadTemperatures, list[FitPoint]]:
    """Fit one temperature per attention head at each scale.

    The first scale starts from the temperature that the method has for all heads, 1 where it has none or one per head.
    Each later scale starts from the one before it, ln T extrapolated in ln s.

    Args:
        model: on its device; its weights stay as they are.
        method: one that takes temperatures by head.
        base: the checkpoint's properties.
        encoder: of the model's tokenizer.
        benchmarks: whose prompts and answers are fitted to, all equally often.
        scales: extension factors above 1, in increasing order.
        steps: of :data:`BATCH` sequences, per scale; each sequence is read once.
        seed: of the sequences, which no test with a smaller seed draws.
        batch_tokens: maximum tokens in one pass; by default one sequence on a CPU, :data:`_BATCH_TOKENS` on a GPU.
        tell: called with the mean losses of every tenth of a fit.

    Raises:
        UserError: the model's heads cannot have temperatures, the loss diverged, or memory ran out.
    """
    modules = query_modules(model)
    shape = (len(modules), model.config.num_attention_heads)
    plain = _without_temperature(method)
    tokens = batch_tokens or (_BATCH_TOKENS if model.device.type == "cuda" else 1)
    grids: dict[float, list[list[float]]] = {}
    log: list[FitPoint] = []
    start = torch.full(shape, math.log(method.attention_temperature(base, round(scales[0] * base.training_context))))
    for index, scale in enumerate(scales):
        length = round(scale * base.training_context)
        if index:
            start = start * (math.log(scale) / math.log(scales[index - 1]))
        batches = _batches(encoder, benchmarks, length, steps, seed)
        try:
            with apply_method(model, ModelUnderTest(base, plain, length), length):
                start, points = _descend(model, modules, start, batches, steps, scale, tokens, tell)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"calibrate --per-head at {scale:g}x: {tokens:,} tokens in a pass take more memory than the GPU has; "
                f"give a smaller --batch-tokens, or a smaller --scale"
            ) from error
        grids[scale] = start.exp().tolist()
        log += points
    return HeadTemperatures.from_grids(grids), log


def choose_interpolation(
    method: Method,
    base: BaseModelInfo,
    fitted: HeadTemperatures,
    retrieval: Objective,
    n: int,
    tell: Callable[[InterpolationPoint], None],
) -> tuple[HeadTemperatures, dict[float, InterpolationPoint]]:
    """Interpolate between one temperature for all heads and the fitted ones, with the weight that retrieves most.

    Args:
        method: whose temperature for all heads is where the fit began; 1 where it has none, or one per head.
        base: the checkpoint's properties.
        fitted: temperatures by head, of :func:`fit_head_temperatures`.
        retrieval: what is maximised; of weights that retrieve the same, the largest is taken.
        n: examples of each of its tasks.
        tell: called with each point.

    Returns:
        The temperatures, and the chosen point of each scale.
    """
    grids: dict[float, list[list[float]]] = {}
    chosen: dict[float, InterpolationPoint] = {}
    for scale in fitted.table:
        length = round(scale * base.training_context)
        one, heads = method.attention_temperature(base, length), fitted.at(scale)
        assert heads is not None
        points = []
        for weight in INTERPOLATION_WEIGHTS:
            candidate = HeadTemperatures.from_grids({scale: _between(one, heads, weight)})
            model = ModelUnderTest(base, method.with_head_temperatures(candidate), length)
            points.append(InterpolationPoint(scale, weight, retrieval.score(model, n)))
            tell(points[-1])
        chosen[scale] = max(points, key=lambda point: (point.score, point.weight))
        grids[scale] = _between(one, heads, chosen[scale].weight)
    return HeadTemperatures.from_grids(grids), chosen


def _between(one: float, heads: HeadGrid, weight: float) -> list[list[float]]:
    return [[one ** (1 - weight) * value**weight for value in layer] for layer in heads]


def _without_temperature(method: Method) -> Method:
    """Return the method without a temperature of its own: it is where the fit starts, not a factor besides."""
    return method.with_scalar(1.0) if method.tunable == "temperature" else method


def _descend(
    model: PreTrainedModel,
    modules: Sequence[torch.nn.Module],
    start: torch.Tensor,
    batches: Iterable[Sequence[_Sequence]],
    steps: int,
    scale: float,
    tokens_per_pass: int,
    tell: Callable[[FitPoint], None],
) -> tuple[torch.Tensor, list[FitPoint]]:
    """Return the fitted ln T, ``[layers, heads]``, and the losses on the way."""
    every = max(1, steps // 10)
    log_temperatures = start.to(model.device).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([log_temperatures], lr=LEARNING_RATE, betas=(0.9, 0.95))
    points: list[FitPoint] = []
    num_steps, answer_sum, text_sum = 0, 0.0, 0.0
    with _frozen(model), _scaled_queries(model, modules, log_temperatures):
        for step, sequences in enumerate(batches):
            size = max(1, tokens_per_pass // max(len(sequence.ids) for sequence in sequences))
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, steps)
            for first in range(0, BATCH, size):
                batch = sequences[first : first + size]
                answer, text = _losses(model, batch)
                ((answer + TEXT_WEIGHT * text) * (len(batch) / BATCH)).backward()
                answer_sum += float(answer.detach()) * len(batch) / BATCH
                text_sum += float(text.detach()) * len(batch) / BATCH
            torch.nn.utils.clip_grad_norm_([log_temperatures], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            num_steps += 1
            if num_steps == every or step == steps - 1:
                answer_loss, text_loss = (round(total / num_steps, 4) for total in (answer_sum, text_sum))
                points.append(FitPoint(scale, step + 1, answer_loss, text_loss))
                tell(points[-1])
                num_steps, answer_sum, text_sum = 0, 0.0, 0.0
    fitted = log_temperatures.detach().cpu()
    if not bool(fitted.isfinite().all()):
        raise UserError(
            f"calibrate --per-head at {scale:g}x: the loss diverged; nothing is written. Try --dtype float32"
        )
    return fitted, points


def _learning_rate(step: int, steps: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * min(1.0, (step + 1) / _WARMUP_STEPS) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Keep gradients from the weights: only the temperatures get any."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@contextmanager
def _scaled_queries(
    model: PreTrainedModel, modules: Sequence[torch.nn.Module], log_temperatures: torch.Tensor
) -> Iterator[None]:
    """Multiply each head's queries by its temperature inside the block, so that gradients reach it."""
    heads = model.config.num_attention_heads

    def scale_layer(layer: int) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        def hook(module: Any, inputs: Any, queries: torch.Tensor) -> torch.Tensor:
            factors = log_temperatures[layer].exp().repeat_interleave(queries.shape[-1] // heads)
            return queries * factors.to(queries.dtype)

        return hook

    handles = [module.register_forward_hook(scale_layer(index)) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _losses(model: PreTrainedModel, batch: Sequence[_Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean losses of the answers and of the text before them, nats per token."""
    longest = max(len(sequence.ids) for sequence in batch)
    # Padded on the right: attention is causal, so that no token sees padding, and no mask is needed.
    rows = torch.tensor(
        [[*sequence.ids, *[0] * (longest - len(sequence.ids))] for sequence in batch], device=model.device
    )
    answers_start = min(sequence.prompt for sequence in batch) - 1
    spaced = torch.arange(0, answers_start, max(1, answers_start // _TEXT_POSITIONS))
    positions = torch.cat((spaced, torch.arange(answers_start, longest - 1))).to(model.device)
    logits = model(rows, use_cache=False, logits_to_keep=positions).logits.float()
    losses = functional.cross_entropy(logits.transpose(1, 2), rows[:, positions + 1], reduction="none")
    starts = torch.tensor([[sequence.prompt - 1] for sequence in batch], device=model.device)
    ends = torch.tensor([[len(sequence.ids) - 1] for sequence in batch], device=model.device)
    is_answer = (positions >= starts) & (positions < ends)
    is_text = (positions < answers_start).expand_as(is_answer)
    return tuple((losses * chosen).sum() / chosen.sum().clamp(min=1) for chosen in (is_answer, is_text))  # type: ignore[return-value]


def _batches(
    encoder: PromptEncoder, benchmarks: Sequence[IndexedBenchmark], length: int, steps: int, seed: int
) -> Iterator[Sequence[_Sequence]]:
    """Yield the sequences of each step: prompts with their answers, of each task in turn; made one step ahead."""

    def batch(step: int) -> Sequence[_Sequence]:
        sequences = []
        for number in range(step * BATCH, (step + 1) * BATCH):
            index, task = divmod(number, len(benchmarks))
            example = benchmarks[task].example(encoder, length, _NEW_TOKENS, seed, index)
            prompt = tuple(encoder.encode(example.prompt, example.answer_prefix))
            sequences.append(_Sequence((*prompt, *answer_ids(encoder, example)), len(prompt)))
        return sequences

    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead = thread.submit(batch, 0)
        for step in range(steps):
            current = ahead.result()
            if step + 1 < steps:
                ahead = thread.submit(batch, step + 1)
            yield current


def write_head_temperatures(
    folder: Path,
    method: Method,
    method_name: str,
    temperatures: HeadTemperatures,
    points: Sequence[FitPoint],
    tasks: Iterable[str],
    seed: int,
    chosen: Mapping[float, InterpolationPoint],
) -> Path:
    """Add the temperatures to ``calibration.json`` in a folder of weights, where ``calibration: heads`` finds them."""
    assert method.tunable is not None
    return store_fit(folder, (method.tunable, "heads"), {
        "method": method_name,
        "table": {f"{scale:g}": list(lines) for scale, lines in temperatures.table.items()},
        "data": f"{', '.join(tasks)}, seed {seed}",
        "interpolation": {f"{scale:g}": point.weight for scale, point in chosen.items()},
        "retrieval": {f"{scale:g}": round(point.score, 4) for scale, point in chosen.items()},
        "made": {"at": provenance.now(), **provenance.environment()},
        "fit": [asdict(point) for point in points],
    })  # fmt: skip
