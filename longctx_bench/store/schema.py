"""What a cell's files hold: types, a version, and the identity that decides whether two cells are the same measurement.

``cell.json`` is a :class:`CellResult`, a line of ``records.jsonl`` a :class:`SampleRecord`. Files of an older version
are read as if they were of this one (:func:`upgraded`); ``longctx-bench migrate`` writes them so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta

SCHEMA_VERSION = 2
"""1: no version in the file; a cell was known by its whole spec, the import paths of its classes included."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Name = Annotated[str, Meta(max_length=200, pattern=r"\A[ -~]*\Z")]
"""Printable ASCII."""


class CellKey(msgspec.Struct, frozen=True):
    """Where a cell lies; see :class:`longctx_bench.core.types.Cell`."""

    model: str
    method: str
    task: str
    length: Count


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The base model."""

    name: str
    original_length: Positive
    """Training context, tokens."""
    source: dict[str, str | None] | None = None
    licence: str = "unknown"
    native_method: str = "rope"


class MethodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The method and its parameters."""

    name: str
    """In the YAML, and in the cell's folder."""
    id: str
    """Of the class, wherever it stands in the code."""
    version: Positive = 1
    """Raised when the same parameters come to mean something else."""
    use: str = ""
    """Where the class stood when the cell was measured; not part of the identity."""
    params: dict[str, Any] = {}


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The task: benchmark, metric, and everything that decides what the model is given and how it is scored."""

    name: str
    benchmark: str
    """The id of the benchmark's class."""
    benchmark_version: Positive = 1
    use: str = ""
    """Where the class stood when the cell was measured; not part of the identity."""
    metric: str = ""
    metric_version: Positive = 1
    max_new_tokens: Count = 0
    min_new_tokens: Count = 0
    stop: list[str] = []
    chat_template: bool = True
    protocol: str | None = None
    grid: str | None = None
    """The parameter that says how many depths the needle takes in turn, where the benchmark has one."""
    params: dict[str, Any] | None = {}

    def as_measured(self) -> dict[str, Any]:
        """Return it without what two versions of the code may say differently of the same measurement."""
        return {name: value for name, value in plain(self).items() if name not in {"use", "grid"}}


class CellSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a cell's numbers depend on but the number of examples: a larger limit adds to a cell."""

    model: ModelRecord
    weights: dict[str, str | None] | None = None
    """Their source: a hub repository and revision, say."""
    method: MethodRecord
    task: TaskRecord
    digests: dict[str, str | None] = {}
    """Of weights and data that lie on this machine, by name."""
    code: dict[str, Any] = {}
    """Digests of plug-ins' source by what they are: ``method``, ``task``."""
    length: Count = 0
    seed: int
    chat_template: bool
    engine: str
    dtype: str

    def identity(self) -> dict[str, Any]:
        """Return what tells two measurements apart.

        Names say where a cell lies, import paths where its code lay: both may change, and the measurement stays the
        same. Ids, versions, parameters, weights and data may not.
        """
        method, task = self.method, self.task
        return {
            # A folder that was moved, or has another name, holds the same weights.
            "weights": self.digests.get("weights") or self.weights,
            "data": {name: digest for name, digest in self.digests.items() if name != "weights"},
            "training_context": self.model.original_length,
            "method": [method.id, method.version, method.params],
            "benchmark": [task.benchmark, task.benchmark_version, task.params],
            "metric": [task.metric, task.metric_version],
            "generation": [task.max_new_tokens, task.min_new_tokens, task.stop],
            "chat_template": self.chat_template and task.chat_template,
            "code": self.code,
            "length": self.length,
            "seed": self.seed,
            "engine": self.engine,
            "dtype": self.dtype,
        }

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the identity's sha256."""
        canonical = json.dumps(self.identity(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Tuning(msgspec.Struct, frozen=True):
    """A method's scalar at this length."""

    scalar: str
    value: float
    source: str


class CellResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A finished cell, ``cell.json``."""

    schema_version: int
    cell: CellKey
    original_length: Positive
    metric: str
    score: float
    """Mean over the examples; of losses, over the tokens."""
    n: Positive
    exhausted: bool
    """True when the data holds no more examples."""
    prompt_tokens: Count
    new_tokens: Count
    seconds: float
    factor: float
    """Extension factor that the method was given."""
    factor_source: str
    applied: Any = None
    """Settings that the method changed in the model's config."""
    tuning: Tuning | None = None
    virtual_length: float | None = None
    """Largest factor of the virtual length that the weights were trained under, where they were."""
    spec_hash: str
    """:attr:`CellSpec.hash`."""
    spec: CellSpec
    engine: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    """Versions, commit, system."""
    executor: dict[str, Any] | None = None
    peak_memory: Count | None = None
    """Bytes."""
    training_tokens: Count | None = None
    percent: bool | None = None
    """Of a metric that is not this package's own: whether scores lie in [0, 1] and are shown as per cent."""
    higher_is_better: bool | None = None
    """Of such a metric: its direction."""
    lm_eval: dict[str, Any] | None = None
    """What lm-eval says of a task of its own."""
    finished: str
    """Time, ISO 8601."""


class SampleRecord(msgspec.Struct, gc=False):
    """One line of ``records.jsonl``; whatever else it holds is passed over."""

    id: Name
    hash: Name
    score: float
    metric: Name = ""
    text: str | None = None
    """What the model wrote; None where it was not to write."""
    references: list[str] = []
    depths: list[Annotated[float, Meta(ge=0, le=100)]] = []
    prompt_tokens: Count = 0
    new_tokens: Count = 0
    finish_reason: Name | None = None
    document_tokens: Count | None = None
    words: Count | None = None
    scored: Positive = 1
    curve: list[tuple[Count | float, float]] | None = None


class UnsupportedVersionError(Exception):
    """A file of a version that this one does not know."""


def plain(value: Any) -> Any:
    """Return what JSON holds of a spec or result."""
    return msgspec.to_builtins(value)


def parse_result(values: Any) -> CellResult:
    """Return what a ``cell.json`` of any version holds.

    Raises:
        UnsupportedVersionError: a later version wrote it.
        msgspec.ValidationError: keys are missing or of another type.
    """
    return msgspec.convert(upgraded(values) if isinstance(values, Mapping) else values, CellResult)


def parse_spec(values: Mapping[str, Any]) -> CellSpec:
    """Return the spec that ``cell.json`` or ``started.json`` of any version holds; errors as :func:`parse_result`."""
    return msgspec.convert(upgraded(values).get("spec"), CellSpec)


def upgraded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ``cell.json`` or ``started.json`` would hold had this version written it.

    What is not as any version wrote it stays as it is, for the types to refuse.

    Raises:
        UnsupportedVersionError: a later version wrote it.
    """
    version = values.get("schema_version", 1)
    if version == SCHEMA_VERSION:
        return values
    if version != 1:
        raise UnsupportedVersionError(
            f"has schema version {version!r:.20}, this longctx-bench reads up to {SCHEMA_VERSION}; update it"
        )
    try:
        spec = _upgraded_spec(values)
    except (KeyError, TypeError, AttributeError, ValueError):
        return values
    result = {"schema_version": SCHEMA_VERSION, "exhausted": False, **values, "spec": spec}
    with suppress(msgspec.ValidationError, RecursionError):
        result["spec_hash"] = msgspec.convert(spec, CellSpec).hash
    return result


def upgraded_method(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's record of version 1 as this version has it: with the id of its class."""
    return {"id": _id_of(method.get("use", "")) or method["name"], "version": 1, **method}


def upgraded_certificate(certificate: dict[str, Any]) -> dict[str, Any]:
    """Return a certificate of ``longctx-bench parity`` as this version writes it; what no version wrote, as it is."""
    method = certificate.get("method")
    if not isinstance(method, dict) or "id" in method:
        return certificate
    if not (isinstance(method.get("name"), str) and isinstance(method.get("use", ""), str)):
        return certificate
    return certificate | {"method": upgraded_method(method)}


def _upgraded_spec(values: Mapping[str, Any]) -> dict[str, Any]:
    spec, cell = dict(values["spec"]), values.get("cell") or {}
    context = values.get("original_length", 1)
    if isinstance(spec.get("model", {}), Mapping):
        spec["model"] = {"name": cell.get("model", ""), "original_length": context, **spec.get("model", {})}
    spec["method"] = upgraded_method({"name": cell.get("method", ""), **(spec.get("method") or {})})
    task = spec["task"]
    benchmark = _id_of(task.get("use", "")) or task["name"]
    metric = values.get("metric", "")
    grid = "depth_grid" if "depth_grid" in (task.get("params") or {}) else None
    spec["task"] = {
        "grid": grid,
        "benchmark": benchmark,
        "benchmark_version": 1,
        "metric": metric,
        "metric_version": 1,
        **task,
    }
    spec.setdefault("length", cell.get("length", 0))
    if spec.get("digests") is None:
        spec["digests"] = {}
    return spec


def _id_of(use: str) -> str:
    """Return the id of the class that stood at an import path in version 1."""
    return _IDS_OF_PATHS.get(use) or use.rpartition(":")[2]


_IDS_OF_PATHS = {
    "longctx_bench.benchmarks.counting:CommonWords": "ruler-common-words",
    "longctx_bench.benchmarks.counting:FrequentWords": "ruler-frequent-words",
    "longctx_bench.benchmarks.lm_eval:LMEval": "lm-eval",
    "longctx_bench.benchmarks.longbench:LongBench": "longbench",
    "longctx_bench.benchmarks.needles:Needles": "needle-in-a-haystack",
    "longctx_bench.benchmarks.perplexity:Perplexity": "perplexity",
    "longctx_bench.benchmarks.qa:QuestionAnswering": "ruler-question-answering",
    "longctx_bench.benchmarks.ruler_paper_hidden:PaperNeedles": "ruler-upstream-niah",
    "longctx_bench.benchmarks.ruler_paper_hidden:PaperTracking": "ruler-upstream-variable-tracking",
    "longctx_bench.benchmarks.ruler_paper_lists:PaperCommonWords": "ruler-upstream-common-words",
    "longctx_bench.benchmarks.ruler_paper_lists:PaperFrequentWords": "ruler-upstream-frequent-words",
    "longctx_bench.benchmarks.ruler_paper_lists:PaperQuestions": "ruler-upstream-question-answering",
    "longctx_bench.benchmarks.tracking:VariableTracking": "ruler-variable-tracking",
    "longctx_bench.methods.alibi:ALiBi": "alibi",
    "longctx_bench.methods.drope:DroPE": "drope",
    "longctx_bench.methods.exported:Exported": "exported",
    "longctx_bench.methods.nope:NoPE": "nope",
    "longctx_bench.methods.rnope_swa:RNoPESWA": "rnope-swa",
    "longctx_bench.methods.rope:Crop": "crop",
    "longctx_bench.methods.rope:DynamicNTK": "dynamic-ntk",
    "longctx_bench.methods.rope:Llama3": "llama3",
    "longctx_bench.methods.rope:LongRoPE": "longrope",
    "longctx_bench.methods.rope:NTK": "ntk",
    "longctx_bench.methods.rope:PI": "pi",
    "longctx_bench.methods.rope:RoPE": "rope",
    "longctx_bench.methods.rope:YaRN": "yarn",
}
"""Of all classes that version 1 had; history, which does not change."""
