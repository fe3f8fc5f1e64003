"""A cell's files as a report reads them: a million records in seconds, and what is damaged named in one line.

msgspec checks types while it parses and skips the fields that no table needs without making objects of them; what it
refuses and Python's own ``json`` writes (NaN as a score) is read again by the latter.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from longctx_bench.errors import UserError
from longctx_bench.store import before_gap, read_lines


class DamagedError(Exception):
    """A cell that cannot be shown; the message says which of its files and why."""


class Record(msgspec.Struct, gc=False):
    """What reports need of one line of ``records.jsonl``."""

    id: str
    hash: str
    score: float
    depths: list[float] = []
    prompt_tokens: int = 0
    document_tokens: int | None = None
    words: int | None = None
    scored: int = 1


_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Cell(msgspec.Struct):
    model: str
    method: str
    task: str
    length: Annotated[int, msgspec.Meta(ge=0)]


class _Task(msgspec.Struct):
    name: str
    params: dict[str, Any] | None


class _Spec(msgspec.Struct):
    task: _Task
    seed: int
    dtype: str
    engine: str
    chat_template: bool


class _Tuning(msgspec.Struct):
    scalar: str
    value: float
    source: str


class _Summary(msgspec.Struct):
    """What every report may rely on in a ``cell.json``."""

    cell: _Cell
    original_length: _Positive
    metric: str
    score: float
    n: _Positive
    prompt_tokens: int
    new_tokens: int
    seconds: float
    factor: float
    factor_source: str
    spec_hash: str
    spec: _Spec
    finished: str
    tuning: _Tuning | None = None


_decoder = msgspec.json.Decoder(Record)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return a cell's ``cell.json``, checked for what reports need; None when there is none.

    Raises:
        DamagedError: not JSON, or keys are missing or of another type.
    """
    content = _bytes(folder, "cell.json")
    if content is None:
        return None
    try:
        details: dict[str, Any] = msgspec.json.decode(content)
    except ValueError:
        try:
            details = json.loads(content)
        except ValueError as error:
            raise DamagedError(f"cell.json is not valid JSON ({error})") from error
    try:
        msgspec.convert(details, _Summary)
    except msgspec.ValidationError as error:
        raise DamagedError(f"cell.json is damaged or another version's ({error})") from error
    return details


def read_records(folder: Path) -> list[Record]:
    """Return a cell's records as :meth:`longctx_bench.store.ResultStore.records` does: in order, up to the first gap.

    Raises:
        DamagedError: the file is missing, a line is not a record.
    """
    content = _bytes(folder, "records.jsonl")
    if content is None:
        raise DamagedError("records.jsonl is missing")
    try:
        records = _decoder.decode_lines(content)
    except ValueError:
        records = _read_slowly(folder / "records.jsonl")
    if [record.id for record in records] == _usual_ids(len(records)):
        return records
    records.sort(key=lambda record: record.id)
    return records[: before_gap([record.id for record in records])]


def count_records(folder: Path) -> int:
    """Return how many whole lines the records of a cell have; 0 where there are none."""
    return (_bytes(folder, "records.jsonl") or b"").count(b"\n")


def _bytes(folder: Path, name: str) -> bytes | None:
    # Plain strings: with ten thousand cells, making paths takes longer than reading files.
    try:
        with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{name} cannot be read ({error.strerror})") from error


@lru_cache
def _usual_ids(n: int) -> list[str]:
    return [f"{place:06d}" for place in range(n)]


def _read_slowly(path: Path) -> list[Record]:
    """Read what msgspec refused with Python's ``json``, which knows NaN and counts lines."""
    records = []
    try:
        for line in read_lines(path):
            records.append(msgspec.convert(line, Record))
    except UserError as error:
        raise DamagedError(str(error).removeprefix(f"{path.parent}/")) from error
    except msgspec.ValidationError as error:
        raise DamagedError(f"records.jsonl: line {len(records) + 1} is not a record ({error})") from error
    return records
