"""Python API for single models: load, export, calibrate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.analysis.calibration import HEAD_FIT_TASKS, RETRIEVAL_TASKS
from longctx_bench.api.notebook import Calibration, FactorCalibration, HeadCalibration, ParameterCalibration
from longctx_bench.core.argument_parsing import (
    Scales,
    dtype_name,
    join_names,
    parse_int,
    parse_lengths,
    parse_path,
    parse_scales,
    parse_seed,
)
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import require_writable
from longctx_bench.core.specs import PathSource
from longctx_bench.core.types import NATURAL
from longctx_bench.methods.base import Method, supports_head_temperatures
from longctx_bench.methods.rope_scaling import LongRoPE
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest, ModelVariant, ResolvedVariant
from longctx_bench.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longctx_bench.analysis.calibration.calibrate import SweepPoint
    from longctx_bench.analysis.calibration.fit_head_temperatures import FitPoint, InterpolationPoint
    from longctx_bench.analysis.calibration.objectives import Objective
    from longctx_bench.analysis.calibration.search_factors import SearchPoint
    from longctx_bench.analysis.calibration.sweep_parameters import Trial
    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.engines.hf.engine import HFEngine
    from longctx_bench.engines.hf.export import ExportResult


def load(
    name: str,
    length: int | str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    registry: Registry | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a model with a method permanently applied, for use in your own code.

    Examples:
        >>> model, tokenizer = load("yarn-tiny", length=1024, device="cpu")
        >>> model(**tokenizer("Once upon a time", return_tensors="pt")).logits.ndim
        3

    Args:
        name: as ``--model`` takes it: ``yarn-smollm2-135m``, ``pi:org/name``, a folder.
        length: context length in tokens, such as ``4096`` or ``"4k"``; the training context if None.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        registry: resolves names; the built-in one if None.

    Returns:
        The transformers model, in evaluation mode on the device, and its tokenizer. The model takes
        ``input_ids`` of shape [batch, tokens] and gives logits of shape [batch, tokens, vocabulary].

    Raises:
        UserError: an unknown name, unavailable weights, or a method that depends on each prompt's length
            (dynamic-ntk) and cannot be applied once for all prompts.
    """
    from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model

    variant = (registry or Registry()).variant(join_names(name, "name"))
    if variant.method.per_prompt:
        raise UserError(
            f"{name}: {variant.method_name} follows each prompt's length and cannot be loaded for all; use run()"
        )
    resolved = variant.resolve()
    engine = HFEngine(str(device), dtype_name(dtype))
    model = load_model(resolved.folder, engine.dtype, engine.device)
    lengths = parse_lengths(length, "length") or (variant.model.original_length,)
    if len(lengths) > 1 or NATURAL in lengths:
        raise UserError(f"length {length}: a model is loaded for one length, in tokens")
    tokens = lengths[0]
    # Entered and never exited. The model holds a reference to the context, because garbage collection would undo it.
    applied: Any = apply_method(model, resolved.at(tokens), tokens)
    applied.__enter__()
    object.__setattr__(model, "_longctx_bench_applied", applied)
    return model, load_tokenizer(resolved.folder)


def export(
    model: str,
    folder: str | Path,
    scale: float | str | None = None,
    length: int | str | None = None,
    dtype: str = "auto",
    registry: Registry | None = None,
) -> ExportResult:
    """Write a method at one length as a plain checkpoint, as ``longctx-bench export`` does, and check its logits.

    Examples:
        >>> export("yarn-tiny", folder / "exported", scale="2x").mark.length
        1024

    Args:
        model: as ``--model`` takes it.
        folder: output folder, which must not exist; it is created atomically.
        scale: a multiple of the training context, such as ``"4x"``.
        length: context length in tokens, such as ``4096``; the training context if neither is given.
        dtype: of the weights; ``auto`` keeps theirs, or float32 if a temperature is folded into them.
        registry: resolves names; the built-in one if None.

    Returns:
        The folder, its ``mark`` (model, method, length, factor, temperature), and the largest logit difference.

    Raises:
        UserError: the method cannot be exported, or the folder exists.
    """
    from longctx_bench.engines.hf.export import check_exportable, export_checkpoint

    variant = (registry or Registry()).variant(join_names(model, "model"))
    original = variant.model.original_length
    scales, lengths = parse_scales(scale, "scale"), parse_lengths(length, "length")
    tokens = [*lengths, *(round(factor * original) for factor in scales)] or [original]
    if len(tokens) > 1 or NATURAL in tokens:
        raise UserError("export: a checkpoint is for one length; give --length TOKENS or --scale 4x, once")
    dtype = dtype_name(dtype)
    check_exportable(variant.method, variant.method_name)
    resolved = variant.resolve()
    return export_checkpoint(
        resolved.at(tokens[0]), variant.method_name, resolved.folder, parse_path(folder, "folder"), dtype
    )


def calibrate(
    model: str,
    scale: Scales = "2x,4x,8x",
    objective: str = "retrieval",
    text: str | Path | None = None,
    tasks: str | Sequence[str] | None = None,
    limit: int = 33,
    seed: int = 42,
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    registry: Registry | None = None,
    tell: Callable[[SweepPoint], None] | None = None,
) -> Calibration:
    """Calibrate the tunable scalar of a model's method per scale, as ``longctx-bench calibrate`` does.

    Args:
        model: as ``--model`` takes it, of a method with a tunable scalar: DroPE, NoPE, YaRN.
        scale: scales to calibrate at, as for :func:`run`.
        objective: ``retrieval`` maximizes needle retrieval, ``perplexity`` minimizes the loss on ``text``.
        text: long text that is not used for tests.
        tasks: needle tasks whose retrieval is maximized; ``niah,niah_multikey`` if None.
        limit: examples of each kind per value in the coarse sweep; twice as many in the fine sweep.
        seed: of the calibration examples, which are disjoint from all test examples.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_tokens: maximum tokens per batch; from free memory if None.
        out: output folder of ``calibration.json``; the checkpoint's if None.
        registry: resolves names; the built-in one if None.
        tell: called with every point when it is measured.

    Returns:
        The best value per scale, the scales that have none, the coefficient of the fitted law, and the written file,
        where runs find it.

    Raises:
        UserError: bad input, a method without such a scalar, or a folder that cannot be written.
    """
    from longctx_bench.analysis.calibration import calibrate as sweeps

    registry = registry or Registry()
    variant = registry.variant(join_names(model, "model"))
    if variant.method.tunable is None:
        raise UserError(f"calibrate {model}: {variant.method_name} has no scalar to tune")
    scales = _calibration_scales(scale)
    target = _calibration_folder(model, variant, out)
    _require_objective(objective, text, tasks)
    examples = parse_int(limit, "limit") or 1
    resolved = variant.resolve()
    target, engine, encoder = _open_for_calibration(resolved, target, dtype, device, batch_tokens)
    goal = _objective(objective, text, tasks, engine, encoder, registry, seed)
    fit = sweeps.calibrate(variant.method, resolved.base, goal, scales, examples, tell or (lambda point: None))
    path = sweeps.write_calibration(target, variant.method, variant.method_name, goal, fit)
    return Calibration(variant.name, variant.method.tunable, goal.name, fit, path)


def _calibration_scales(scale: Scales) -> tuple[float, ...]:
    scales = parse_scales(scale, "--scale")
    if not scales or min(scales) <= 1:
        raise UserError(f"--scale {scale}: calibration is for lengths beyond the training context, such as 2x,4x,8x")
    return tuple(scales)


def _calibration_folder(model: str, variant: ModelVariant, out: str | Path | None) -> Path | None:
    """Return where ``calibration.json`` goes; None for the folder that the weights are resolved to.

    Never the cache, where weights may have been converted or merged: runs look in the source folder.
    """
    if out is not None:
        return parse_path(out, "out")
    if not isinstance(variant.source, PathSource):
        raise UserError(f"calibrate {model}: its weights are not a folder of yours; name one with --out")
    return variant.source.path if variant.source.path.is_dir() else None


def _require_objective(objective: str, text: str | Path | None, tasks: str | Sequence[str] | None) -> None:
    if objective not in (objectives := ("retrieval", "perplexity")):
        raise UserError(f"objective {objective}: unknown{did_you_mean(str(objective), objectives)}")
    if objective == "perplexity" and tasks is not None:
        raise UserError("--objective perplexity is measured on --text; leave --tasks out")
    if objective == "perplexity" and text is None:
        raise UserError("--objective perplexity needs --text FILE, long text that no test uses")


def _objective(
    objective: str,
    text: str | Path | None,
    tasks: str | Sequence[str] | None,
    engine: HFEngine,
    encoder: PromptEncoder,
    registry: Registry,
    seed: int,
) -> Objective:
    from longctx_bench.analysis.calibration.objectives import Perplexity, Retrieval

    if text is None or objective == "retrieval":
        names = RETRIEVAL_TASKS if tasks is None else join_names(tasks, "tasks")
        return Retrieval(engine, encoder, registry, parse_seed(seed), names)
    return Perplexity(engine, encoder, parse_path(text, "text"))


def _open_for_calibration(
    resolved: ResolvedVariant, target: Path | None, dtype: str, device: str, batch_tokens: int | None
) -> tuple[Path, HFEngine, PromptEncoder]:
    """Return the folder to write to, an engine with the weights loaded, and the prompt encoder."""
    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.engines.hf.engine import HFEngine

    target = target or resolved.folder
    require_writable(target)
    engine = HFEngine(str(device), dtype_name(dtype), parse_int(batch_tokens, "batch_tokens"))
    engine.load(resolved.folder)
    return target, engine, PromptEncoder(load_tokenizer(resolved.folder))


def calibrate_heads(
    model: str,
    scale: Scales = "2x,4x,8x",
    tasks: str | Sequence[str] = HEAD_FIT_TASKS,
    steps: int = 80,
    limit: int = 33,
    seed: int = 42,
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    registry: Registry | None = None,
    tell: Callable[[FitPoint | InterpolationPoint], None] | None = None,
) -> HeadCalibration:
    """Fit one softmax temperature per attention head and scale, as ``longctx-bench calibrate --per-head`` does.

    Gradient descent on the loss of needles' answers and of the text before them, then an interpolation between one
    temperature for all heads and the fitted ones, chosen by retrieval; the model's weights stay as they are.

    Args:
        model: as ``--model`` takes it, of a method that takes temperatures by head: DroPE, NoPE, YaRN.
        scale: scales to calibrate at, as for :func:`run`; each starts from the one before.
        tasks: needle tasks to fit to, equally often.
        steps: of 8 sequences, per scale.
        limit: examples of each task in the retrieval that chooses the interpolation.
        seed: of the sequences, which are disjoint from all test examples.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_tokens: maximum tokens per pass; by default 65,536 on a GPU and one sequence on a CPU.
        out: output folder of ``calibration.json``; the checkpoint's if None.
        registry: resolves names; the built-in one if None.
        tell: called with the losses of every tenth part of a fit, then with the retrieval of each interpolation.

    Returns:
        The temperatures, the share of needles found with them, and the written file, where runs find it.

    Raises:
        UserError: bad input, a method or model without temperatures by head, or a folder that cannot be written.
    """
    from longctx_bench.analysis.calibration.fit_head_temperatures import (
        choose_interpolation,
        fit_head_temperatures,
        write_head_temperatures,
    )
    from longctx_bench.analysis.calibration.objectives import SEED_OFFSET, Retrieval, needle_benchmarks

    registry = registry or Registry()
    variant = registry.variant(join_names(model, "model"))
    scales = sorted(_calibration_scales(scale))
    if not supports_head_temperatures(variant.method):
        raise UserError(f"calibrate {model} --per-head: {variant.method_name} takes no temperatures by head")
    benchmarks = needle_benchmarks(registry, join_names(tasks, "tasks"))
    target = _calibration_folder(model, variant, out)
    steps, examples = parse_int(steps, "steps") or 1, parse_int(limit, "limit") or 1
    resolved = variant.resolve()
    target, engine, encoder = _open_for_calibration(resolved, target, dtype, device, batch_tokens)
    first_seed = parse_seed(seed)
    fit_seed = first_seed + SEED_OFFSET
    tell = tell or (lambda point: None)
    fitted, points = fit_head_temperatures(
        engine.model, variant.method, resolved.base, encoder, [*benchmarks.values()], scales, steps,
        fit_seed, parse_int(batch_tokens, "batch_tokens"), tell,
    )  # fmt: skip
    # Other examples than the fit's.
    retrieval = Retrieval(engine, encoder, registry, fit_seed, ",".join(benchmarks))
    temperatures, chosen = choose_interpolation(variant.method, resolved.base, fitted, retrieval, examples, tell)
    path = write_head_temperatures(
        target, variant.method, variant.method_name, temperatures, points, benchmarks, fit_seed, chosen
    )
    found = {scale: point.score for scale, point in chosen.items()}
    return HeadCalibration(variant.name, temperatures, found, path)


def calibrate_parameters(
    model: str,
    params: Mapping[str, Sequence[Any]],
    scale: Scales = "2x,4x,8x",
    objective: str = "retrieval",
    text: str | Path | None = None,
    tasks: str | Sequence[str] | None = None,
    limit: int = 33,
    seed: int = 42,
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    registry: Registry | None = None,
    tell: Callable[[Trial, int], None] | None = None,
) -> ParameterCalibration:
    """Sweep parameters of a model's method per scale, as ``longctx-bench calibrate --param`` does.

    All combinations of the values are measured, and the method's own parameters; a run of ``METHOD+tuned`` uses what
    was chosen.

    Args:
        model: as ``--model`` takes it, of any method with parameters.
        params: values to try, by parameter.
        scale: scales to calibrate at, as for :func:`run`.
        objective: ``retrieval`` maximizes needle retrieval, ``perplexity`` minimizes the loss on ``text``.
        text: long text that is not used for tests.
        tasks: needle tasks whose retrieval is maximized; ``niah,niah_multikey`` if None.
        limit: examples of each kind per combination; twice as many for the best quarter.
        seed: of the calibration examples, which are disjoint from all test examples.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_tokens: maximum tokens per batch; from free memory if None.
        out: output folder of ``calibration.json``; the checkpoint's if None.
        registry: resolves names; the built-in one if None.
        tell: called with every trial when it is measured, and the largest number of trials that there can be.

    Returns:
        The best parameters per scale, all trials, and the written file, where runs find it.

    Raises:
        UserError: bad input, a parameter that the method or base cannot have, or a folder that cannot be written.
    """
    from longctx_bench.analysis.calibration import sweep_parameters as sweeps

    registry = registry or Registry()
    variant = registry.variant(join_names(model, "model"))
    settings = sweeps.settings_to_try(variant.method, params)
    scales = sorted(_calibration_scales(scale))
    target = _calibration_folder(model, variant, out)
    _require_objective(objective, text, tasks)
    examples = parse_int(limit, "limit") or 1
    resolved = variant.resolve()
    sweeps.require_applicable(variant.method, resolved.base, settings, scales)
    target, engine, encoder = _open_for_calibration(resolved, target, dtype, device, batch_tokens)
    goal = _objective(objective, text, tasks, engine, encoder, registry, seed)
    max_trials = sweeps.num_trials(settings, scales)
    sweep = sweeps.sweep_parameters(
        variant.method, resolved.base, goal, settings, scales, examples,
        lambda trial: None if tell is None else tell(trial, max_trials),
    )  # fmt: skip
    path = sweeps.write_parameters(target, variant.method, variant.method_name, goal, sweep)
    return ParameterCalibration(variant.name, goal.name, sweep, path)


def search_factors(
    model: str,
    scale: Scales = "2x,4x,8x",
    population: int = 64,
    generations: int = 40,
    limit: int = 33,
    seed: int = 42,
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    registry: Registry | None = None,
    tell: Callable[[SearchPoint, int], None] | None = None,
) -> FactorCalibration:
    """Search LongRoPE's factors per scale, as ``longctx-bench calibrate longrope-MODEL --search`` does.

    By evolution of monotonic lists, on the loss of needles' answers. On a CPU the outcome is a function of the
    arguments.

    Args:
        model: as ``--model`` takes it, of the method ``longrope``.
        scale: scales to search at, as for :func:`run`.
        population: lists in the first generation, at least 4; later ones have half as many new lists.
        generations: after the first.
        limit: prompts of each of two needle tasks per list, and in the retrieval score at the end.
        seed: of the search, and of the prompts, which are disjoint from all test examples.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_tokens: maximum tokens per batch; from free memory if None.
        out: output folder of ``calibration.json``; the checkpoint's if None.
        registry: resolves names; the built-in one if None.
        tell: called with the best list's loss after each generation, and the number of lists per scale.

    Returns:
        The factors per scale, the share of needles found with them, and the written file, where runs find it.

    Raises:
        UserError: bad input, another method, a base without rotary positions, or a folder that cannot be written.
    """
    from longctx_bench.analysis.calibration import search_factors as searches
    from longctx_bench.analysis.calibration.objectives import SEED_OFFSET, NeedleLoss, Retrieval

    registry = registry or Registry()
    variant = registry.variant(join_names(model, "model"))
    if not isinstance(variant.method, LongRoPE):
        raise UserError(f"calibrate {model} --search: finds the factors of longrope; name a model longrope-BASE")
    scales = sorted(_calibration_scales(scale))
    target = _calibration_folder(model, variant, out)
    budget = searches.Budget(
        parse_int(population, "population", least=4) or 4, parse_int(generations, "generations") or 1
    )
    prompts, first_seed = parse_int(limit, "limit") or 1, parse_seed(seed)
    resolved = variant.resolve()
    for factor in scales:
        searches.starting_lists(resolved.base, round(factor * resolved.base.training_context))
    target, engine, encoder = _open_for_calibration(resolved, target, dtype, device, batch_tokens)
    goal = NeedleLoss(engine, encoder, registry, first_seed)
    search = searches.search_factors(
        resolved.base, goal, scales, prompts, budget, first_seed,
        lambda point: None if tell is None else tell(point, budget.evaluations),
    )  # fmt: skip
    check = Retrieval(engine, encoder, registry, first_seed + SEED_OFFSET)
    shares_found = _shares_found(
        check, resolved, {factor: searches.longrope_with(factors) for factor, factors in search.table.items()}, prompts
    )
    path = searches.write_factors(target, goal, search, budget, prompts, first_seed, shares_found)
    return FactorCalibration(variant.name, search, shares_found, path)


def _shares_found(
    check: Objective, resolved: ResolvedVariant, methods: Mapping[float, Method], examples: int
) -> dict[float, float]:
    """Return the share of needles found at each scale; ``check`` draws other examples than the fit did."""
    context = resolved.base.training_context
    return {
        scale: check.score(ModelUnderTest(resolved.base, method, round(scale * context)), examples)
        for scale, method in methods.items()
    }
