"""Calibration objectives: needle retrieval, or log-likelihood of long text or of the answers of needle prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from longctx_bench.analysis.calibration import RETRIEVAL_TASKS
from longctx_bench.benchmarks.niah import NeedleInAHaystack
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.text_files import read_documents
from longctx_bench.core.types import Example, Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.metrics import Metric
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

SEED_OFFSET = 1_000_003
"""Added to the seed: calibration draws other keys, values and excerpts than any test with a smaller seed."""
_NEW_TOKENS = 16
"""Per answer: enough for a 7-digit number and a few words; a wrong answer need not be spelt out."""


class Objective(Protocol):
    """Scores a model with a method; higher is better."""

    name: str
    data: str
    """What it is measured on, in a phrase."""

    def score(self, model: ModelUnderTest, n: int) -> float:
        """Return the mean score over n examples of each kind at the model's length."""


def answer_ids(encoder: PromptEncoder, example: Example) -> tuple[int, ...]:
    """Return the tokens of a needle's answer as they follow its prompt."""
    text = f" {', '.join(example.references)}."
    return tuple(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def needle_benchmarks(registry: Registry, names: str) -> dict[str, NeedleInAHaystack]:
    """Return the benchmarks of comma-separated tasks whose answers are their references, by task.

    Raises:
        UserError: a task is unknown, or no needle task.
    """
    benchmarks: dict[str, NeedleInAHaystack] = {}
    for task in registry.select_tasks(names):
        benchmark = registry.benchmark(task)
        if not isinstance(benchmark, NeedleInAHaystack):
            raise UserError(f"--tasks {task.name}: calibration is on needle-in-a-haystack tasks")
        benchmarks[task.name] = benchmark
    return benchmarks


class _NeedlePrompts:
    """Prompts of needle tasks, made once for all values of a sweep.

    A CPU takes longer to generate long ones than a GPU to read them.
    """

    def __init__(self, encoder: PromptEncoder, registry: Registry, seed: int, tasks: str) -> None:
        self.seed = seed + SEED_OFFSET
        self._benchmarks = needle_benchmarks(registry, tasks)
        self.data = f"{' and '.join(self._benchmarks)}, seed {self.seed}"
        self._encoder = encoder
        self._examples_by_task: dict[tuple[str, int], tuple[int, list[Example], list[tuple[int, ...]]]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._benchmarks)

    def new_tokens(self, task: str) -> int:
        """Return the new tokens that a task's answers may have."""
        return _NEW_TOKENS * self._benchmarks[task].queries * self._benchmarks[task].values

    def first(self, task: str, length: int, n: int) -> tuple[list[Example], list[tuple[int, ...]]]:
        """Return the first n examples of a task, and their token ids."""
        count, examples, ids = self._examples_by_task.get((task, length), (0, [], []))
        if count < n:
            benchmark = self._benchmarks[task]
            examples = list(benchmark.examples(self._encoder, length, self.new_tokens(task), n, self.seed))
            ids = [tuple(self._encoder.encode(example.prompt, example.answer_prefix)) for example in examples]
            self._examples_by_task[task, length] = (n, examples, ids)
        return examples[:n], ids[:n]


class Retrieval:
    """Mean success of retrieval on needle tasks, by default single needles and one key among four on essays."""

    name = "retrieval"

    def __init__(
        self, engine: HFEngine, encoder: PromptEncoder, registry: Registry, seed: int, tasks: str = RETRIEVAL_TASKS
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._prompts = _NeedlePrompts(encoder, registry, seed, tasks)
        self.data = self._prompts.data

    def score(self, model: ModelUnderTest, n: int) -> float:
        """Return the mean over n examples of each task."""
        scores: list[float] = []
        for name in self._prompts.tasks:
            measure = self._registry.metric(self._registry.tasks[name]).metric
            examples, ids = self._prompts.first(name, model.length, n)
            new_tokens = self._prompts.new_tokens(name)
            requests = [Request(example.id, prompt, new_tokens) for example, prompt in zip(examples, ids, strict=True)]
            references = {example.id: example.references for example in examples}

            def settled(
                name: str, text: str, known: dict[str, tuple[str, ...]] = references, measure: Metric = measure
            ) -> bool:
                return measure.is_final(text, known[name])

            for batch in self._engine.batches(requests, per_prompt=model.method.per_prompt):
                for item in self._engine.generate(batch, model, settled):
                    scores.append(measure.score(item.text, references[item.example_id]))
        return sum(scores) / len(scores)


class NeedleLoss:
    """Mean log-likelihood per token of the answers of needle prompts on essays (LongRoPE2, arXiv 2502.20082)."""

    name = "needle-loss"

    def __init__(self, engine: HFEngine, encoder: PromptEncoder, registry: Registry, seed: int) -> None:
        self._engine = engine
        self._encoder = encoder
        self._prompts = _NeedlePrompts(encoder, registry, seed, RETRIEVAL_TASKS)
        self.data = self._prompts.data

    def score(self, model: ModelUnderTest, n: int) -> float:
        """Return minus the mean loss in nats over the answers of n examples of each task."""
        batches = (
            batch for task in self._prompts.tasks for batch in self._batches(self._requests(task, model.length, n))
        )
        return _mean_loglikelihood(self._engine, batches, model)

    def _requests(self, task: str, length: int, n: int) -> list[Request]:
        examples, prompts = self._prompts.first(task, length, n)
        answers = [answer_ids(self._encoder, example) for example in examples]
        return [
            Request(example.id, (*prompt, *answer), 0, scored=len(answer))
            for example, prompt, answer in zip(examples, prompts, answers, strict=True)
        ]

    def _batches(self, requests: Sequence[Request]) -> Iterable[Sequence[Request]]:
        """Return batches for the engine; on a CPU single requests, so that free memory has no part in the result."""
        if self._engine.device == "cpu":
            return [[request] for request in requests]
        return self._engine.batches(requests, per_prompt=True)


class Perplexity:
    """Mean log-likelihood per token in windows of the full length, cut from one text file."""

    name = "perplexity"

    def __init__(self, engine: HFEngine, encoder: PromptEncoder, text: Path) -> None:
        self._engine = engine
        self._encoder = encoder
        self._text = text
        self._ids: list[int] = []
        self.data = f"text {text.name}"

    def score(self, model: ModelUnderTest, n: int) -> float:
        """Return minus the mean loss in nats over at most n windows."""
        windows = self._windows(model.length, n)
        requests = [Request(str(index), ids, 0, scored=len(ids) - 1) for index, ids in enumerate(windows)]
        return _mean_loglikelihood(self._engine, self._engine.batches(requests, per_prompt=True), model)

    def _windows(self, length: int, n: int) -> Sequence[Sequence[int]]:
        if not self._ids:
            eos = self._encoder.tokenizer.eos_token_id
            for document in read_documents(self._text):
                ids = self._encoder.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
                self._ids += [*ids, *([] if eos is None else [eos])]
                if len(self._ids) > 2_000_000:
                    break
        windows = [self._ids[start : start + length] for start in range(0, len(self._ids) - length + 1, length)][:n]
        if not windows:
            raise UserError(f"--text {self._text}: holds {len(self._ids)} tokens, one window takes {length}")
        return windows


def _mean_loglikelihood(engine: HFEngine, batches: Iterable[Sequence[Request]], model: ModelUnderTest) -> float:
    """Return minus the mean loss in nats over all scored tokens."""
    losses = [item.losses for batch in batches for item in engine.loglikelihood(batch, model)]
    return -sum(map(sum, losses)) / sum(map(len, losses))
