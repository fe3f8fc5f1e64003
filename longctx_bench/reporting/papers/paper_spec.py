"""Published results of a paper: numbers from CSV, tables and figures from YAML."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.specs import Spec, read_yaml, validate
from longctx_bench.reporting.figures.registry import FIGURE_KINDS

IN_CONTEXT = "in-context"
"""Stands for the training context in a paper's CSV."""
_LENGTH = re.compile(rf"\d+(\.\d+)?x|\d+k?|\d+-\d+x|\d+x\+|natural|{IN_CONTEXT}")
_COLUMNS = ("table", "base", "method", "task", "length", "value")
AVERAGE = "average"
"""Task name of the column that averages a table's other columns."""


class PaperFigure(Spec):
    """A figure of a paper: one of our kinds of figures over some tasks and methods."""

    kind: str
    """As ``longctx-bench figures --kind`` takes it."""
    title: str
    tasks: tuple[str, ...] = ()
    """All when empty."""
    methods: tuple[str, ...] = ()
    """All when empty."""
    scale: float | None = None
    """Length / training context, for kinds that draw one scale."""


class PaperSpec(Spec):
    """Content of a paper's YAML file."""

    name: str
    """Short name, for headings."""
    title: str
    """Title and place of publication, for notes."""
    numbers: Path
    """CSV file next to the YAML, with the columns table, base, method, task, length, value."""
    bases: dict[str, str]
    """The paper's models: printed name by name in the CSV, which is our name where we have the model."""
    measured_as: dict[str, str] = Field(default_factory=dict)
    """Our task name by the CSV's, where they differ."""
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Tasks by average column, for averages over other tasks than the table's own."""
    lengths: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Lengths that a number averages over, by what the CSV calls them all."""
    perplexity: tuple[int, ...] = ()
    """Tables of perplexities, lower is better; all others are in per cent."""
    tables: dict[int, str]
    """Caption by table number."""
    notes: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """What to know of a table's published numbers, by table number: shown below it."""
    figures: dict[int, PaperFigure] = Field(default_factory=dict)


@dataclass(frozen=True)
class PublishedNumber:
    """One published number."""

    table: int
    base: str
    method: str
    task: str
    length: str
    """``2x``, tokens (``8192`` or ``8k``), ``natural``, ``in-context`` (the training context), a bucket of document
    lengths (``0-2x``), or a name from the spec's ``lengths``."""
    value: str
    """In per cent, or a perplexity, with the printed digits."""


@dataclass(frozen=True)
class Paper:
    """A paper's spec and its published numbers."""

    name: str
    spec: PaperSpec
    numbers: tuple[PublishedNumber, ...]

    def of_table(self, table: int, base: str) -> list[PublishedNumber]:
        """Return the numbers of a table for one base, in the paper's order."""
        return [number for number in self.numbers if number.table == table and number.base == base]

    def bases_of(self, table: int) -> list[str]:
        """Return the bases of a table, in the paper's order."""
        return list(dict.fromkeys(number.base for number in self.numbers if number.table == table))


def read_paper(name: str) -> Paper:
    """Read a paper by built-in name or path of its YAML file.

    Raises:
        UserError: there is no such paper, or one of its files is invalid; with the line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_folder("results") / "published" / f"{name}.yaml"
        if not path.is_file():
            known = [file.stem for file in path.parent.glob("*.yaml")]
            raise UserError(f"--paper {name}: neither a YAML file nor a built-in paper{did_you_mean(name, known)}")
    spec = validate(PaperSpec, read_yaml(path), str(path))
    numbers = tuple(_numbers(path.parent / spec.numbers, spec.lengths))
    _check_spec(path, spec, numbers)
    return Paper(path.stem, spec, numbers)


def _check_spec(path: Path, spec: PaperSpec, numbers: Sequence[PublishedNumber]) -> None:
    """Check a paper's YAML against its numbers.

    Raises:
        UserError: it names what is unknown, or leaves out what the numbers need.
    """
    for number, figure in spec.figures.items():
        if figure.kind not in FIGURE_KINDS:
            raise UserError(
                f"{path}: figure {number}: kind '{figure.kind}' is unknown{did_you_mean(figure.kind, FIGURE_KINDS)}"
            )
    unnamed = sorted({number.base for number in numbers} - set(spec.bases))
    if unnamed:
        raise UserError(f"{path}: 'bases' has no printed name for '{unnamed[0]}'")
    for name, lengths in spec.lengths.items():
        wrong = [length for length in lengths if not _LENGTH.fullmatch(length)]
        if wrong or not lengths:
            raise UserError(
                f"{path}: lengths: {name}: {wrong[0] if wrong else 'nothing'}: expected lengths such as 2x or 8k"
            )
    for table in (*spec.perplexity, *spec.notes):
        if table not in spec.tables:
            raise UserError(f"{path}: 'perplexity' or 'notes' names table {table}, which 'tables' does not")
    for table in spec.tables:
        if not any(number.table == table for number in numbers):
            raise UserError(f"{path}: table {table} has no numbers in {spec.numbers}")


def _numbers(path: Path, named_lengths: Collection[str]) -> list[PublishedNumber]:
    numbers: list[PublishedNumber] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != _COLUMNS:
                raise UserError(f"{path}: line 1: the columns must be {','.join(_COLUMNS)}")
            lines: dict[PublishedNumber, int] = {}
            for line, row in enumerate(rows, 2):
                number = _number(path, line, row, named_lengths)
                first_line = lines.setdefault(replace(number, value=""), line)
                if first_line != line:
                    raise UserError(f"{path}: line {line}: duplicates the number of line {first_line}")
                numbers.append(number)
            return numbers
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _number(path: Path, line: int, row: dict[str, str], named_lengths: Collection[str]) -> PublishedNumber:
    if None in row or None in row.values():
        raise UserError(f"{path}: line {line}: must have {len(_COLUMNS)} columns")
    if not _LENGTH.fullmatch(row["length"]) and row["length"] not in named_lengths:
        raise UserError(
            f"{path}: line {line}: length '{row['length']}' is not of the form 2x, 8k, 0-2x, 8x+, natural or "
            f"{IN_CONTEXT}"
        )
    try:
        table = int(row["table"])
        if not math.isfinite(float(row["value"])):
            raise ValueError
    except ValueError as error:
        raise UserError(f"{path}: line {line}: 'table' and 'value' must be numbers") from error
    return PublishedNumber(table, row["base"], row["method"], row["task"], row["length"], row["value"])
