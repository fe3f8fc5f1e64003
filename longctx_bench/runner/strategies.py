"""Run strategies: how each kind of benchmark is planned, batched, run and scored.

A benchmark's ``kind`` names its strategy. Nothing else in the runner, the executors or the command line tells the kinds
apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from longctx_bench.core.errors import UserError
from longctx_bench.core.sanitize import pluralize
from longctx_bench.core.specs import TaskSpec
from longctx_bench.core.types import NATURAL, Example, Request, SampleRecord
from longctx_bench.engines.base import Engine
from longctx_bench.metrics import Metric
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import ALL_EXAMPLES, LoadedMetric, Registry
from longctx_bench.runner.batch_scoring import score_generations, score_loglikelihoods

_PREFILL_CHUNK = 256
"""Tokens of a prompt that must fit in memory at a time: a prompt can be prefilled in chunks."""


@dataclass(frozen=True)
class RunSettings:
    """The options of a run that a harness with prompts of its own needs."""

    limit: int | None
    """Documents; all when None."""
    seed: int
    chat_template: bool


@dataclass(frozen=True)
class CellContext:
    """What all batches of a cell have in common, in the process that has the engine."""

    folder: Path
    """The checkpoint, on this machine."""
    model: ModelUnderTest
    task: TaskSpec
    registry: Registry
    settings: RunSettings


@dataclass(frozen=True)
class HarnessSummary:
    """What lm-eval reported for a task."""

    metric: str
    score: float
    details: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class BatchResult:
    """The records of one batch, or of a whole task that lm-eval ran."""

    finished: Sequence[SampleRecord]
    """In the batch's order."""
    peak: int | None
    """Peak memory in bytes, where the engine reports it."""
    engine: dict[str, Any]
    """The engine's settings, as :meth:`~longctx_bench.engines.base.EngineInfo.settings` returns them."""
    harness: HarnessSummary | None = None
    """Set when lm-eval ran the whole task: it replaces all earlier records of the cell."""


class Strategy(ABC):
    """How the cells of one kind of benchmark are run."""

    external: ClassVar[bool] = False
    """True when another harness writes the prompts and scores the answers: the cell has no requests of ours."""
    equal_lengths: ClassVar[bool] = False
    """True when prompts of different lengths must not share a batch."""
    _losses: ClassVar[bool] = False

    def load_scoring(self, task: TaskSpec, registry: Registry) -> LoadedMetric | None:
        """Load a task's metric anew and check that it fits the benchmark; None when the harness brings its own.

        Raises:
            UserError: the metric cannot be loaded, or does not go with the benchmark.
        """
        scoring = registry.load_metric(task)
        if (scoring.metric.name == "token_loss") != self._losses:
            raise UserError(f"task {task.name}: metric '{task.metric}' does not go with {task.use}")
        return scoring

    def scoring(self, task: TaskSpec, registry: Registry) -> LoadedMetric | None:
        """Return a task's metric as it was loaded; None when the harness brings its own."""
        return registry.metric(task)

    def num_units(self, n: int) -> int:
        """Return how many steps of the progress bar a cell of ``n`` examples is."""
        return n

    def num_tokens(self, n: int, length: int) -> int | None:
        """Return the tokens of ``n`` examples, reserved new ones included; None if only the data can tell."""
        return None if length == NATURAL else n * length

    def count(self, n: int) -> str:
        """Return ``n`` examples in words, for the progress on a pipe."""
        return pluralize(n, "example")

    def prefill_chunk(self, length: int) -> int:
        """Return how many tokens of a prompt of ``length`` tokens a forward pass must hold at least."""
        return _PREFILL_CHUNK

    def batches(
        self, engine: Engine, folder: Path, requests: Sequence[Request], per_prompt: bool
    ) -> Sequence[Sequence[Request]]:
        """Load a checkpoint and split a cell's requests into the engine's batches.

        Raises:
            UserError: the checkpoint cannot be loaded.
        """
        engine.load(folder)
        engine.peak_memory()  # Resets the peak of earlier cells.
        return engine.batches(requests, per_prompt)

    @abstractmethod
    def run_batch(
        self, engine: Engine, context: CellContext, batch: Sequence[Request], examples: Mapping[str, Example]
    ) -> BatchResult:
        """Run one batch on an engine that has loaded the checkpoint, and score it.

        Args:
            engine: with the weights of ``context.folder``.
            context: the cell's model, task and settings.
            batch: one of those that :meth:`batches` returned.
            examples: those of the batch, by id.

        Raises:
            UserError: a request does not fit in memory, or the task cannot be run.
        """


def _scored_batch(
    score: Callable[[Engine, Sequence[Request], ModelUnderTest, Metric, Mapping[str, Example]], list[SampleRecord]],
    engine: Engine,
    context: CellContext,
    batch: Sequence[Request],
    examples: Mapping[str, Example],
) -> BatchResult:
    metric = context.registry.metric(context.task).metric
    return BatchResult(score(engine, batch, context.model, metric, examples), engine.peak_memory(), engine.settings())


class GenerationStrategy(Strategy):
    """Greedy generation, scored by the task's metric."""

    def run_batch(
        self, engine: Engine, context: CellContext, batch: Sequence[Request], examples: Mapping[str, Example]
    ) -> BatchResult:
        """Generate and score a batch."""
        return _scored_batch(score_generations, engine, context, batch, examples)


class LossStrategy(Strategy):
    """Log-likelihoods of the text itself: mean loss per token, in nats."""

    equal_lengths = True
    _losses = True

    def prefill_chunk(self, length: int) -> int:
        """Return the whole row: its losses come from one forward pass."""
        return length

    def run_batch(
        self, engine: Engine, context: CellContext, batch: Sequence[Request], examples: Mapping[str, Example]
    ) -> BatchResult:
        """Score the log-likelihoods of a batch."""
        return _scored_batch(score_loglikelihoods, engine, context, batch, examples)


class LmEvalStrategy(Strategy):
    """A task that lm-eval runs whole: one batch without requests, which cannot be resumed half-way."""

    external = True

    def load_scoring(self, task: TaskSpec, registry: Registry) -> LoadedMetric | None:
        """Return None: lm-eval's tasks bring their own metrics."""
        return None

    def scoring(self, task: TaskSpec, registry: Registry) -> LoadedMetric | None:
        """Return None: lm-eval's tasks bring their own metrics."""
        return None

    def num_units(self, n: int) -> int:
        """Return 1: the task is run whole."""
        return 1

    def num_tokens(self, n: int, length: int) -> int | None:
        """Return None: the length of lm-eval's documents is not known in advance."""
        return None

    def count(self, n: int) -> str:
        """Return what is run: the number of documents is not known in advance."""
        return "lm-eval's documents"

    def batches(
        self, engine: Engine, folder: Path, requests: Sequence[Request], per_prompt: bool
    ) -> Sequence[Sequence[Request]]:
        """Load a checkpoint and return one batch without requests."""
        engine.load(folder)
        engine.peak_memory()
        return [()]

    def run_batch(
        self, engine: Engine, context: CellContext, batch: Sequence[Request], examples: Mapping[str, Example]
    ) -> BatchResult:
        """Run the task in lm-eval; errors as :func:`longctx_bench.lm_eval_adapter.run_task.run_task`."""
        # Imported here: the driver of a Ray cluster and `--dry-run` need no tokenizer.
        from longctx_bench.benchmarks.lm_eval_task import LMEval
        from longctx_bench.lm_eval_adapter.run_task import run_task
        from longctx_bench.models.checkpoint import load_tokenizer

        benchmark, settings = context.registry.benchmark(context.task), context.settings
        assert isinstance(benchmark, LMEval)
        began = perf_counter()
        result = run_task(
            engine,
            context.model,
            load_tokenizer(context.folder),
            benchmark,
            settings.limit,
            settings.seed,
            settings.chat_template,
        )
        summary = HarnessSummary(result.metric, result.score, result.details, round(perf_counter() - began, 3))
        return BatchResult(result.finished, engine.peak_memory(), engine.settings(), summary)


STRATEGIES: dict[str, Strategy] = {
    "generate": GenerationStrategy(),
    "loss": LossStrategy(),
    "lm_eval": LmEvalStrategy(),
}
"""By the benchmark's ``kind``."""


def run_settings(n: int, seed: int, chat_template: bool) -> RunSettings:
    """Return the settings of a cell of ``n`` examples, all of the data's where ``n`` is ``ALL``."""
    return RunSettings(None if n == ALL_EXAMPLES else n, seed, chat_template)
