"""Loss curves: validation loss against training tokens, for pretraining, recalibration and control runs."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from longctx_bench.core.errors import UserError
from longctx_bench.core.untrusted_files import UnreadableFile, read_content
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.plot_styles import plot_style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """Validation losses and recipe of one training run."""

    name: str
    kind: str
    """``kind`` of the recipe: ``pretrain``, ``recalibrate``, ``control``; empty where there is no model card."""
    positions: str
    """``positions`` of the recipe: ``rope``, ``drope``, ``nope`` ..."""
    base: str | None
    """Name of the model that training started from; None for pretraining."""
    points: tuple[tuple[float, float], ...]
    """(training tokens, validation loss in nats per token)."""


def read_curves(folders: Sequence[Path]) -> list[Curve]:
    """Read ``loss.csv`` and the model card's recipe of every checkpoint in or below the folders, sorted by name.

    Raises:
        UserError: a file is not in the form that ``longctx-bench train`` writes.
    """
    files = sorted({path.resolve() for folder in folders for path in folder.rglob("loss.csv")})
    return sorted((_read(file) for file in files), key=lambda curve: curve.name)


def curve_sheet(curves: Sequence[Curve]) -> Figure:
    """Draw validation loss against tokens: Figures 2 and 10 of arXiv 2512.12167.

    One panel has models trained from scratch, another those that continue a model (recalibration, control), with the
    loss of that model as a dashed line.

    Args:
        curves: as :func:`read_curves` returns them.

    Returns:
        The figure: loss in nats per token over millions or billions of tokens.

    Raises:
        UserError: no curve has validation losses.
    """
    measured = [curve for curve in curves if curve.points]
    if not measured:
        raise UserError(
            "no loss.csv with validation losses; give the checkpoint folders that `longctx-bench train` wrote with "
            "--checkpoints"
        )
    scratch = [curve for curve in measured if curve.base is None]
    continued = [curve for curve in measured if curve.base is not None]
    panels = [
        (title, panel_curves)
        for title, panel_curves in (("trained from scratch", scratch), (_continued(continued), continued))
        if panel_curves
    ]
    ends = {curve.name: curve.points[-1][1] for curve in measured}
    # The first losses of a random model would flatten all other curves.
    highest = max(0.75 + min(ends.values()), *(loss + 0.05 for loss in ends.values()))
    with style.styled():
        figure = style.new_figure(style.PAGE if len(panels) > 1 else style.COLUMN + 0.6, 2.5)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, panel_curves) in zip(axes, panels, strict=True):
            _panel(axis, panel_curves, ends)
            axis.set_title(title)
        axes[0].set_ylabel("validation loss (nats a token)")
        axes[0].set_ylim(min(loss for curve in measured for _, loss in curve.points) - 0.04, highest)
    return figure


def _continued(curves: Sequence[Curve]) -> str:
    bases = {curve.base for curve in curves}
    return f"{next(iter(bases))}, continued" if len(bases) == 1 else "continued"


def _panel(axis: Axes, curves: Sequence[Curve], ends: dict[str, float]) -> None:
    max_tokens = max(tokens for curve in curves for tokens, _ in curve.points)
    divisor, unit = (1e9, "billions") if max_tokens >= 1e9 else (1e6, "millions")
    for curve in curves:
        line = plot_style_of(curve.positions).line()
        if curve.kind == "control":
            line |= {"linestyle": (0, (4, 1.5))}
        tokens, losses = zip(*curve.points, strict=True)
        axis.plot([count / divisor for count in tokens], losses, label=f"{curve.name}: {losses[-1]:.3f}",
                  markevery=max(1, len(losses) // 8), **line)  # fmt: skip
    for base in sorted({curve.base for curve in curves if curve.base in ends}, key=str):
        assert base is not None
        axis.axhline(ends[base], color=style.FAINT, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1,
                     label=f"{base}, before: {ends[base]:.3f}")  # fmt: skip
    axis.set_xlabel(f"training tokens ({unit})")
    axis.set_xlim(left=0)
    axis.grid(visible=True, axis="y")
    axis.legend(loc="upper right")


def _read(file: Path) -> Curve:
    points: dict[float, float] = {}
    try:
        with StringIO(read_content(file).decode("utf-8"), newline="") as content:
            for row in csv.DictReader(content):
                if row["validation_loss"]:
                    tokens, loss = float(row["tokens"]), float(row["validation_loss"])
                    if not (math.isfinite(tokens) and math.isfinite(loss)):
                        raise ValueError("not a finite number")
                    points[tokens] = loss
    except (KeyError, ValueError, TypeError, OSError, csv.Error, UnreadableFile) as error:
        raise UserError(f"{file}: not a curve as `longctx-bench train` writes it ({error!r:.80})") from error
    recipe = _recipe(file.parent)
    fields = {key: value for key, value in recipe.items() if isinstance(value, str)}
    return Curve(
        name=file.parent.name,
        kind=fields.get("kind", ""),
        positions=fields.get("positions", file.parent.name),
        base=Path(fields["base"]).name if "base" in fields else None,
        points=tuple(sorted(points.items())),
    )


def _recipe(folder: Path) -> dict[str, Any]:
    """Return the recipe in the model card next to a curve; empty where there is none."""
    card = folder / "README.md"
    try:
        text = read_content(card).decode("utf-8")
        match = re.search(r"^```yaml\n(.*?)^```", text, re.S | re.M)
        recipe = yaml.safe_load(match[1]) if match else None
    except FileNotFoundError:
        return {}
    except (UnreadableFile, UnicodeDecodeError) as error:
        raise UserError(f"{card}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{card}: the recipe in it is not YAML") from error
    return recipe if isinstance(recipe, dict) else {}
