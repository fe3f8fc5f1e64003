"""Examples of the page: the first ones of every cell, as many as fit, with repeated text stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

from longctx_bench.core.types import describe_finish_reason
from longctx_bench.reporting.results import CellSummary
from longctx_bench.store.prompt_excerpts import PromptExcerpt, read_excerpts
from longctx_bench.store.reader import read_records
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import StoredRecord

PAGE_BYTES = 16_000_000
"""Maximum size of the examples in a page, in bytes of JSON."""
_INITIAL_LIMIT = 64
"""Examples per cell to try first."""
_ROW_BYTES, _PROMPT_BYTES = 60, 180
"""Approximate size of a row and of a prompt without their texts."""


class TextPool:
    """Texts by index, each stored once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._indices: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Return the index of a text, adding it if needed."""
        index = self._indices.setdefault(text, len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
        return index


def example_columns(
    cells: Sequence[CellSummary], store: ResultStore, limit: int | None = None, budget: int = PAGE_BYTES
) -> dict[str, Any]:
    """Return the examples of the cells, by column.

    All cells give their first examples, the same number each, so that two methods can be shown side by side.

    Args:
        cells: finished cells; an example refers to its cell by the index in this sequence.
        store: store of their records and prompt excerpts.
        limit: examples per cell; by default as many as fit ``budget``.
        budget: maximum size of the examples in bytes of JSON, where no limit is given.

    Returns:
        ``texts`` (each text once), ``prompts`` (one per distinct prompt and references: hash, indices of reference
        texts, depths in percent, excerpt), ``rows`` (columns of equal length: cell, id, prompt, score, text, prompt
        tokens, new tokens, finish reason, curve) and ``shown`` (number of examples per cell).
    """
    bound = limit if limit is not None else _INITIAL_LIMIT
    while True:
        records = _first_records(cells, store, bound)
        excerpts = _excerpts(cells, records, store)
        number = bound if limit is not None else _num_fitting(records, excerpts, budget)
        if number < bound or limit is not None or all(len(cell_records) < bound for cell_records in records):
            break
        # Double the limit rather than read everything: the budget bounds the memory.
        del records, excerpts
        bound *= 2
    columns = _Columns()
    for index, cell_records in enumerate(records):
        for record in cell_records[:number]:
            columns.add(index, record, excerpts[index])
    return {
        "texts": columns.pool.texts,
        "prompts": columns.prompts,
        "rows": columns.rows,
        "shown": [min(number, len(cell_records)) for cell_records in records],
    }


def _first_records(cells: Sequence[CellSummary], store: ResultStore, number: int) -> list[list[StoredRecord]]:
    """Return the first records of each cell, without reading the rest."""
    return [
        # A finished file is sorted; records beyond n, of an interrupted larger run, are not part of the cell.
        list(islice(read_records(store.path(summary.cell)), min(summary.n, number)))
        for summary in cells
    ]


def _row_size(record: StoredRecord) -> int:
    return _ROW_BYTES + _size(record.text or "") + 12 * len(record.curve or ())


def _excerpts(
    cells: Sequence[CellSummary], records: Sequence[Sequence[StoredRecord]], store: ResultStore
) -> list[dict[str, PromptExcerpt]]:
    """Return the excerpts of each cell's records by hash; the methods of a base share them."""
    by_key: dict[tuple[str, str, int], dict[str, PromptExcerpt]] = {}
    excerpts = []
    for summary, cell_records in zip(cells, records, strict=True):
        key = (summary.cell.model, summary.cell.task, summary.cell.length)
        if key not in by_key:
            by_key[key] = read_excerpts(store.excerpts_path(summary.cell), {record.hash for record in cell_records})
        excerpts.append(by_key[key])
    return excerpts


def _num_fitting(
    records: Sequence[Sequence[StoredRecord]], excerpts: Sequence[dict[str, PromptExcerpt]], budget: int
) -> int:
    """Return how many examples per cell fit the budget, at least one."""
    num_bytes, hashes = 0, set()
    longest = max(map(len, records), default=0)
    for index in range(longest):
        for cell_records, cell_excerpts in zip(records, excerpts, strict=True):
            if index >= len(cell_records):
                continue
            record = cell_records[index]
            num_bytes += _row_size(record)
            if record.hash not in hashes:
                hashes.add(record.hash)
                num_bytes += _size(record.references) + _PROMPT_BYTES
                if record.hash in cell_excerpts:
                    num_bytes += _size(_excerpt_texts(cell_excerpts[record.hash]))
        if num_bytes > budget:
            return max(1, index)
    return max(1, longest)


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _excerpt_texts(excerpt: PromptExcerpt) -> list[str]:
    return [excerpt.begin, excerpt.end, excerpt.answer_prefix, *excerpt.needles]


class _Columns:
    """Builds the page's columns example by example."""

    def __init__(self) -> None:
        self.pool = TextPool()
        self.prompts: list[dict[str, Any]] = []
        self.rows: dict[str, list[Any]] = {
            name: [] for name in ("cell", "id", "prompt", "score", "text", "given", "written", "end", "curve")
        }
        self._prompt_indices: dict[tuple[str, tuple[str, ...]], int] = {}

    def add(self, cell: int, record: StoredRecord, excerpts: dict[str, PromptExcerpt]) -> None:
        """Add one example of a cell."""
        values = {
            "cell": cell,
            "id": record.id,
            "prompt": self._prompt(record, excerpts),
            "score": record.score if math.isfinite(record.score) else None,  # neither infinities nor NaN are JSON
            "text": None if record.text is None else self.pool(record.text),
            "given": record.prompt_tokens,
            "written": record.new_tokens,
            "end": self.pool(describe_finish_reason(record.finish_reason) if record.finish_reason else ""),
            "curve": _finite(record.curve),
        }
        for name, value in values.items():
            self.rows[name].append(value)

    def _prompt(self, record: StoredRecord, excerpts: dict[str, PromptExcerpt]) -> int:
        key = (record.hash, tuple(record.references))
        index = self._prompt_indices.setdefault(key, len(self.prompts))
        if index == len(self.prompts):
            prompt: dict[str, Any] = {
                "hash": record.hash,
                "references": [self.pool(reference) for reference in record.reference_texts],
                "depths": record.depths,
                "tokens": record.prompt_tokens if record.document_tokens is None else record.document_tokens,
            }
            excerpt = excerpts.get(record.hash)
            if excerpt is not None:
                prompt |= {
                    "begin": self.pool(excerpt.begin),
                    "end": self.pool(excerpt.end),
                    "prefix": self.pool(excerpt.answer_prefix),
                    "needles": [self.pool(needle) for needle in excerpt.needles],
                    "hidden": excerpt.hidden,
                }
            self.prompts.append(prompt)
        return index


def _finite(curve: Sequence[tuple[float, float]] | None) -> list[tuple[float, float]] | None:
    return None if curve is None else [point for point in curve if all(map(math.isfinite, point))]
