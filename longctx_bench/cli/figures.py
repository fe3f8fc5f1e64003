"""``longctx-bench figures``."""

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
@click.argument("folder", default="results", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--kind",
    default="heatmap",
    show_default=True,
    metavar="KINDS",
    help="With commas, or all: heatmap (needle depth by length), length (scores by scale), bars, tasks (scores at one "
    "scale), in-context (lm-eval's tasks), curves (training losses), factors, attention (of `longctx-bench probe`), or "
    "one that an installed package brings.",
)
@click.option("--task", help="The tasks to draw, with commas; all of the folder by default.")
@click.option(
    "--scale",
    help="Of bars, tasks and in-context: 4x, say, or natural; by default 2x (in-context 1x), else the largest.",
)
@click.option("--format", "forms", metavar="FORMATS", help="png, pdf, svg, with commas; png by default.")
@click.option(
    "--checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with the loss.csv of training runs in or below it, for curves; may be repeated. By default --kind "
    "curves draws those of the shipped checkpoints that were measured.",
)
@click.option(
    "--paper",
    metavar="NAME|FILE",
    help="Instead: all tables and figures of a paper (drope, or a YAML file of yours), published beside measured.",
)
@click.option("--base", "bases", metavar="MODELS", help="With --paper: the measured models to show, with commas.")
@click.option(
    "--out", type=click.Path(path_type=Path), callback=writable,
    help="A file ending in png, pdf or svg for a single figure, or the folder to write to; FOLDER/figures by default.",
)  # fmt: skip
def figures_command(
    folder: Path, kind: str, task: str | None, scale: str | None, forms: str | None, checkpoints: tuple[Path, ...],
    paper: str | None, bases: str | None, out: Path | None,
) -> None:  # fmt: skip
    """Draw a run's FOLDER: needle heatmaps of all models on one sheet, or other kinds of figures.

    With --kind all, everything that the folder has data for; a line says what was left out and why.
    """
    from longctx_bench.reporting.figures import style
    from longctx_bench.reporting.figures.registry import KINDS, Material, draw

    if paper is not None:
        _refuse_beside_paper(out)
        write_paper(
            paper, folder, split_commas(bases), _chosen("--format", forms or "png,pdf", _FORMATS),
            out or folder / "figures" / Path(paper).stem,
        )  # fmt: skip
        return
    if bases is not None:
        raise UserError("--base goes with --paper")
    kinds = _chosen("--kind", kind, tuple(KINDS))
    if scale is not None and kind.strip() != "all" and not {"bars", "tasks", "in-context"} & set(kinds):
        raise UserError("--scale goes with the kinds bars, tasks and in-context; the others show every length")
    single = out if out is not None and out.suffix.lstrip(".") in _FORMATS else None
    if out is not None and out.suffix and single is None and not out.is_dir():
        raise UserError(f"--out {out}: must end in .png, .pdf or .svg, or name a folder")
    if single is not None and (forms or len(kinds) > 1):
        raise UserError(f"--out {single}: is one file; for several kinds or formats name a folder")
    formats = _chosen("--format", forms or (single.suffix[1:] if single else "png"), _FORMATS)
    # Everything that the folder has data for: the curves of what ships are of other runs.
    material = Material(
        folder, tuple(split_commas(task)), _scale(scale), checkpoints=checkpoints, shipped_curves=kind.strip() != "all"
    )
    if material.tasks:
        require_finished(material.results, folder)
    made = draw(material, kinds, lambda line: say(f"left out: {line}", err=True))
    if single is not None and len(made) > 1:
        raise UserError(f"--out {single}: is one file, there are {len(made)} figures; name a folder, or one --task")
    for name, figure in made.items():
        stem = single.with_suffix("") if single else (out or folder / "figures") / name
        for path in style.save(figure, stem, formats):
            say(f"wrote {path}")
    for line in material.missing:
        say(f"missing: {line}", err=True)


def _refuse_beside_paper(out: Path | None) -> None:
    """Refuse options that a paper's layout decides."""
    context = click.get_current_context()
    for option in ("kind", "task", "scale", "checkpoints"):
        if context.get_parameter_source(option) is not ParameterSource.DEFAULT:
            raise UserError(f"--{option} does not go with --paper: the paper's YAML says what is drawn")
    if out is not None and out.suffix.lstrip(".") in _FORMATS:
        raise UserError(f"--out {out}: a paper has many tables and figures; name a folder")


def _chosen(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = known if text == "all" else tuple(split_commas(text))
    for name in chosen:
        if name not in known:
            raise UserError(f"{option} {name}: unknown{did_you_mean(name, known)}")
    if not chosen:
        raise UserError(f"{option}: names nothing; known: {', '.join(known)}")
    return tuple(dict.fromkeys(chosen))


def _scale(text: str | None) -> float | None:
    if text is None:
        return None
    if text.strip().lower() == length_name(NATURAL):
        return float(NATURAL)
    scales = parse_scales(text)
    if len(scales) != 1:
        raise UserError(f"--scale {text}: expected one scale, such as 2x")
    return scales[0]
