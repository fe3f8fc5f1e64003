"""Bringing an example back from its cell: prompt, references, generation and score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from longctx_bench.benchmarks.lm_eval_task import PREFIX
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.sanitize import escape_control_chars
from longctx_bench.core.sources import source_label
from longctx_bench.core.specs import Source
from longctx_bench.core.types import Cell, Example, describe_finish_reason, length_name
from longctx_bench.metrics import shipped_metric
from longctx_bench.models.trusted_sources import is_trusted
from longctx_bench.registry import Registry
from longctx_bench.reporting.results import CellSummary, read_cells
from longctx_bench.store.prompt_excerpts import Excerpt, excerpt, read_excerpts
from longctx_bench.store.reader import DamagedError, read_records
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import SampleRecord, plain


class _Asked(BaseModel):
    """What of a cell's spec decides on its prompts, beside its task; the rest of the spec is not looked at."""

    model_config = ConfigDict(extra="ignore")

    weights: Source
    length: StrictInt = Field(ge=0, le=2**27)
    seed: StrictInt
    chat_template: StrictBool


def replay(
    folder: Path, cell_name: str, example_id: str | None, registry: Registry | None = None, beside: str | None = None
) -> str:
    """Return one example as text: prompt (beginning, needle, end), references, generation, score.

    Args:
        folder: the run's.
        cell_name: as reports print it, ``yarn-tiny/niah/1024``.
        example_id: the first when None.
        registry: writes a prompt again that the run did not keep.
        beside: another contestant, ``drope-tiny``, whose generation and score on the same example follow.

    Raises:
        UserError: no such cell or example, or the prompt written again differs from the one that was run.
    """
    summary = _find(folder, cell_name)
    store = ResultStore(folder)
    wanted = example_id.zfill(6) if example_id else None
    record, ids = None, list[str]()
    for found in _records(store, summary.cell):
        ids = [min([found.id, *ids[:1]]), max([found.id, *ids[-1:]])]
        if record is None and wanted in {None, found.id}:
            record = found
    if record is None:
        raise UserError(f"{cell_name}: has no example {example_id}; it has {ids[0]} to {ids[1]}")
    other = "" if beside is None else _beside(store, summary.cell, beside, record.hash)
    kept = read_excerpts(store._prompts(summary.cell), {record.hash}).get(record.hash)
    if kept is None:
        example = _example(summary, record.id, registry or Registry())
        if example.hash != record.hash:
            raise UserError(
                f"{cell_name}: example {record.id} written again differs from the one that was run; name the same "
                f"--data as then, or use that version"
            )
        kept = excerpt(example)
    return escape_control_chars(_text(summary.cell, kept, record) + other)


def _beside(store: ResultStore, cell: Cell, contestant: str, example_hash: str) -> str:
    """Return what another contestant made of the same example, as further lines."""
    name = f"{contestant}/{cell.task}/{length_name(cell.length)}"
    for record in _records(store, _find(store.folder, name).cell):
        if record.hash == example_hash:
            return "\n".join(("", f"=== {name}", *_answered(record)))
    raise UserError(f"--beside {contestant}: was not given this example; its prompts differ")


def _records(store: ResultStore, cell: Cell) -> Iterator[SampleRecord]:
    """Yield a finished cell's records, one after the other.

    Raises:
        UserError: the file has been damaged since the cell was found.
    """
    folder = store.path(cell)
    try:
        yield from read_records(folder)
    except DamagedError as error:
        raise UserError(f"{folder}: {error}") from error


def _find(folder: Path, name: str) -> CellSummary:
    results = read_cells(folder)
    found = {str(summary.cell): summary for summary in results.finished}
    if name not in found:
        who, _, place = name.partition("/")
        for line in results.missing:
            model, method, rest = line.split("/", 2)
            if f"{method}-{model}" == who and rest.startswith(f"{place}:"):
                raise UserError(f"{folder}: {line}")
        raise UserError(f"{name}: no such finished cell in {folder}{did_you_mean(name, found)}")
    return found[name]


def _example(summary: CellSummary, example_id: str, registry: Registry) -> Example:
    """Write an example again.

    Results may be anybody's, and nothing is imported, fetched or opened because a cell says so: the task is the
    registry's own of that name, the weights are listed there or were named on this machine.
    """
    # Heavy, and not needed for what a run has kept.
    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.models.checkpoint import checkpoint_folder, prompt_tokenizer

    cell, spec = summary.cell, plain(summary.result.spec)
    again = f"{cell}: its prompts were not kept, and cannot be written again"
    if cell.task.startswith(PREFIX):
        raise UserError(f"{again}: lm-eval writes those of its tasks itself")
    if cell.task not in registry.tasks:
        raise UserError(f"{again}: no task '{cell.task}' is known here; name its folder with --task-folder")
    try:
        asked = _Asked.model_validate(spec)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{again}: '{where}' of its spec is not what a run writes") from error
    if not is_trusted(asked.weights, registry.models.values()):
        raise UserError(
            f"{again}: {source_label(asked.weights)} is neither a listed model nor one that was named on this machine; "
            f"if you trust it, `longctx-bench data pull` it first"
        )
    if not (example_id.isascii() and example_id.isdecimal()) or int(example_id) >= summary.n:
        raise UserError(f"{again}: it has {summary.n} examples, and none of the number {example_id}")
    task = registry.tasks[cell.task]
    tokenizer = prompt_tokenizer(checkpoint_folder(asked.weights))
    encoder = PromptEncoder(tokenizer, asked.chat_template and task.chat_template)
    benchmark = registry.benchmark(task)
    written = benchmark.examples(encoder, asked.length, task.max_new_tokens, int(example_id) + 1, asked.seed)
    found = next((example for example in written if example.id == example_id), None)
    if found is None:
        raise UserError(f"{again}: its data hold no example {example_id}; name the same --data as then")
    return found


def _text(cell: Cell, kept: Excerpt, record: SampleRecord) -> str:
    prompt = kept.begin + kept.end
    if kept.hidden:
        found = "".join(f"\n    ... {needle} ..." for needle in kept.needles)
        prompt = f"{kept.begin}\n[... {kept.hidden:,} characters{found} ...]\n{kept.end}"
    return "\n".join(
        (
            f"{cell}, example {record.id}: {kept.n_tokens:,} prompt tokens{_needles(record)}",
            "--- prompt",
            prompt,
            "--- answer prefix",
            kept.answer_prefix,
            "--- references",
            *record.references,
            *_answered(record),
        )
    )


def _answered(record: SampleRecord) -> tuple[str, ...]:
    return (
        f"--- generation ({record.new_tokens} tokens, {describe_finish_reason(record.finish_reason)})",
        record.text or "",
        f"--- {record.metric}: {_shown(record)}",
    )


def _needles(record: SampleRecord) -> str:
    """Say where the needles of a prompt stand, nothing where it has none."""
    if not record.depths:
        return ""
    places = ", ".join(f"{depth:.4g}" for depth in record.depths)
    return f", {'needle' if len(record.depths) == 1 else 'needles'} at {places} % of its length"


def _shown(record: SampleRecord) -> str:
    known = shipped_metric(record.metric)
    return f"{100 * record.score:g} %" if known is None or known.percent else f"{record.score:.4f}"
