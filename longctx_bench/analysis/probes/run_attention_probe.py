"""The attention probe on a real model: load it once, apply the method at each length, write the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longctx_bench.analysis.probes.last_token_attention import attention_by_length, needle_prompts, write_attention
from longctx_bench.benchmarks.base import IndexedBenchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.attention_capture import last_token_attention
from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.methods.base import Method
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest, ModelVariant
from longctx_bench.registry import Registry


def probe_attention(
    variant: ModelVariant, registry: Registry, scales: Sequence[float], n: int, depth: float, seed: int, dtype: str,
    device: str, out: Path,
) -> Path:  # fmt: skip
    """Measure what the last token of niah prompts attends to, and write it below a run's folder.

    Args:
        variant: the model and its method.
        registry: knows the task niah and its data.
        scales: multiples of the training context; 1 is added.
        n: prompts per length.
        depth: of the needle in percent, a point of niah's grid.
        seed: of the prompts.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        out: the run's folder.

    Returns:
        The JSON file's path.

    Raises:
        UserError: the method truncates prompts, the model's attention is not a plain softmax over the whole prompt,
            weights or data are not available, or the depth is not on the grid.
    """
    resolved = variant.resolve()
    folder, base = resolved.folder, resolved.base
    context = base.training_context
    lengths = sorted({context, *(round(scale * context) for scale in scales)})
    prompt = list(range(lengths[-1]))
    if len(variant.method.prompt(base, prompt, 32)) < len(prompt):
        raise UserError(
            f"{variant.name}: {variant.method_name} truncates the prompt, and the needle with it; probe its base model"
        )
    benchmark = registry.benchmark(registry.tasks["niah"])
    if not isinstance(benchmark, IndexedBenchmark):
        raise UserError("niah: the attention probe needs the built-in task; leave out --include-path")
    encoder = PromptEncoder(load_tokenizer(folder))
    prompts = {length: needle_prompts(benchmark, encoder, length, n, seed, depth) for length in lengths}
    engine = HFEngine(device, dtype)
    model = load_model(folder, engine.dtype, engine.device)

    def attention(method: Method, length: int, ids: Sequence[int]) -> NDArray[np.float32]:
        target = len(ids) + 32 if method.per_prompt else length
        with apply_method(model, ModelUnderTest(base, method, target), target):
            return last_token_attention(model, ids)

    result = attention_by_length(attention, base, variant.method, prompts)
    settings = {"task": "niah", "depth": depth, "n": n, "seed": seed, "dtype": engine.dtype, "device": engine.device}
    return write_attention(out, variant.name, base, result, settings)
