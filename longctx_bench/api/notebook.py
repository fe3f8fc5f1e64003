"""What the Python functions return: frames, figures and calibrations that show themselves in a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from longctx_bench.reporting.formats import html_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from longctx_bench.analysis.calibration.calibrate import CalibrationResult
    from longctx_bench.reporting.tables.base import Table


class ResultFrame(pd.DataFrame):
    """A DataFrame of exact numbers that a notebook shows as the command line's tables, with intervals and notes.

    Whatever is selected or computed from it is a plain DataFrame.
    """

    _metadata = ["_tables", "notes"]  # noqa: RUF012 (pandas' own protocol for attributes)

    _tables: Callable[[], Sequence[Table]]
    notes: tuple[str, ...]
    """A line for each cell that is missing or was left out."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @property
    def tables(self) -> list[Table]:
        """The tables that a notebook shows."""
        return list(self._tables())

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return html_tables.html_fragment(self.tables if len(self) else []) + notes or "<p>no finished cell</p>"


def result_frame(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    tables: Callable[[], Sequence[Table]],
    notes: Sequence[str] = (),
) -> ResultFrame:
    """Return rows as a frame that shows itself as tables.

    Args:
        rows: by column.
        columns: in their order.
        tables: makes the tables, when they are first looked at.
        notes: lines below them.
    """
    frame = ResultFrame([dict(row) for row in rows], columns=list(columns))
    frame._tables = tables
    frame.notes = tuple(notes)
    return frame


class FigureSet(dict[str, "Figure"]):
    """Matplotlib figures by name; a notebook shows them one below the other."""

    left_out: tuple[str, ...] = ()
    """A line for each figure that the folder has no data for."""

    def save(self, folder: str | Path, formats: str | Sequence[str] = "png") -> list[Path]:
        """Write each figure to ``folder/NAME.FORMAT``.

        Args:
            folder: made where it is not there.
            formats: ``png``, ``pdf`` or ``svg``, with commas or as a list.

        Returns:
            The paths.

        Raises:
            UserError: an unknown format, or the folder cannot be written.
        """
        from longctx_bench.core.argument_parsing import join_names, split_commas
        from longctx_bench.reporting.figures import style

        forms = split_commas(join_names(formats, "formats"))
        return [path for name, figure in self.items() for path in style.save(figure, Path(folder) / name, forms)]

    def _repr_html_(self) -> str:
        return "\n".join(f'<img alt="{escape(name)}" src="{_png(figure)}">' for name, figure in self.items())


def _png(figure: Figure) -> str:
    from longctx_bench.reporting.figures import style

    with style.styled(), BytesIO() as file:
        figure.savefig(file, format="png")
        return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Calibration:
    """What :func:`longctx_bench.calibrate` found and wrote."""

    model: str
    parameter: str
    """Of the method: ``temperature`` or ``attention_factor``."""
    objective: str
    fit: CalibrationResult
    """Best value by scale, the law's coefficient and every point that was measured."""
    path: Path
    """The ``calibration.json`` that runs read."""

    @property
    def table(self) -> dict[float, float]:
        """Best value by extension factor."""
        return dict(self.fit.table)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{scale:g}x</td><td>{value:g}</td></tr>" for scale, value in self.table.items())
        name = escape(self.parameter.replace("_", " "))
        return (
            f"<table><caption>{escape(self.model)} by {escape(self.objective)}: 1 + {self.fit.c:.3f} ln s</caption>"
            f"<thead><tr><th>scale</th><th>{name}</th></tr></thead><tbody>{rows}</tbody></table>"
        )
