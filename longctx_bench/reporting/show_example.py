"""``longctx-bench show``: one stored example as text, with prompt, references, generation and score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from longctx_bench.reporting.results import CellSummary, read_store
from longctx_bench.store.bundle import open_store
from longctx_bench.store.prompt_excerpts import PromptExcerpt, make_excerpt, read_excerpts
from longctx_bench.store.reader import DamagedCellError, read_records
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import LEFT_OUT, StoredRecord, to_builtins


class _PromptSpec(BaseModel):
    """The fields of a cell's spec that determine its prompts, besides the task."""

    model_config = ConfigDict(extra="ignore")

    weights: Source
    length: StrictInt = Field(ge=0, le=2**27)
    seed: StrictInt
    chat_template: StrictBool


def show_example(
    folder: Path,
    cell_name: str,
    example_id: str | None,
    registry: Registry | None = None,
    compare_with: str | None = None,
) -> str:
    """Return one example as text: prompt (start, needle, end), references, generation, score.

    Args:
        folder: the run's folder, or a bundle.
        cell_name: cell as in reports, such as ``yarn-tiny/niah/1024``.
        example_id: the example; the first one when None.
        registry: used to rebuild the prompt where the run stored no excerpt; with it, references come back that a
            bundle leaves out. Where that is not possible, such an example is shown without these texts.
        compare_with: another model, such as ``drope-tiny``, whose generation and score are appended.

    Raises:
        UserError: there is no such cell or example, or the rebuilt prompt differs from the one that was run.
    """
    store = open_store(folder)
    summary = _find_cell(store, cell_name)
    requested_id = example_id.zfill(6) if example_id else None
    record, id_range = None, list[str]()
    for candidate in _records(store, summary.cell):
        id_range = [min([candidate.id, *id_range[:1]]), max([candidate.id, *id_range[-1:]])]
        if record is None and requested_id in {None, candidate.id}:
            record = candidate
    if record is None:
        raise UserError(f"{cell_name}: has no example {example_id}; it has {id_range[0]} to {id_range[1]}")
    other = "" if compare_with is None else _other_model(store, summary.cell, compare_with, record.hash)
    excerpt = read_excerpts(store.excerpts_path(summary.cell), {record.hash}).get(record.hash)
    references = record.reference_texts
    if excerpt is None:
        try:
            example = _rebuild_example(summary, record.id, registry or Registry())
        except UserError as error:
            if not record.references_sha256:
                raise
            return escape_control_chars(_text(summary.cell, None, record, references, str(error)) + other)
        if example.hash != record.hash:
            raise UserError(
                f"{cell_name}: example {record.id}, rebuilt, differs from the one in the run; give the same --data or "
                "use the version that ran it"
            )
        excerpt, references = make_excerpt(example), list(example.references)
    return escape_control_chars(_text(summary.cell, excerpt, record, references) + other)


def _other_model(store: ResultStore, cell: Cell, variant: str, example_hash: str) -> str:
    """Return another model's generation and score on the same example, as further lines."""
    name = f"{variant}/{cell.task}/{length_name(cell.length)}"
    for record in _records(store, _find_cell(store, name).cell):
        if record.hash == example_hash:
            return "\n".join(("", f"=== {name}", *_generation_lines(record)))
    raise UserError(f"--compare-with {variant}: was not given this example; its prompts differ")


def _records(store: ResultStore, cell: Cell) -> Iterator[StoredRecord]:
    """Yield a finished cell's records.

    Raises:
        UserError: the file was damaged since the cell was found.
    """
    folder = store.path(cell)
    try:
        yield from read_records(folder)
    except DamagedCellError as error:
        raise UserError(f"{folder}: {error}") from error


def _find_cell(store: ResultStore, name: str) -> CellSummary:
    results, folder = read_store(store), store.folder
    cells = {str(summary.cell): summary for summary in results.finished}
    if name not in cells:
        variant, _, task_and_length = name.partition("/")
        for line in results.missing:
            model, method, rest = line.split("/", 2)
            if f"{method}-{model}" == variant and rest.startswith(f"{task_and_length}:"):
                raise UserError(f"{folder}: {line}")
        raise UserError(f"{name}: no such finished cell in {folder}{did_you_mean(name, cells)}")
    return cells[name]


def _rebuild_example(summary: CellSummary, example_id: str, registry: Registry) -> Example:
    """Generate an example's prompt again.

    Results may come from anyone, so a cell cannot make this import, download or open anything: the task is the
    registry's own of that name, and the weights are listed there or were used on this machine before.
    """
    # Heavy imports, not needed where the run stored an excerpt.
    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.models.checkpoint import checkpoint_folder, prompt_tokenizer

    cell, spec = summary.cell, to_builtins(summary.result.spec)
    prefix = f"{cell}: its prompts were not stored and cannot be rebuilt"
    if cell.task.startswith(PREFIX):
        raise UserError(f"{prefix}: lm-eval generates the prompts of its own tasks")
    if cell.task not in registry.tasks:
        raise UserError(f"{prefix}: task '{cell.task}' is not known; give its folder with --include-path")
    try:
        prompt_spec = _PromptSpec.model_validate(spec)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{prefix}: '{where}' in its spec is not valid") from error
    if not is_trusted(prompt_spec.weights, registry.models.values()):
        raise UserError(
            f"{prefix}: {source_label(prompt_spec.weights)} is neither a listed model nor one used on this "
            f"machine before; if you trust it, run `longctx-bench data pull` on it first"
        )
    if not (example_id.isascii() and example_id.isdecimal()) or int(example_id) >= summary.n:
        raise UserError(f"{prefix}: it has {summary.n} examples, and no example {example_id}")
    task = registry.tasks[cell.task]
    tokenizer = prompt_tokenizer(checkpoint_folder(prompt_spec.weights))
    encoder = PromptEncoder(tokenizer, prompt_spec.chat_template and task.chat_template)
    benchmark = registry.benchmark(task)
    examples = benchmark.examples(
        encoder, prompt_spec.length, task.max_new_tokens, int(example_id) + 1, prompt_spec.seed
    )
    rebuilt = next((example for example in examples if example.id == example_id), None)
    if rebuilt is None:
        raise UserError(f"{prefix}: its data has no example {example_id}; give the same --data as in the run")
    return rebuilt


def _text(
    cell: Cell, excerpt: PromptExcerpt | None, record: StoredRecord, references: Sequence[str], missing: str = ""
) -> str:
    """Return an example as text; without an excerpt, ``missing`` says why there is none."""
    if excerpt is None:
        prompt = ["--- prompt", LEFT_OUT, f"[with the data, it would be written again: {missing}]"]
    else:
        prompt = ["--- prompt", _prompt_text(excerpt), "--- answer prefix", excerpt.answer_prefix]
    num_tokens = record.prompt_tokens if excerpt is None else excerpt.n_tokens
    return "\n".join(
        (
            f"{cell}, example {record.id}: {num_tokens:,} prompt tokens{_needles(record)}",
            *prompt,
            "--- references",
            *references,
            *_generation_lines(record),
        )
    )


def _prompt_text(excerpt: PromptExcerpt) -> str:
    if not excerpt.hidden:
        return excerpt.begin + excerpt.end
    needles = "".join(f"\n    ... {needle} ..." for needle in excerpt.needles)
    return f"{excerpt.begin}\n[... {excerpt.hidden:,} characters{needles} ...]\n{excerpt.end}"


def _generation_lines(record: StoredRecord) -> tuple[str, ...]:
    return (
        f"--- generation ({record.new_tokens} tokens, {describe_finish_reason(record.finish_reason)})",
        record.text or "",
        f"--- {record.metric}: {_score_text(record)}",
    )


def _needles(record: StoredRecord) -> str:
    """Return the needle depths as text, empty where there are none."""
    if not record.depths:
        return ""
    depths = ", ".join(f"{depth:.4g}" for depth in record.depths)
    return f", {'needle' if len(record.depths) == 1 else 'needles'} at {depths} % of its length"


def _score_text(record: StoredRecord) -> str:
    builtin = shipped_metric(record.metric)
    return f"{100 * record.score:g} %" if builtin is None or builtin.percent else f"{record.score:.4f}"
