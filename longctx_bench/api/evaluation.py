"""Python API of the run commands: run, report, compare, figures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from longctx_bench.api.notebook import FigureSet, ResultFrame, result_frame
from longctx_bench.core.argument_parsing import (
    Lengths,
    Names,
    Scales,
    dtype_name,
    join_names,
    parse_int,
    parse_lengths,
    parse_path,
    parse_scales,
    parse_seed,
    split_commas,
)
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.sanitize import pluralize
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.engines import check_server
from longctx_bench.engines.openai_api.config import ServerConfig
from longctx_bench.registry import Registry
from longctx_bench.reporting.results import CellSummary, read_cells
from longctx_bench.reporting.tables.formatting import cell_columns
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.runner.executors import make_executor
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.runner.progress_bar import ProgressBar, is_interactive
from longctx_bench.runner.run import NoProgress, Progress, Runner
from longctx_bench.store.run_store import ResultStore

COLUMNS = [
    "cell", "model", "base", "method", "task", "length", "scale", "factor", "factor_source", "metric", "score", "low",
    "high", "n", "seconds",
]  # fmt: skip
"""Columns of the frames of :func:`run` and :func:`report`; ``model`` is the name that ``--model`` takes."""


def run(
    model: Names,
    tasks: Names = "niah",
    scale: Scales = None,
    length: Lengths = None,
    limit: int | None = None,
    seed: int = 42,
    protocol: str | None = None,
    engine: str = "hf",
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    chat_template: bool = False,
    out: str | Path = "results",
    overwrite: bool = False,
    registry: Registry | None = None,
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    server: ServerConfig | None = None,
    tensor_parallel: int = 1,
    compiled: bool = False,
    progress: bool | None = None,
    rerun: bool | None = None,
) -> ResultFrame:
    """Measure models on tasks, as ``longctx-bench run`` does, and return the finished cells.

    Examples:
        >>> frame = run("rope-tiny,yarn-tiny", scale="1x,2x", limit=2, device="cpu", out=folder)
        >>> frame[["method", "length", "score"]].values.tolist()
        [['rope', 512, 1.0], ['rope', 1024, 0.0], ['yarn', 512, 1.0], ['yarn', 1024, 1.0]]

    Args:
        model: names as ``--model`` takes them, with commas or as a list.
        tasks: tasks or groups, with commas or as a list.
        scale: multiples of each model's training context: ``"1x,2x"``, ``2`` or a list of either.
        length: absolute lengths in tokens: ``4096``, ``"4k,natural"`` or a list of either. Without scale and length,
            once and twice the training context.
        limit: examples per task and length; the task's if None.
        seed: of all random choices in the examples.
        protocol: ``ruler@paper`` for RULER's own scripts.
        engine: ``hf``, ``vllm``, ``openai`` or ``echo``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_tokens: maximum tokens per batch; from free memory if None.
        chat_template: apply the model's chat template to prompts.
        out: results folder; cells that it already has are not measured again.
        overwrite: measure existing cells again; their old results move to ``superseded/``.
        registry: resolves names; the built-in one if None.
        executor: ``local``, or ``ray`` for a Ray cluster.
        workers: engines on the Ray cluster; if None, one per GPU, or one per node without GPUs.
        ray_address: Ray cluster address; if None, the one that Ray finds, or a new one on this machine.
        server: the server of ``openai``.
        tensor_parallel: tensor-parallel GPUs, with ``vllm``.
        compiled: use torch.compile, with ``hf``; results change in the last bits.
        progress: show a progress bar with an ETA; if None, in a terminal and in a notebook.
        rerun: deprecated, the old name of ``overwrite``.

    Returns:
        One row per finished cell of this call, with the columns of :func:`report`. ``attrs["skipped"]`` has the cells
        whose task does not fit their length, with the reason.

    Raises:
        UserError: bad input, or a failed cell (the other cells are finished and kept).
    """
    if rerun is not None:
        warnings.warn("rerun= is deprecated and will be removed in the next release; use overwrite=", FutureWarning, 2)
    registry = registry or Registry()
    scales, lengths = parse_scales(scale, "scale"), parse_lengths(length, "length")
    spec = RunSpec(
        registry.variants(join_names(model, "model")), registry.select_tasks(join_names(tasks, "tasks"), protocol),
        scales if scales or lengths else (1.0, 2.0), lengths, parse_int(limit, "limit"), parse_seed(seed),
        bool(chat_template), bool(overwrite or rerun),
    )  # fmt: skip
    engine_options: dict[str, Any] = {
        "name": str(engine),
        "device": str(device),
        "dtype": dtype_name(dtype),
        "server": server,
    }
    engine_options |= {"batch_tokens": parse_int(batch_tokens, "batch_tokens"), "compiled": bool(compiled)}
    engine_options["tensor_parallel"] = parse_int(tensor_parallel, "tensor_parallel")
    store = ResultStore(parse_path(out, "out"))
    with make_executor(
        executor, engine_options, registry, parse_int(workers, "workers"), ray_address
    ) as batch_executor:
        cells = plan(spec, batch_executor.engine, store, registry)
        if not all(planned.done for planned in cells):
            check_server(batch_executor.engine)
        show_bar = is_interactive() if progress is None else progress
        bar: AbstractContextManager[Progress] = ProgressBar() if show_bar else nullcontext(NoProgress())
        with bar as watcher:
            result = Runner(batch_executor, store, registry, spec, watcher).run(cells)
    if result.failed:
        cell, reason = result.failed[0]
        first = "" if len(result.failed) == 1 else "the first is "
        raise UserError(f"{pluralize(len(result.failed), 'cell')} failed: {first}{cell}: {reason}")
    finished = set(result.finished)
    summaries = [s for s in read_cells(Path(out)).finished if s.cell in finished] if finished else []
    frame = _frame(summaries, [f"skipped: {cell}: {reason}" for cell, reason in result.skipped])
    frame.attrs["skipped"] = {str(cell): reason for cell, reason in result.skipped}
    return frame


def report(folder: str | Path = "results") -> ResultFrame:
    """Return the finished cells of a results folder; a notebook shows them as ``longctx-bench report`` does.

    Examples:
        >>> frame = report(folder)
        >>> frame.loc[frame["scale"] == 2, ["cell", "n"]].values.tolist()
        [['rope-tiny/niah/1024', 2], ['yarn-tiny/niah/1024', 2]]

    Returns:
        One row per cell, with the columns ``COLUMNS``; ``score``, ``low`` and ``high`` (95 % interval) are in [0, 1],
        ``factor`` is the extension factor that the method used, ``derived`` from the length or ``fixed``. ``notes``
        has a line per missing cell.

    Raises:
        UserError: the folder holds no results.
    """
    results = read_cells(parse_path(folder, "folder"))
    return _frame(results.finished, [f"missing: {line}" for line in results.missing])


def compare(
    a: Names,
    b: str,
    folder: str | Path = "results",
    tasks: Names | None = None,
    scale: Scales = None,
    length: Lengths = None,
) -> ResultFrame:
    """Compare models of a results folder on identical examples, as ``longctx-bench compare`` does.

    Examples:
        >>> frame = compare("yarn-tiny", "rope-tiny", folder, scale="2x")
        >>> frame[["task", "length", "n", "difference"]].values.tolist()
        [['niah', 1024, 2, 1.0]]

    Args:
        a: a model, such as ``yarn-tiny``; several, comma-separated or as a list; or ``all``.
        b: the model that it is, or they are, compared with.
        folder: results folder.
        tasks: tasks to compare, comma-separated or as a list; all if None.
        scale: multiples of the training context to compare, as for :func:`run`; all if None.
        length: lengths to compare, as for :func:`run`; all if None.

    Returns:
        One row per cell: ``a``, ``b``, ``task``, ``length``, ``scale``, ``metric``, ``higher_is_better``, ``n``,
        ``score_a``, ``score_b``, ``difference`` with its 95 % interval ``low`` and ``high``, ``p``, ``p_holm`` (over
        the frame; where several models are compared, over their cells of the task), ``wins``, ``ties``, ``losses`` and
        ``test``. Scores are in [0, 1], losses in nats; ``notes`` has a line per excluded cell.

    Raises:
        UserError: a name is unknown, or the models share no example.
    """
    from longctx_bench.reporting.comparison import lines_left_out
    from longctx_bench.reporting.comparison_selection import compare_several
    from longctx_bench.reporting.tables.comparison_tables import comparison_tables, exact_rows

    path = parse_path(folder, "folder")
    selected = split_commas(join_names(tasks, "tasks"))
    scales, lengths = parse_scales(scale, "scale"), parse_lengths(length, "length")
    names = split_commas(join_names(a, "a"))
    comparisons, missing = compare_several(read_cells(path), path, names, str(b), selected, scales, lengths)
    rows = exact_rows(comparisons)
    notes = [f"left out: {line}" for line in lines_left_out(comparisons)] + [f"missing: {line}" for line in missing]
    return result_frame(rows, list(rows[0]), partial(comparison_tables, comparisons), notes)


def figures(
    folder: str | Path = "results",
    kind: Names | None = None,
    task: Names | None = None,
    scale: float | str | None = None,
    checkpoints: str | Path | Sequence[str | Path] = (),
    paper: str | Path | None = None,
    base: Names | None = None,
) -> FigureSet:
    """Draw figures of a results folder, as ``longctx-bench figures`` does, without writing files.

    Examples:
        >>> drawn = figures(folder, "length")
        >>> drawn.save(folder / "figures", "png")[0].name
        'all-length.png'

    Args:
        folder: results folder.
        kind: ``heatmap`` (when None), ``length``, ``bars``, ``tasks``, ``in-context``, ``curves``, ``factors``,
            ``attention``, comma-separated or as a list, or ``all`` for everything the folder has data for.
        task: tasks to draw, comma-separated or as a list; all if None.
        scale: for bars, tasks and in-context: ``"4x"``, 4 or ``"natural"``.
        checkpoints: folders with ``loss.csv`` files, for curves. Without them, ``kind="curves"`` draws those of the
            shipped checkpoints that were measured.
        paper: instead, all figures of a paper that the folder has data for: ``drope``, or a YAML file of yours. It says
            what is drawn, so that kind, task, scale and checkpoints do not go with it.
        base: with a paper, the measured models to show, comma-separated or as a list; all if None.

    Returns:
        Matplotlib figures by name; :meth:`~longctx_bench.api.notebook.FigureSet.save` writes them. ``left_out`` has a
        line per figure without data.

    Raises:
        UserError: an unknown kind, task or paper, or the folder has no data for it.
    """
    from longctx_bench.reporting.figures.registry import FIGURE_KINDS, FigureInputs, draw_figures

    if paper is not None:
        if not (kind is None and task is None and scale is None and checkpoints == ()):
            raise UserError("paper: its YAML says what is drawn; kind, task, scale and checkpoints do not go with it")
        return _paper_figures(paper, parse_path(folder, "folder"), split_commas(join_names(base, "base")))
    if base is not None:
        raise UserError("base goes with paper")
    requested = split_commas(join_names("heatmap" if kind is None else kind, "kind"))
    kinds = list(FIGURE_KINDS) if requested == ["all"] else requested
    for name in kinds:
        if name not in FIGURE_KINDS:
            raise UserError(f"kind {name}: unknown{did_you_mean(name, [*FIGURE_KINDS, 'all'])}")
    if not kinds:
        raise UserError(f"kind: names nothing; known: {', '.join(FIGURE_KINDS)}")
    is_natural = isinstance(scale, str) and scale.strip().lower() == length_name(NATURAL)
    scales = (float(NATURAL),) if is_natural else parse_scales(scale, "scale")
    if len(scales) > 1:
        raise UserError(f"scale {scale}: expected one scale, such as 2x")
    checkpoint_folders = tuple(Path(part) for part in split_commas(join_names(checkpoints, "checkpoints")))
    selected = tuple(split_commas(join_names(task, "task")))
    inputs = FigureInputs(
        parse_path(folder, "folder"),
        selected,
        scales[0] if scales else None,
        checkpoints=checkpoint_folders,
        shipped_curves=requested != ["all"],  # they are of other runs than the folder's
    )
    left_out: list[str] = []
    drawn = FigureSet(draw_figures(inputs, kinds, left_out.append))
    drawn.left_out = tuple(left_out)
    return drawn


def _paper_figures(paper: str | Path, folder: Path, models: Sequence[str]) -> FigureSet:
    from longctx_bench.reporting.figures.registry import FigureInputs
    from longctx_bench.reporting.papers.paper_figures import paper_figures
    from longctx_bench.reporting.papers.paper_spec import read_paper
    from longctx_bench.reporting.papers.result_lookup import require_models

    inputs = FigureInputs(folder, models=tuple(models))
    layout = read_paper(join_names(paper, "paper"))
    require_models(inputs.results.finished, models)
    figures_by_name = dict(paper_figures(layout, inputs))
    drawn = FigureSet({name: figure for name, figure in figures_by_name.items() if not isinstance(figure, str)})
    drawn.left_out = tuple(f"{name}, {figure}" for name, figure in figures_by_name.items() if isinstance(figure, str))
    return drawn


def _frame(summaries: Sequence[CellSummary], notes: Sequence[str]) -> ResultFrame:
    rows = [
        {
            "cell": str(summary.cell),
            **cell_columns(summary),
            "scale": summary.scale,
            "factor": summary.result.factor,
            "factor_source": summary.result.factor_source,
            "metric": summary.metric,
            "score": summary.score,
            "low": summary.low,
            "high": summary.high,
            "n": summary.n,
            "seconds": summary.result.seconds,
        }
        for summary in summaries
    ]
    return result_frame(rows, COLUMNS, partial(length_tables, summaries), notes)
