"""What a paper published: its numbers as CSV, and as YAML how it lays them out."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.specs import Spec, read_yaml, validate
from longctx_bench.reporting.figures.registry import KINDS

IN_CONTEXT = "in-context"
"""A paper's word for the training context."""
_LENGTH = re.compile(rf"\d+(\.\d+)?x|\d+-\d+x|\d+x\+|natural|{IN_CONTEXT}")
_COLUMNS = ("table", "base", "method", "task", "length", "value")
AVERAGE = "average"
"""Name of the column that averages a table's other ones."""


class PaperFigure(Spec):
    """A figure of a paper: one kind of ours over some of the tasks."""

    kind: str
    """As ``longctx-bench figures --kind`` takes it."""
    title: str
    tasks: tuple[str, ...] = ()
    """All when empty."""
    methods: tuple[str, ...] = ()
    """All when empty."""
    scale: float | None = None
    """Length over training context, for kinds that draw one."""


class Layout(Spec):
    """A paper's YAML."""

    name: str
    """Short, for headings."""
    title: str
    """For notes, with where it is published."""
    numbers: Path
    """CSV beside the YAML, with the columns table, base, method, task, length, value."""
    bases: dict[str, str]
    """The models of the paper: name in the CSV, which is ours too where we have it, and how it is printed."""
    measured_as: dict[str, str] = Field(default_factory=dict)
    """Our name of a task where it differs from the CSV's."""
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Columns that average over other tasks than the table's own."""
    tables: dict[int, str]
    """Number and caption of each table."""
    figures: dict[int, PaperFigure] = Field(default_factory=dict)


@dataclass(frozen=True)
class Number:
    """One published number."""

    table: int
    base: str
    method: str
    task: str
    length: str
    """``2x``, ``natural``, ``in-context`` (the training context) or a bucket of document lengths, ``0-2x``."""
    value: str
    """In per cent, with the digits that were printed."""


@dataclass(frozen=True)
class Paper:
    """A paper's layout with its numbers."""

    name: str
    layout: Layout
    numbers: tuple[Number, ...]

    def of_table(self, table: int, base: str) -> list[Number]:
        """Return a table's numbers for one base, in the paper's order."""
        return [number for number in self.numbers if number.table == table and number.base == base]

    def bases_of(self, table: int) -> list[str]:
        """Return the bases that a table is about, in the paper's order."""
        return list(dict.fromkeys(number.base for number in self.numbers if number.table == table))


def read_paper(name: str) -> Paper:
    """Read a paper given by built-in name or by its YAML file.

    Raises:
        UserError: there is no such paper, or a file of it is wrong, with the line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_folder("results") / "published" / f"{name}.yaml"
        if not path.is_file():
            known = [file.stem for file in path.parent.glob("*.yaml")]
            raise UserError(f"--paper {name}: neither a YAML file nor a paper that we have{did_you_mean(name, known)}")
    layout = validate(Layout, read_yaml(path), str(path))
    numbers = tuple(_numbers(path.parent / layout.numbers))
    for number, figure in layout.figures.items():
        if figure.kind not in KINDS:
            raise UserError(
                f"{path}: figure {number}: kind '{figure.kind}' is unknown{did_you_mean(figure.kind, KINDS)}"
            )
    bare = sorted({number.base for number in numbers} - set(layout.bases))
    if bare:
        raise UserError(f"{path}: 'bases' does not say how to print '{bare[0]}'")
    for table in layout.tables:
        if not any(number.table == table for number in numbers):
            raise UserError(f"{path}: table {table} has no numbers in {layout.numbers}")
    return Paper(path.stem, layout, numbers)


def _numbers(path: Path) -> list[Number]:
    made: list[Number] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != _COLUMNS:
                raise UserError(f"{path}: line 1: the columns must be {','.join(_COLUMNS)}")
            found: dict[Number, int] = {}
            for line, row in enumerate(rows, 2):
                number = _number(path, line, row)
                before = found.setdefault(replace(number, value=""), line)
                if before != line:
                    raise UserError(f"{path}: line {line}: gives the number of line {before} again")
                made.append(number)
            return made
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV file in UTF-8 ({error})") from error


def _number(path: Path, line: int, row: dict[str, str]) -> Number:
    if None in row or None in row.values():
        raise UserError(f"{path}: line {line}: must have {len(_COLUMNS)} columns")
    if not _LENGTH.fullmatch(row["length"]):
        raise UserError(
            f"{path}: line {line}: length '{row['length']}' is none of 2x, 0-2x, natural, {IN_CONTEXT} and the like"
        )
    try:
        table = int(row["table"])
        if not math.isfinite(float(row["value"])):
            raise ValueError
    except ValueError as error:
        raise UserError(f"{path}: line {line}: 'table' and 'value' must be numbers") from error
    return Number(table, row["base"], row["method"], row["task"], row["length"], row["value"])
