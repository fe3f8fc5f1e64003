"""Bringing an example back from its cell: prompt, references, generation and score."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from longctx_bench.benchmarks.encoder import PromptEncoder
from longctx_bench.engines.checkpoints import checkpoint_folder, load_tokenizer
from longctx_bench.errors import UserError, near_miss
from longctx_bench.records import Cell, Example
from longctx_bench.registry import Registry
from longctx_bench.reporting.summaries import CellSummary, read_cells
from longctx_bench.specs import Source, TaskSpec
from longctx_bench.store import ResultStore

_ENDS = 700
"""Characters of the prompt's beginning and end that are shown."""


def replay(folder: Path, cell_name: str, example_id: str | None, registry: Registry | None = None) -> str:
    """Return one example as text: prompt (beginning, needle, end), references, generation, score.

    Raises:
        UserError: no such cell or example, or the prompt written again differs from the one that was run.
    """
    summary = _find(folder, cell_name)
    records = {record["id"]: record for record in ResultStore(folder).records(summary.cell)}
    wanted = example_id.zfill(6) if example_id else next(iter(records))
    if wanted not in records:
        raise UserError(f"{cell_name}: has no example {example_id}; it has {min(records)} to {max(records)}")
    record = records[wanted]
    example = _example(summary, wanted, registry or Registry())
    if example.hash != record["hash"]:
        raise UserError(
            f"{cell_name}: example {wanted} written again differs from the one that was run; name the same --data as "
            f"then, or use that version"
        )
    return _text(summary.cell, example, record)


def _find(folder: Path, name: str) -> CellSummary:
    found = {str(summary.cell): summary for summary in read_cells(folder).finished}
    if name not in found:
        raise UserError(f"{name}: no such finished cell in {folder}{near_miss(name, found)}")
    return found[name]


def _example(summary: CellSummary, wanted: str, registry: Registry) -> Example:
    spec: dict[str, Any] = summary.details["spec"]
    sources: TypeAdapter[Any] = TypeAdapter(Source)
    folder = checkpoint_folder(sources.validate_python(spec["weights"]))
    # The parameters are the cell's own; the registry only says which folder a task's own code lies in.
    task = TaskSpec(**spec["task"], samples=summary.n)
    benchmark = registry.benchmark(task)
    encoder = PromptEncoder(load_tokenizer(folder), spec["chat_template"] and task.chat_template)
    written = benchmark.examples(encoder, spec["length"], task.max_new_tokens, int(wanted) + 1, spec["seed"])
    return next(example for example in written if example.id == wanted)


def _text(cell: Cell, example: Example, record: dict[str, Any]) -> str:
    prompt = example.prompt
    if "text" not in record:
        record = {"text": "", "finish_reason": "no generation", **record}
    if len(prompt) > 2 * _ENDS:
        hidden = prompt[_ENDS:-_ENDS]
        found = _needles(hidden, example.references)
        prompt = f"{prompt[:_ENDS]}\n[... {len(hidden):,} characters{found} ...]\n{prompt[-_ENDS:]}"
    return "\n".join(
        (
            f"{cell}, example {example.id}: {example.n_tokens} prompt tokens, needle at {list(example.depths)} %",
            "--- prompt",
            prompt,
            "--- answer prefix",
            example.answer_prefix,
            "--- references",
            *example.references,
            f"--- generation ({record['new_tokens']} tokens, ended by {record['finish_reason']})",
            _printable(record["text"]),
            f"--- {record['metric']}: {100 * record['score']:g} %",
        )
    )


def _needles(hidden: str, references: tuple[str, ...]) -> str:
    """Return the sentences of the part not shown that hold a reference."""
    found = [
        " ".join(hidden[max(0, match.start() - 80) : match.end() + 20].split())
        for reference in references
        for match in re.finditer(re.escape(reference), hidden)
    ]
    return "".join(f"\n    ... {sentence} ..." for sentence in found[:8])


def _printable(text: str) -> str:
    """Escape control characters: a model's text must not move the reader's cursor."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
