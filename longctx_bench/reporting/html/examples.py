"""The examples that go into a page: the same ones of every cell, as many as fit, repeated text stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

from longctx_bench.core.types import describe_finish_reason
from longctx_bench.reporting.results import CellSummary
from longctx_bench.store.prompt_excerpts import Excerpt, read_excerpts
from longctx_bench.store.reader import read_records
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import SampleRecord

PAGE_BYTES = 16_000_000
"""Examples are left out before their text makes a page larger than this (bytes of JSON)."""
_FIRST = 64
"""Examples of each cell that are tried first."""
_ROW_BYTES, _PROMPT_BYTES = 60, 180
"""What a row and a prompt take besides their texts: names, numbers, commas."""


class Pool:
    """Texts by number, each stored once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Return a text's number."""
        place = self._places.setdefault(text, len(self.texts))
        if place == len(self.texts):
            self.texts.append(text)
        return place


def example_columns(
    cells: Sequence[CellSummary], store: ResultStore, limit: int | None = None, budget: int = PAGE_BYTES
) -> dict[str, Any]:
    """Return the examples of the cells, by column.

    All cells give the same number of examples, their first: so that two methods can be laid side by side.

    Args:
        cells: finished cells; an example names its cell by the place in this sequence.
        store: where their records and the excerpts of their prompts lie.
        limit: examples a cell; as many as ``budget`` allows by default.
        budget: bytes of JSON that the examples may take, where no limit is given.

    Returns:
        ``texts`` (every text once), ``prompts`` (one for each distinct prompt and references: hash, references as
        numbers of texts, depths in percent, excerpt), ``rows`` (columns of equal length: cell, id, prompt, score,
        text, tokens given and written, end, curve) and ``shown`` (how many of each cell).
    """
    bound = limit if limit is not None else _FIRST
    while True:
        records = _first(cells, store, bound)
        excerpts = _excerpts(cells, records, store)
        number = bound if limit is not None else _fitting(records, excerpts, budget)
        if number < bound or limit is not None or all(len(own) < bound for own in records):
            break
        # As many again are read, and no more: the memory that a page takes is a matter of its budget.
        del records, excerpts
        bound *= 2
    columns = _Columns()
    for place, own in enumerate(records):
        for record in own[:number]:
            columns.add(place, record, excerpts[place])
    return {
        "texts": columns.pool.texts,
        "prompts": columns.prompts,
        "rows": columns.rows,
        "shown": [min(number, len(own)) for own in records],
    }


def _first(cells: Sequence[CellSummary], store: ResultStore, number: int) -> list[list[SampleRecord]]:
    """Return the first records of each cell, without reading further."""
    return [
        # A finished file is in order; what an interrupted larger run left beyond n is no part of the cell.
        list(islice(read_records(store.path(summary.cell)), min(summary.n, number)))
        for summary in cells
    ]


def _row_size(record: SampleRecord) -> int:
    return _ROW_BYTES + _size(record.text or "") + 12 * len(record.curve or ())


def _excerpts(
    cells: Sequence[CellSummary], records: Sequence[Sequence[SampleRecord]], store: ResultStore
) -> list[dict[str, Excerpt]]:
    """Return each cell's excerpts by hash, those of its records only; the methods of one base share them."""
    found: dict[tuple[str, str, int], dict[str, Excerpt]] = {}
    made = []
    for summary, own in zip(cells, records, strict=True):
        key = (summary.cell.model, summary.cell.task, summary.cell.length)
        if key not in found:
            found[key] = read_excerpts(store._prompts(summary.cell), {record.hash for record in own})
        made.append(found[key])
    return made


def _fitting(records: Sequence[Sequence[SampleRecord]], excerpts: Sequence[dict[str, Excerpt]], budget: int) -> int:
    """Return how many examples of each cell fit the budget, at least one."""
    spent, seen = 0, set()
    most = max(map(len, records), default=0)
    for place in range(most):
        for own, kept in zip(records, excerpts, strict=True):
            if place >= len(own):
                continue
            record = own[place]
            spent += _row_size(record)
            if record.hash not in seen:
                seen.add(record.hash)
                spent += _size(record.references) + _PROMPT_BYTES
                spent += _size(_excerpt_texts(kept[record.hash])) if record.hash in kept else 0
        if spent > budget:
            return max(1, place)
    return max(1, most)


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _excerpt_texts(excerpt: Excerpt) -> list[str]:
    return [excerpt.begin, excerpt.end, excerpt.answer_prefix, *excerpt.needles]


class _Columns:
    """The rows of a page as they come."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.prompts: list[dict[str, Any]] = []
        self.rows: dict[str, list[Any]] = {
            name: [] for name in ("cell", "id", "prompt", "score", "text", "given", "written", "end", "curve")
        }
        self._prompt_places: dict[tuple[str, tuple[str, ...]], int] = {}

    def add(self, cell: int, record: SampleRecord, excerpts: dict[str, Excerpt]) -> None:
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

    def _prompt(self, record: SampleRecord, excerpts: dict[str, Excerpt]) -> int:
        key = (record.hash, tuple(record.references))
        place = self._prompt_places.setdefault(key, len(self.prompts))
        if place == len(self.prompts):
            prompt: dict[str, Any] = {
                "hash": record.hash,
                "references": [self.pool(reference) for reference in record.references],
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
        return place


def _finite(curve: Sequence[tuple[float, float]] | None) -> list[tuple[float, float]] | None:
    return None if curve is None else [point for point in curve if all(map(math.isfinite, point))]
