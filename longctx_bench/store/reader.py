"""A cell's files as reports and ``show`` read them: a million records in seconds, what is damaged named in one line.

msgspec checks types while it parses; what it refuses and Python's own ``json`` writes (NaN as a score) is read again by
the latter. Records come one after the other, so that a cell of any size takes little memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from longctx_bench.core.untrusted_files import MAX_DEPTH, UnreadableFile, parse_json, read_content, read_line_blocks
from longctx_bench.store.example_index import digest_of
from longctx_bench.store.run_store import before_gap
from longctx_bench.store.schema import CellResult, SampleRecord, UnsupportedVersionError, parse_result


class DamagedError(Exception):
    """A cell that cannot be shown; the message says which of its files and why."""


_decoder = msgspec.json.Decoder(SampleRecord)


def read_result(folder: Path) -> CellResult | None:
    """Return a finished cell's ``cell.json``; None when there is none.

    Raises:
        DamagedError: not JSON, too large or too deep, keys are missing or of another type, or a later version wrote it.
    """
    try:
        # Plain strings: with ten thousand cells, making paths takes longer than reading files.
        return parse_result(parse_json(read_content(f"{folder}/cell.json")))
    except FileNotFoundError:
        return None
    except (UnreadableFile, UnsupportedVersionError) as error:
        raise DamagedError(f"cell.json {error}") from error
    except msgspec.ValidationError as error:
        raise DamagedError(f"cell.json is damaged or another version's ({error})") from error


class Columns(NamedTuple):
    """A cell's records by column, each [n], in the order of examples."""

    scores: NDArray[np.float64]
    hashes: NDArray[np.bytes_]
    """S16: the bytes that the 32 digits stand for."""
    scored: NDArray[np.int64]
    depths: NDArray[np.float64]
    """The first of each example, percent; NaN where it has none."""
    needles: NDArray[np.int64]
    """How many depths each example has."""
    tokens: NDArray[np.int64]
    """Of the document, whatever a method was given of it."""
    words: NDArray[np.int64]
    """Of the document; -1 where that is not counted."""

    def at(self, places: Sequence[int]) -> Columns:
        """Return the examples at some places, in that order."""
        return Columns(
            self.scores[places],
            self.hashes[places],
            self.scored[places],
            self.depths[places],
            self.needles[places],
            self.tokens[places],
            self.words[places],
        )


def read_columns(folder: Path) -> Columns:
    """Return a cell's records up to the first gap, as :meth:`.ResultStore.records` has them.

    Raises:
        DamagedError: the file is missing, a line is not a record.
    """
    parts, ids = [_columns(())], list[str]()
    number, usual = 0, True
    for records in _blocks(folder):
        own = [record.id for record in records]
        if usual and own != [f"{place:06d}" for place in range(number, number + len(own))]:
            usual = False
            ids = [f"{place:06d}" for place in range(number)]
        if not usual:
            ids += own
        number += len(own)
        parts.append(_columns(records))
    columns = _joined(parts)
    if usual:
        return columns
    order = sorted(range(number), key=ids.__getitem__)
    try:
        order = order[: before_gap([ids[place] for place in order])]
    except ValueError as error:
        raise DamagedError("records.jsonl: an example's id is no number") from error
    return columns.at(order)


def _joined(parts: list[Columns]) -> Columns:
    """Join parts of a file, letting go of each column's pieces when it is whole."""
    pieces = [list(column) for column in zip(*parts, strict=True)]
    parts.clear()
    return Columns(*(np.concatenate(pieces.pop(0)) for _ in Columns._fields))


def read_records(folder: Path) -> Iterator[SampleRecord]:
    """Yield a cell's records as they stand in their file: of a finished cell in order.

    Raises:
        DamagedError: as :func:`read_columns`.
    """
    for records in _blocks(folder):
        yield from records


def count_records(folder: Path) -> int:
    """Return how many whole lines the records of a cell have; 0 where there are none.

    Raises:
        DamagedError: the file cannot be read.
    """
    try:
        return sum(block.count(b"\n") for block in read_line_blocks(f"{folder}/records.jsonl"))
    except FileNotFoundError:
        return 0
    except UnreadableFile as error:
        raise DamagedError(f"records.jsonl {error}") from error


def _columns(records: Sequence[SampleRecord]) -> Columns:
    return Columns(
        np.array([record.score for record in records], np.float64),
        np.array(list(map(_digest, records)), "S16"),
        np.array([record.scored for record in records], np.int64),
        np.array([record.depths[0] if record.depths else math.nan for record in records], np.float64),
        np.array([len(record.depths) for record in records], np.int64),
        np.array([_tokens(record) for record in records], np.int64),
        np.array([-1 if record.words is None else record.words for record in records], np.int64),
    )


def _digest(record: SampleRecord) -> bytes:
    """Return 16 bytes that are equal where the hashes are, whatever somebody has for hashes."""
    return digest_of(record.hash) or hashlib.sha256(record.hash.encode()).digest()[:16]


def _tokens(record: SampleRecord) -> int:
    return record.prompt_tokens if record.document_tokens is None else record.document_tokens


def _blocks(folder: Path) -> Iterator[Sequence[SampleRecord]]:
    """Yield the records of a file, some thousand at a time."""
    number = 0
    try:
        for block in read_line_blocks(f"{folder}/records.jsonl"):
            try:
                records = _decoder.decode_lines(block)
            except (ValueError, RecursionError):
                records = _one_by_one(block, number)
            number += len(records)
            yield records
    except FileNotFoundError as error:
        raise DamagedError("records.jsonl is missing") from error
    except UnreadableFile as error:
        raise DamagedError(f"records.jsonl {error}") from error


def _one_by_one(block: bytes, before: int) -> list[SampleRecord]:
    """Read what msgspec refused with Python's ``json``, which knows NaN, and name the line that is no record."""
    records = []
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), before + 1):
        try:
            records.append(msgspec.convert(json.loads(line), SampleRecord))
        except msgspec.ValidationError as error:
            raise DamagedError(f"records.jsonl: line {number} is not a record ({error})") from error
        except ValueError as error:
            raise DamagedError(f"records.jsonl: line {number} is not valid JSON ({error})") from error
        except RecursionError as error:
            raise DamagedError(
                f"records.jsonl: line {number} is not valid JSON (nested deeper than {MAX_DEPTH} levels)"
            ) from error
    return records
