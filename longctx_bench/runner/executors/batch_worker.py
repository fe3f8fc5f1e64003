"""What is done with a batch where the engine is, in this process or in another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

from longctx_bench.benchmarks.base import Benchmark
from longctx_bench.benchmarks.lm_eval_task import LMEval
from longctx_bench.core.types import Example, Request
from longctx_bench.engines.base import Engine
from longctx_bench.lm_eval_adapter.run_task import run_task
from longctx_bench.metrics import Metric
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.runner.batch_scoring import continued, predicted
from longctx_bench.runner.executors.base import Answer, HarnessSettings, Whole


def batches(engine: Engine, folder: Path, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
    """Load a checkpoint and group a cell's requests as the engine wants them.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    engine.load(folder)
    engine.peak_memory()  # What cells before took does not count.
    return engine.batches(requests, per_prompt)


def answer(
    engine: Engine,
    kind: str,
    measure: Metric,
    contestant: ModelUnderTest,
    batch: Sequence[Request],
    examples: Mapping[str, Example],
) -> Answer:
    """Run one batch on an engine that has loaded its checkpoint, and score it.

    Args:
        engine: that has loaded the contestant's weights.
        kind: the benchmark's: ``generate`` or ``loss``.
        measure: the task's metric.
        contestant: method, base and length.
        batch: one of those that :func:`batches` returned.
        examples: of the batch, by id.

    Raises:
        UserError: a request does not fit in memory.
    """
    judge = predicted if kind == "loss" else continued
    finished = judge(engine, batch, contestant, measure, examples)
    return Answer(finished, engine.peak_memory(), engine.settings())


def whole(
    engine: Engine, folder: Path, contestant: ModelUnderTest, benchmark: Benchmark, settings: HarnessSettings
) -> Answer:
    """Let lm-eval run a task whole: it cannot be taken up in its middle.

    Raises:
        UserError: as :func:`longctx_bench.lm_eval_adapter.run_task.run_task`.
    """
    assert isinstance(benchmark, LMEval)
    engine.load(folder)
    engine.peak_memory()
    began = perf_counter()
    wanted = (settings.limit, settings.seed, settings.chat_template)
    found = run_task(engine, contestant, load_tokenizer(folder), benchmark, *wanted)
    seconds = round(perf_counter() - began, 3)
    summary = Whole(found.metric, found.score, found.details, seconds)
    return Answer(found.finished, engine.peak_memory(), engine.settings(), summary)
