"""What the command line does with results, as functions: measure, report, compare, draw."""

from __future__ import annotations

from collections.abc import Sequence
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
from longctx_bench.runner.run import Runner
from longctx_bench.store.run_store import ResultStore

COLUMNS = [
    "cell", "model", "base", "method", "task", "length", "scale", "factor", "factor_source", "metric", "score", "low",
    "high", "n", "seconds",
]  # fmt: skip
"""Of the frames that :func:`run` and :func:`report` return; ``model`` is the name that ``--model`` takes."""


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
    rerun: bool = False,
    registry: Registry | None = None,
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    server: ServerConfig | None = None,
    tensor_parallel: int = 1,
    compiled: bool = False,
) -> ResultFrame:
    """Measure models on tasks, as ``longctx-bench run`` does, and return the finished cells.

    Example:
        >>> frame = run("rope-tiny,yarn-tiny", scale="1x,2x", limit=2, device="cpu", out=folder)
        >>> frame[["method", "length", "score"]].values.tolist()
        [['rope', 512, 1.0], ['rope', 1024, 0.0], ['yarn', 512, 1.0], ['yarn', 1024, 1.0]]

    Args:
        model: names as ``--model`` takes them, with commas or as a list.
        tasks: tasks or groups, with commas or as a list.
        scale: multiples of each model's training context: ``"1x,2x"``, ``2`` or a list of either.
        length: absolute lengths in tokens: ``4096``, ``"4k,natural"`` or a list of either. Without scale and length,
            once and twice the training context.
        limit: examples a cell; each task's own number when None.
        seed: of all random choices in the examples.
        protocol: ``ruler@paper`` for upstream's own procedure.
        engine: ``hf``, ``vllm``, ``openai`` or ``echo``.
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
    scales, lengths = parse_scales(scale, "scale"), parse_lengths(length, "length")
    spec = RunSpec(
        registry.variants(join_names(model, "model")), registry.select_tasks(join_names(tasks, "tasks"), protocol),
        scales if scales or lengths else (1.0, 2.0), lengths, parse_int(limit, "limit"), parse_seed(seed),
        bool(chat_template), bool(rerun),
    )  # fmt: skip
    made: dict[str, Any] = {"name": str(engine), "device": str(device), "dtype": dtype_name(dtype), "server": server}
    made |= {"batch_tokens": parse_int(batch_tokens, "batch_tokens"), "compiled": bool(compiled)}
    made["tensor_parallel"] = parse_int(tensor_parallel, "tensor_parallel")
    store = ResultStore(parse_path(out, "out"))
    with make_executor(executor, made, registry, parse_int(workers, "workers"), ray_address) as runs_on:
        cells = plan(spec, runs_on.engine, store, registry)
        if not all(planned.done for planned in cells):
            check_server(runs_on.engine)
        outcome = Runner(runs_on, store, registry, spec).run(cells)
    if outcome.failed:
        cell, reason = outcome.failed[0]
        first = "" if len(outcome.failed) == 1 else "the first is "
        raise UserError(f"{pluralize(len(outcome.failed), 'cell')} failed: {first}{cell}: {reason}")
    finished = set(outcome.finished)
    summaries = [s for s in read_cells(Path(out)).finished if s.cell in finished] if finished else []
    frame = _frame(summaries, [f"skipped: {cell}: {reason}" for cell, reason in outcome.skipped])
    frame.attrs["skipped"] = {str(cell): reason for cell, reason in outcome.skipped}
    return frame


def report(folder: str | Path = "results") -> ResultFrame:
    """Return the finished cells below a run's folder; a notebook shows them as ``longctx-bench report`` does.

    Example:
        >>> frame = report(folder)
        >>> frame.loc[frame["scale"] == 2, ["cell", "n"]].values.tolist()
        [['rope-tiny/niah/1024', 2], ['yarn-tiny/niah/1024', 2]]

    Returns:
        One row a cell, with the columns ``COLUMNS``; ``score``, ``low`` and ``high`` (95 % interval) are in [0, 1],
        ``factor`` is the extension factor that the method used, ``derived`` from the length or ``fixed``. ``notes``
        has a line for each cell that is missing.

    Raises:
        UserError: the folder holds no results.
    """
    results = read_cells(parse_path(folder, "folder"))
    return _frame(results.finished, [f"missing: {line}" for line in results.missing])


def compare(
    a: str,
    b: str,
    folder: str | Path = "results",
    tasks: Names | None = None,
    scale: Scales = None,
    length: Lengths = None,
) -> ResultFrame:
    """Compare two contestants of a run's folder on identical examples, as ``longctx-bench compare`` does.

    Example:
        >>> frame = compare("yarn-tiny", "rope-tiny", folder, scale="2x")
        >>> frame[["task", "length", "n", "difference"]].values.tolist()
        [['niah', 1024, 2, 1.0]]

    Args:
        a: a contestant, such as ``yarn-tiny``.
        b: another one.
        folder: the run's.
        tasks: to compare, with commas or as a list; all when None.
        scale: multiples of the training context to compare, as for :func:`run`; all when None.
        length: lengths to compare, as for :func:`run`; all when None.

    Returns:
        One row a cell: ``a``, ``b``, ``task``, ``length``, ``scale``, ``metric``, ``higher_is_better``, ``n``,
        ``score_a``, ``score_b``, ``difference`` with its 95 % interval ``low`` and ``high``, ``p``, ``p_holm`` (over
        the frame), ``wins``, ``ties``, ``losses`` and ``test``. Scores are in [0, 1], losses in nats; ``notes`` has a
        line for what was left out.

    Raises:
        UserError: a name is unknown, or the two share no example.
    """
    from longctx_bench.reporting.comparison_selection import compare_chosen
    from longctx_bench.reporting.tables.comparison_tables import comparison_tables, exact_rows

    path = parse_path(folder, "folder")
    chosen = split_commas(join_names(tasks, "tasks"))
    scales, lengths = parse_scales(scale, "scale"), parse_lengths(length, "length")
    found, missing = compare_chosen(read_cells(path), path, str(a), str(b), chosen, scales, lengths)
    rows = exact_rows(found)
    notes = [f"left out: {line}" for line in found.refused] + [f"missing: {line}" for line in missing]
    return result_frame(rows, list(rows[0]), partial(comparison_tables, found), notes)


def figures(
    folder: str | Path = "results",
    kind: Names | None = None,
    task: Names | None = None,
    scale: float | str | None = None,
    checkpoints: str | Path | Sequence[str | Path] = (),
    paper: str | Path | None = None,
    base: Names | None = None,
) -> FigureSet:
    """Draw a run's folder, as ``longctx-bench figures`` does, without writing anything.

    Example:
        >>> drawn = figures(folder, "length")
        >>> drawn.save(folder / "figures", "png")[0].name
        'all-length.png'

    Args:
        folder: the run's.
        kind: ``heatmap`` (when None), ``length``, ``bars``, ``tasks``, ``in-context``, ``curves``, ``factors``,
            ``attention``, with commas or as a list, or ``all`` for what the folder has data for.
        task: the tasks to draw, with commas or as a list; all when None.
        scale: of bars, tasks and in-context: ``"4x"``, 4 or ``"natural"``.
        checkpoints: folders with ``loss.csv`` files, for curves. Without them, ``kind="curves"`` draws those of the
            shipped checkpoints that were measured.
        paper: instead, all figures of a paper that the folder has data for: ``drope``, or a YAML file of yours. It says
            what is drawn, so that kind, task, scale and checkpoints do not go with it.
        base: with a paper, the measured models to show, with commas or as a list; all when None.

    Returns:
        Matplotlib figures by name; :meth:`~longctx_bench.api.notebook.FigureSet.save` writes them. ``left_out`` has a
        line for each that the folder has no data for.

    Raises:
        UserError: an unknown kind, task or paper, or the folder has no data for it.
    """
    from longctx_bench.reporting.figures.registry import KINDS, Material, draw

    if paper is not None:
        if not (kind is None and task is None and scale is None and checkpoints == ()):
            raise UserError("paper: its YAML says what is drawn; kind, task, scale and checkpoints do not go with it")
        return _paper_figures(paper, parse_path(folder, "folder"), split_commas(join_names(base, "base")))
    if base is not None:
        raise UserError("base goes with paper")
    asked = split_commas(join_names("heatmap" if kind is None else kind, "kind"))
    kinds = list(KINDS) if asked == ["all"] else asked
    for name in kinds:
        if name not in KINDS:
            raise UserError(f"kind {name}: unknown{did_you_mean(name, [*KINDS, 'all'])}")
    if not kinds:
        raise UserError(f"kind: names nothing; known: {', '.join(KINDS)}")
    natural = isinstance(scale, str) and scale.strip().lower() == length_name(NATURAL)
    scales = (float(NATURAL),) if natural else parse_scales(scale, "scale")
    if len(scales) > 1:
        raise UserError(f"scale {scale}: expected one scale, such as 2x")
    runs = tuple(Path(part) for part in split_commas(join_names(checkpoints, "checkpoints")))
    chosen = tuple(split_commas(join_names(task, "task")))
    material = Material(
        parse_path(folder, "folder"),
        chosen,
        scales[0] if scales else None,
        checkpoints=runs,
        shipped_curves=asked != ["all"],  # they are of other runs than the folder's
    )
    left_out: list[str] = []
    drawn = FigureSet(draw(material, kinds, left_out.append))
    drawn.left_out = tuple(left_out)
    return drawn


def _paper_figures(paper: str | Path, folder: Path, models: Sequence[str]) -> FigureSet:
    from longctx_bench.reporting.figures.registry import Material
    from longctx_bench.reporting.papers.paper_figures import paper_figures
    from longctx_bench.reporting.papers.paper_spec import read_paper
    from longctx_bench.reporting.papers.result_lookup import require_models

    material = Material(folder, models=tuple(models))
    layout = read_paper(join_names(paper, "paper"))
    require_models(material.results.finished, models)
    made = dict(paper_figures(layout, material))
    drawn = FigureSet({name: figure for name, figure in made.items() if not isinstance(figure, str)})
    drawn.left_out = tuple(f"{name}, {figure}" for name, figure in made.items() if isinstance(figure, str))
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
