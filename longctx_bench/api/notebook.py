"""Return types of the Python API, with notebook display: frames, figures, calibrations."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from longctx_bench.core.sanitize import describe_parameters
from longctx_bench.reporting.formats import html_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from longctx_bench.analysis.calibration.calibrate import CalibrationResult
    from longctx_bench.analysis.calibration.search_factors import FactorSearch
    from longctx_bench.analysis.calibration.sweep_parameters import ParameterSweep
    from longctx_bench.methods.head_temperatures import HeadTemperatures
    from longctx_bench.reporting.tables.base import Table


class ResultFrame(pd.DataFrame):
    """A DataFrame of unrounded numbers that a notebook displays as the command line's tables, with intervals and notes.

    Selections and computations return plain DataFrames.
    """

    _metadata = ["_tables", "notes"]  # noqa: RUF012 (pandas' own protocol for attributes)

    _tables: Callable[[], Sequence[Table]]
    notes: tuple[str, ...]
    """A line per missing or excluded cell."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @property
    def tables(self) -> list[Table]:
        """The tables that a notebook displays."""
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
    """Create a frame that is displayed as tables.

    Args:
        rows: values by column.
        columns: column order.
        tables: creates the tables when they are displayed.
        notes: lines below the tables.
    """
    frame = ResultFrame([dict(row) for row in rows], columns=list(columns))
    frame._tables = tables
    frame.notes = tuple(notes)
    return frame


class FigureSet(dict[str, "Figure"]):
    """Matplotlib figures by name, displayed in sequence in a notebook."""

    left_out: tuple[str, ...] = ()
    """A line per figure without data."""

    def save(self, folder: str | Path, formats: str | Sequence[str] = "png") -> list[Path]:
        """Write each figure to ``folder/NAME.FORMAT``.

        Args:
            folder: created if missing.
            formats: ``png``, ``pdf`` or ``svg``, comma-separated or as a list.

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
    """The result of :func:`longctx_bench.calibrate`."""

    model: str
    parameter: str
    """The tuned parameter: ``temperature`` or ``attention_factor``."""
    objective: str
    fit: CalibrationResult
    """Best value per scale, the coefficient of the fitted law, and all measured points."""
    path: Path
    """The written ``calibration.json``, which runs read."""

    @property
    def table(self) -> dict[float, float]:
        """Best value by scale."""
        return dict(self.fit.table)

    def _repr_html_(self) -> str:
        caption = f"{self.model} by {self.objective}: 1 + {self.fit.c:.3f} ln s"
        values = {scale: f"{value:g}" for scale, value in self.table.items()}
        return _table_by_scale(caption, self.parameter.replace("_", " "), values)


@dataclass(frozen=True)
class HeadCalibration:
    """The result of :func:`longctx_bench.calibrate_heads`."""

    model: str
    temperatures: HeadTemperatures
    """Temperature of every attention head by scale."""
    retrieval: dict[float, float]
    """Share of needles found by scale, on other examples than the fit's: those that chose the interpolation."""
    path: Path
    """The written ``calibration.json``, which runs read."""

    def _repr_html_(self) -> str:
        return _table_of_found(f"{self.model}: temperatures by head", self.retrieval)


@dataclass(frozen=True)
class ParameterCalibration:
    """The result of :func:`longctx_bench.calibrate_parameters`."""

    model: str
    objective: str
    sweep: ParameterSweep
    """Best parameters per scale, and all trials."""
    path: Path
    """The written ``calibration.json``, which runs of ``METHOD+tuned`` read."""

    @property
    def table(self) -> dict[float, dict[str, Any]]:
        """Best parameters by scale; empty where the method's own are as good."""
        return dict(self.sweep.table)

    def _repr_html_(self) -> str:
        values = {scale: describe_parameters(parameters) for scale, parameters in self.table.items()}
        return _table_by_scale(f"{self.model} by {self.objective}", "parameters", values)


@dataclass(frozen=True)
class FactorCalibration:
    """The result of :func:`longctx_bench.search_factors`."""

    model: str
    search: FactorSearch
    """Factors by scale, and how they were found."""
    retrieval: dict[float, float]
    """Share of needles found by scale, on other examples than those chosen by."""
    path: Path
    """The written ``calibration.json``, which runs of ``longrope`` read."""

    @property
    def table(self) -> dict[float, tuple[float, ...]]:
        """Factors by scale, one per rotary pair, the fastest first."""
        return dict(self.search.table)

    def _repr_html_(self) -> str:
        return _table_of_found(f"{self.model}: searched factors", self.retrieval)


def _table_of_found(caption: str, retrieval: Mapping[float, float]) -> str:
    return _table_by_scale(caption, "needles found", {scale: f"{share:.1%}" for scale, share in retrieval.items()})


def _table_by_scale(caption: str, heading: str, values: Mapping[float, str]) -> str:
    """Return an HTML table with a line per scale; the texts are escaped."""
    rows = "".join(f"<tr><td>{scale:g}x</td><td>{escape(value)}</td></tr>" for scale, value in values.items())
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr><th>scale</th><th>{escape(heading)}</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
