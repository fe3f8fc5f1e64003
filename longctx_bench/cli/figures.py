"""``longctx-bench figures``: draw figures from stored results."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from longctx_bench.cli.options import parse_scales, split_commas, writable
from longctx_bench.cli.output import require_finished, say
from longctx_bench.cli.paper_figures import write_paper
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.types import NATURAL, length_name

_FORMATS = ("png", "pdf", "svg")


@click.command("figures")
@click.argument("folder", default="results", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    default="heatmap",
    show_default=True,
    metavar="KINDS",
    help="Comma-separated kinds, or all: heatmap (needle depth by length), length (scores by scale), bars, tasks "
    "(scores at one scale), in-context (lm-eval's tasks), curves (training loss), factors and attention (from "
    "`longctx-bench probe`), or one from an installed package.",
)
@click.option("--task", help="Comma-separated tasks (default: all in the folder).")
@click.option(
    "--scale",
    help="Scale for bars, tasks and in-context, e.g. 4x or natural (default: 2x, in-context 1x, else the largest).",
)
@click.option("--format", "forms", metavar="FORMATS", help="Comma-separated formats: png, pdf, svg (default: png).")
@click.option(
    "--checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder searched for the loss.csv of training runs, for --kind curves; may be repeated (default: the shipped "
    "checkpoints that the run measured).",
)
@click.option(
    "--paper",
    metavar="NAME|FILE",
    help="Reproduce a paper's tables and figures instead (drope, string, lceg, jet-long, or your own YAML), published "
    "next to measured.",
)
@click.option("--base", "bases", metavar="MODELS", help="With --paper, comma-separated measured models to show.")
@click.option(
    "--out", type=click.Path(path_type=Path), callback=writable,
    help="File (.png, .pdf or .svg) for a single figure, or output folder (default: FOLDER/figures; figures/ in the "
    "folder of a bundle's name).",
)  # fmt: skip
def figures_command(
    folder: Path, kind: str, task: str | None, scale: str | None, forms: str | None, checkpoints: tuple[Path, ...],
    paper: str | None, bases: str | None, out: Path | None,
) -> None:  # fmt: skip
    """Draw figures of a run's FOLDER or bundle: by default, one sheet with the needle heatmaps of all models.

    --kind all draws everything the folder has data for and reports what was left out and why.
    """
    from longctx_bench.reporting.figures import style
    from longctx_bench.reporting.figures.registry import FIGURE_KINDS, FigureInputs, draw_figures
    from longctx_bench.store.bundle import companion_folder

    default_out = companion_folder(folder) / "figures"
    if paper is not None:
        _reject_options_of_paper(out)
        write_paper(
            paper, folder, split_commas(bases), _parse_choices("--format", forms or "png,pdf", _FORMATS),
            out or default_out / Path(paper).stem,
        )  # fmt: skip
        return
    if bases is not None:
        raise UserError("--base goes with --paper")
    kinds = _parse_choices("--kind", kind, tuple(FIGURE_KINDS))
    if scale is not None and kind.strip() != "all" and not {"bars", "tasks", "in-context"} & set(kinds):
        raise UserError("--scale goes with the kinds bars, tasks and in-context; the others show every length")
    single = out if out is not None and out.suffix.lstrip(".") in _FORMATS else None
    if out is not None and out.suffix and single is None and not out.is_dir():
        raise UserError(f"--out {out}: must end in .png, .pdf or .svg, or name a folder")
    if single is not None and (forms or len(kinds) > 1):
        raise UserError(f"--out {single}: is one file; for several kinds or formats name a folder")
    formats = _parse_choices("--format", forms or (single.suffix[1:] if single else "png"), _FORMATS)
    # --kind all draws the folder's own data; the curves of shipped checkpoints belong to other runs.
    material = FigureInputs(
        folder, tuple(split_commas(task)), _scale(scale), checkpoints=checkpoints, shipped_curves=kind.strip() != "all"
    )
    if material.tasks:
        require_finished(material.results, folder)
    figures = draw_figures(material, kinds, lambda line: say(f"left out: {line}", err=True))
    if single is not None and len(figures) > 1:
        raise UserError(f"--out {single}: is one file, there are {len(figures)} figures; name a folder, or one --task")
    for name, figure in figures.items():
        stem = single.with_suffix("") if single else (out or default_out) / name
        for path in style.save(figure, stem, formats):
            say(f"wrote {path}")
    for line in material.missing:
        say(f"missing: {line}", err=True)


def _reject_options_of_paper(out: Path | None) -> None:
    """Raise for options that a paper's layout determines."""
    context = click.get_current_context()
    for option in ("kind", "task", "scale", "checkpoints"):
        if context.get_parameter_source(option) is not ParameterSource.DEFAULT:
            raise UserError(f"--{option} does not go with --paper: the paper's YAML says what is drawn")
    if out is not None and out.suffix.lstrip(".") in _FORMATS:
        raise UserError(f"--out {out}: a paper has many tables and figures; name a folder")


def _parse_choices(option: str, text: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    selected = choices if text == "all" else tuple(split_commas(text))
    for name in selected:
        if name not in choices:
            raise UserError(f"{option} {name}: unknown{did_you_mean(name, choices)}")
    if not selected:
        raise UserError(f"{option}: names nothing; known: {', '.join(choices)}")
    return tuple(dict.fromkeys(selected))


def _scale(text: str | None) -> float | None:
    if text is None:
        return None
    if text.strip().lower() == length_name(NATURAL):
        return float(NATURAL)
    scales = parse_scales(text)
    if len(scales) != 1:
        raise UserError(f"--scale {text}: expected one scale, such as 2x")
    return scales[0]
