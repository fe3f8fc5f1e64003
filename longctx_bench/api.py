"""The Python door: what the command line does, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from longctx_bench.engines import require_server
from longctx_bench.engines.checkpoints import checkpoint_folder, load_tokenizer, read_config
from longctx_bench.engines.servers import Server
from longctx_bench.errors import UserError
from longctx_bench.executors import make_executor
from longctx_bench.plan import RunSpec, plan
from longctx_bench.registry import Registry
from longctx_bench.reporting.summaries import read_cells
from longctx_bench.runner import Runner
from longctx_bench.store import ResultStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel


COLUMNS = [
    "cell", "model", "method", "task", "length", "scale", "factor", "factor_source", "metric", "score", "low", "high",
    "n", "seconds",
]  # fmt: skip
"""Of the frames that :func:`run` and :func:`report` return."""


def load(
    name: str, length: int | None = None, dtype: str = "auto", device: str = "auto", registry: Registry | None = None
) -> tuple[PreTrainedModel, Any]:
    """Load a model with a method applied for good, ready for any loop of your own.

    Args:
        name: as ``--model`` takes it: ``yarn-smollm2-135m``, ``pi:org/name``, a folder.
        length: tokens that the model is to read; its training context when None.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        registry: knows the names; the built-in one when None.

    Returns:
        The transformers model, in evaluation mode on the device, and its tokenizer. The model takes
        ``input_ids`` of shape [batch, tokens] and gives logits of shape [batch, tokens, vocabulary].

    Raises:
        UserError: an unknown name, weights that cannot be had, or a method that depends on each prompt's
            length (dynamic-ntk) and so cannot be applied once for all prompts.
    """
    from longctx_bench.engines.base import Contestant
    from longctx_bench.engines.hf import HFEngine, load_model, prepared

    variant = (registry or Registry()).variant(name)
    if variant.method.per_prompt:
        raise UserError(
            f"{name}: {variant.method_name} follows each prompt's length and cannot be loaded for all; use run()"
        )
    folder = checkpoint_folder(variant.source)
    base = variant.base(read_config(folder))
    engine = HFEngine(device, dtype)
    model = load_model(folder, engine.dtype, engine.device)
    length = length or variant.model.original_length
    # Entered and never left: the caller keeps the model as the method made it, and the model keeps the context,
    # which would be undone if it were collected.
    applied: Any = prepared(model, Contestant(base, variant.method, length), length)
    applied.__enter__()
    object.__setattr__(model, "_longctx_bench_applied", applied)
    return model, load_tokenizer(folder)


def run(
    model: str,
    tasks: str = "niah",
    scale: Sequence[float] = (),
    length: Sequence[int] = (),
    limit: int | None = None,
    seed: int = 42,
    protocol: str | None = None,
    engine: str = "hf",
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    chat_template: bool = False,
    out: str | Path = "results",
    rerun: bool = False,
    registry: Registry | None = None,
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    server: Server | None = None,
    tensor_parallel: int = 1,
    compiled: bool = False,
) -> pd.DataFrame:
    """Measure models on tasks, as ``longctx-bench run`` does, and return the finished cells.

    Args:
        model: comma-separated names as ``--model`` takes them.
        tasks: comma-separated tasks or groups.
        scale: multiples of each model's training context.
        length: absolute lengths in tokens.
        limit: examples a cell; each task's own number when None.
        seed: of all random choices in the examples.
        protocol: ``ruler@paper`` for upstream's own procedure.
        engine: ``hf``, ``openai`` or ``echo``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_tokens: tokens a batch; from the free memory when None.
        chat_template: put prompts into the model's chat template.
        out: the run's folder; what it holds already is not measured again.
        rerun: measure again what is there.
        registry: knows the names; the built-in one when None.
        executor: ``local``, or ``ray`` for the workers of a Ray cluster.
        workers: engines on the Ray cluster; one a GPU, or without GPUs one a node, when None.
        ray_address: of the Ray cluster; the one that Ray finds, or a new one on this machine, when None.
        server: what ``openai`` asks.
        tensor_parallel: devices that share each layer, with ``vllm``.
        compiled: fuse a model's small kernels, with ``hf``; its numbers change in their last bits.

    Returns:
        One row a finished cell of this call, with the columns of :func:`report`. ``attrs["skipped"]`` says which
        cells do not exist, because their task does not fit their length.

    Raises:
        UserError: bad input, or a cell that could not be finished (the others are, and are kept).
    """
    registry = registry or Registry()
    spec = RunSpec(
        registry.variants(model), registry.select_tasks(tasks, protocol), tuple(scale), tuple(length), limit, seed,
        chat_template, rerun,
    )  # fmt: skip
    made = {"name": engine, "device": device, "dtype": dtype, "batch_tokens": batch_tokens, "server": server}
    made |= {"tensor_parallel": tensor_parallel, "compiled": compiled}
    store = ResultStore(Path(out))
    with make_executor(executor, made, registry, workers, ray_address) as runs_on:
        cells = plan(spec, runs_on.engine, store, registry)
        if not all(planned.done for planned in cells):
            require_server(runs_on.engine)
        outcome = Runner(runs_on, store, registry, spec).run(cells)
    if outcome.failed:
        cell, reason = outcome.failed[0]
        raise UserError(f"{len(outcome.failed)} cells failed; the first is {cell}: {reason}")
    frame = report(out) if outcome.finished else pd.DataFrame(columns=COLUMNS)
    frame = frame[frame["cell"].isin({str(cell) for cell in outcome.finished})].reset_index(drop=True)
    frame.attrs["skipped"] = {str(cell): reason for cell, reason in outcome.skipped}
    return frame


def report(folder: str | Path = "results") -> pd.DataFrame:
    """Return the finished cells below a run's folder.

    Returns:
        One row a cell, with the columns ``COLUMNS``; ``score``, ``low`` and ``high`` (95 % interval) are in [0, 1],
        ``factor`` is the extension factor that the method used, ``derived`` from the length or ``fixed``.

    Raises:
        UserError: the folder holds no results.
    """
    rows = [
        {
            "cell": str(summary.cell),
            "model": summary.cell.model,
            "method": summary.cell.method,
            "task": summary.cell.task,
            "length": summary.cell.length,
            "scale": summary.scale,
            "factor": summary.details["factor"],
            "factor_source": summary.details["factor_source"],
            "metric": summary.metric,
            "score": summary.score,
            "low": summary.low,
            "high": summary.high,
            "n": summary.n,
            "seconds": summary.details["seconds"],
        }
        for summary in read_cells(Path(folder)).finished
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
