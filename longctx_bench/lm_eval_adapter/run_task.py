"""Runs an lm-eval task on our models and converts its samples to our records."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_bench.benchmarks.lm_eval_task import LMEval
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import SampleRecord
from longctx_bench.engines.base import Engine
from longctx_bench.models.variant import ModelUnderTest

_PREFERRED = ("acc_norm", "acc", "exact_match", "f1")
"""The first of these metrics that a task has is its score; otherwise its first metric."""


@dataclass(frozen=True)
class LmEvalResult:
    """The result of an lm-eval task."""

    finished: list[SampleRecord]
    metric: str
    score: float
    """lm-eval's aggregate of that metric."""
    details: dict[str, Any]
    """All metrics, the task's version and its number of few-shot examples."""


def run_task(
    engine: Engine,
    model: ModelUnderTest,
    tokenizer: Any,
    benchmark: LMEval,
    limit: int | None,
    seed: int,
    chat_template: bool,
) -> LmEvalResult:
    """Run one task of lm-eval.

    Args:
        engine: has loaded the model's weights.
        model: base, method and maximum context length.
        tokenizer: of the checkpoint.
        benchmark: the task.
        limit: number of documents; all if None.
        seed: for few-shot examples.
        chat_template: apply the model's chat template.

    Raises:
        UserError: lm-eval is not installed, has no such task, or cannot load its data.
    """
    try:
        from lm_eval.evaluator import simple_evaluate
    except ImportError as error:
        raise UserError("lm_eval tasks need the package 'lm-eval': pip install 'longctx-bench[lm-eval]'") from error
    from longctx_bench.lm_eval_adapter.lm import LongCtxLM

    # Its progress bars and log messages would break up our progress.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(benchmark)
    lm = LongCtxLM(engine, model, tokenizer)
    try:
        with redirect_stderr(io.StringIO()), without_git(), _without_environment():
            evaluation = simple_evaluate(
                model=lm,
                tasks=[benchmark.task],
                num_fewshot=benchmark.num_fewshot,
                limit=limit,
                task_manager=manager,
                bootstrap_iters=0,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                apply_chat_template=chat_template,
                log_samples=True,
            )
    except UserError:
        raise
    except Exception as error:  # a task's data, templates and code may raise anything
        raise UserError(f"lm_eval:{benchmark.task}: {type(error).__name__}: {_first_line(error)}") from error
    assert evaluation is not None
    results: dict[str, Any] = evaluation["results"]
    return _result(results[benchmark.task], evaluation["samples"][benchmark.task], evaluation, benchmark.task)


def without_git() -> AbstractContextManager[None]:
    """Stop lm-eval from calling git in the current folder, which prints an error outside a repository."""
    return _replaced("get_git_commit_hash", lambda: None)  # the cell records this project's commit


def _without_environment() -> AbstractContextManager[None]:
    """Keep lm-eval from asking pip and gcc what the environment is, which takes seconds: the cell records it."""
    return _replaced("add_env_info", lambda storage: None)


@contextmanager
def _replaced(name: str, function: Callable[..., None]) -> Iterator[None]:
    """Replace a function of lm-eval's evaluator."""
    from lm_eval import evaluator

    original = getattr(evaluator, name)
    setattr(evaluator, name, function)
    try:
        yield
    finally:
        setattr(evaluator, name, original)


def _manager(benchmark: LMEval) -> Any:
    import lm_eval.tasks

    stock = Path(lm_eval.tasks.__file__).parent
    folders = [benchmark.include.path] if benchmark.include else []
    if not folders:
        # Indexing all of lm-eval's 14,000 task files takes 15 seconds; the task's own folder, none.
        folders = [file.parent for file in stock.rglob(f"{benchmark.task}.yaml")][:1]
    manager = lm_eval.tasks.TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    if benchmark.task not in manager.all_tasks:
        manager = lm_eval.tasks.TaskManager(include_path=[str(folder) for folder in folders])
    if benchmark.task not in manager.all_tasks:
        raise UserError(
            f"lm_eval:{benchmark.task}: lm-eval has no such task (`lm-eval ls tasks` lists them), and "
            f"no YAML file in lm_eval/ of an --include-path has `task: {benchmark.task}`"
        )
    if benchmark.task in {*manager.all_groups, *manager.all_tags}:
        raise UserError(f"lm_eval:{benchmark.task} is a group of tasks; name them one by one")
    return manager


def _result(results: dict[str, Any], samples: Sequence[dict[str, Any]], evaluation: Any, task: str) -> LmEvalResult:
    aggregated = {
        key: float(value)
        for key, value in results.items()
        if "," in key and isinstance(value, int | float) and not key.partition(",")[0].endswith("_stderr")
    }
    names = {key.partition(",")[0]: key for key in reversed(aggregated)}
    metric = next((name for name in _PREFERRED if name in names), next(iter(reversed(names)), None))
    if metric is None:
        raise UserError(f"lm_eval:{task}: reports no score; run it with lm-eval itself")
    # A task may have several answer filters (gsm8k: strict, flexible): take the samples of the metric's.
    filter_name = names[metric].partition(",")[2]
    samples = sorted(
        (s for s in samples if s.get("filter", filter_name) == filter_name), key=lambda s: int(s["doc_id"])
    )
    if not samples or not isinstance(samples[0].get(metric), int | float):
        raise UserError(f"lm_eval:{task}: reports no score per document; run it with lm-eval itself")
    finished = [SampleRecord(_record(sample, metric), 0.0) for sample in samples]
    details = {
        "results": aggregated,
        "version": evaluation["versions"].get(task),
        "num_fewshot": evaluation["n-shot"].get(task),
        "higher_is_better": evaluation.get("higher_is_better", {}).get(task, {}).get(metric, True),
    }
    return LmEvalResult(finished, metric, aggregated[names[metric]], details)


def _record(sample: dict[str, Any], metric: str) -> dict[str, Any]:
    return {
        "id": f"{int(sample['doc_id']):06d}",
        "hash": str(sample["prompt_hash"])[:32],
        "score": float(sample[metric]),
        "metric": metric,
        "text": str(sample["filtered_resps"]),
        "references": [str(sample["target"])],
        "depths": [],
        "prompt_tokens": 0,
        "new_tokens": 0,
        "finish_reason": "lm_eval",
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
