"""Fast typed reader of a cell's files, for reports and ``show``: a million records in seconds.

msgspec validates types while it parses. Lines that it rejects are parsed again with Python's ``json``, which allows NaN
as a score. Records are streamed, so that a cell of any size takes little memory.
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
from longctx_bench.store.example_index import hash_to_digest
from longctx_bench.store.run_store import count_before_gap
from longctx_bench.store.schema import CellResult, StoredRecord, UnsupportedVersionError, parse_result


class DamagedCellError(Exception):
    """A cell's files are damaged; the message names the file and the reason."""


_decoder = msgspec.json.Decoder(StoredRecord)


def read_result(folder: Path) -> CellResult | None:
    """Return a finished cell's ``cell.json``; None when there is none.

    Raises:
        DamagedCellError: not JSON, too large or too deep, a key is missing or has the wrong type, or a later version
            wrote it.
    """
    try:
        # A plain string: with ten thousand cells, building Paths takes longer than reading files.
        return parse_result(parse_json(read_content(f"{folder}/cell.json")))
    except FileNotFoundError:
        return None
    except (UnreadableFile, UnsupportedVersionError) as error:
        raise DamagedCellError(f"cell.json {error}") from error
    except msgspec.ValidationError as error:
        raise DamagedCellError(f"cell.json is damaged or another version's ({error})") from error


class RecordColumns(NamedTuple):
    """A cell's records as columns, each [n], ordered by example id."""

    scores: NDArray[np.float64]
    hashes: NDArray[np.bytes_]
    """S16: the 32 hexadecimal digits as bytes."""
    scored: NDArray[np.int64]
    depths: NDArray[np.float64]
    """Depth of each example's first needle in percent; NaN where it has none."""
    needles: NDArray[np.int64]
    """Number of needles of each example."""
    tokens: NDArray[np.int64]
    """Length of the document in tokens, before any cropping by the method."""
    words: NDArray[np.int64]
    """Length of the document in words; -1 where it is not counted."""

    def take(self, rows: Sequence[int]) -> RecordColumns:
        """Return the given rows, in that order."""
        return RecordColumns._make(column[rows] for column in self)


def read_columns(folder: Path) -> RecordColumns:
    """Return a cell's records up to the first missing example, as :meth:`.ResultStore.records` does.

    Raises:
        DamagedCellError: the file is missing, or a line is not a record.
    """
    blocks, ids = [_columns(())], list[str]()
    num_records, in_order = 0, True
    for records in _record_blocks(folder):
        block_ids = [record.id for record in records]
        if in_order and block_ids != [f"{index:06d}" for index in range(num_records, num_records + len(block_ids))]:
            # Ids are kept only for a file that is not sorted and complete already.
            in_order = False
            ids = [f"{index:06d}" for index in range(num_records)]
        if not in_order:
            ids += block_ids
        num_records += len(block_ids)
        blocks.append(_columns(records))
    columns = _concatenate(blocks)
    if in_order:
        return columns
    order = sorted(range(num_records), key=ids.__getitem__)
    try:
        order = order[: count_before_gap([ids[row] for row in order])]
    except ValueError as error:
        raise DamagedCellError("records.jsonl: an example's id is not a number") from error
    return columns.take(order)


def _concatenate(blocks: list[RecordColumns]) -> RecordColumns:
    """Concatenate blocks column by column, freeing each column's blocks once it is done."""
    chunks = [list(column) for column in zip(*blocks, strict=True)]
    blocks.clear()
    return RecordColumns(*(np.concatenate(chunks.pop(0)) for _ in RecordColumns._fields))


def read_records(folder: Path) -> Iterator[StoredRecord]:
    """Yield a cell's records in file order, which for a finished cell is the order of examples.

    Raises:
        DamagedCellError: the file is missing, or a line is not a record.
    """
    for records in _record_blocks(folder):
        yield from records


def count_records(folder: Path) -> int:
    """Return the number of complete lines in ``records.jsonl``; 0 where there is no file.

    Raises:
        DamagedCellError: the file cannot be read.
    """
    try:
        return sum(block.count(b"\n") for block in read_line_blocks(f"{folder}/records.jsonl"))
    except FileNotFoundError:
        return 0
    except UnreadableFile as error:
        raise DamagedCellError(f"records.jsonl {error}") from error


def _columns(records: Sequence[StoredRecord]) -> RecordColumns:
    return RecordColumns(
        np.array([record.score for record in records], np.float64),
        np.array(list(map(_digest, records)), "S16"),
        np.array([record.scored for record in records], np.int64),
        np.array([record.depths[0] if record.depths else math.nan for record in records], np.float64),
        np.array([len(record.depths) for record in records], np.int64),
        np.array([_tokens(record) for record in records], np.int64),
        np.array([-1 if record.words is None else record.words for record in records], np.int64),
    )


def _digest(record: StoredRecord) -> bytes:
    """Return 16 bytes that are equal exactly where the hashes are, whatever their form."""
    return hash_to_digest(record.hash) or hashlib.sha256(record.hash.encode()).digest()[:16]


def _tokens(record: StoredRecord) -> int:
    return record.prompt_tokens if record.document_tokens is None else record.document_tokens


def _record_blocks(folder: Path) -> Iterator[Sequence[StoredRecord]]:
    """Yield the records of ``records.jsonl``, a few thousand at a time."""
    num_lines = 0
    try:
        for block in read_line_blocks(f"{folder}/records.jsonl"):
            try:
                records = _decoder.decode_lines(block)
            except (ValueError, RecursionError):
                records = _parse_lines(block, num_lines)
            num_lines += len(records)
            yield records
    except FileNotFoundError as error:
        raise DamagedCellError("records.jsonl is missing") from error
    except UnreadableFile as error:
        raise DamagedCellError(f"records.jsonl {error}") from error


def _parse_lines(block: bytes, num_lines_before: int) -> list[StoredRecord]:
    """Parse a block with Python's ``json``, which allows NaN; raise with the number of a line that is not a record."""
    records = []
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), num_lines_before + 1):
        try:
            records.append(msgspec.convert(json.loads(line), StoredRecord))
        except msgspec.ValidationError as error:
            raise DamagedCellError(f"records.jsonl: line {number} is not a record ({error})") from error
        except ValueError as error:
            raise DamagedCellError(f"records.jsonl: line {number} is not valid JSON ({error})") from error
        except RecursionError as error:
            raise DamagedCellError(
                f"records.jsonl: line {number} is not valid JSON (nested deeper than {MAX_DEPTH} levels)"
            ) from error
    return records
