"""Schema of a cell's files: typed records, schema version, and cell identity.

``cell.json`` is a :class:`CellResult`, a line of ``records.jsonl`` a :class:`StoredRecord`. Files of an older version
are upgraded as they are read (:func:`upgrade`); ``longctx-bench migrate`` rewrites them.
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
"""1 (no version in the file): a cell was identified by its whole spec, import paths of classes included."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Name = Annotated[str, Meta(max_length=200, pattern=r"\A[ -~]*\Z")]
"""Printable ASCII."""


LEFT_OUT = "[left out: text of a data set]"


class CellKey(msgspec.Struct, frozen=True):
    """Which cell this is; see :class:`longctx_bench.core.types.Cell`."""

    model: str
    method: str
    task: str
    length: Count


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The base model."""

    name: str
    original_length: Positive
    """Training context in tokens."""
    source: dict[str, str | None] | None = None
    licence: str = "unknown"
    native_method: str = "rope"


class MethodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The method and its parameters."""

    name: str
    """As in the YAML and the cell's folder."""
    id: str
    """Id of the class, independent of its import path."""
    version: Positive = 1
    """Raised when the meaning of the same parameters changes."""
    use: str = ""
    """Import path of the class when the cell was measured; not part of the identity."""
    params: dict[str, Any] = {}


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The task: benchmark, metric, and all that determines the prompts and their scoring."""

    name: str
    benchmark: str
    """The id of the benchmark's class."""
    benchmark_version: Positive = 1
    use: str = ""
    """Import path of the class when the cell was measured; not part of the identity."""
    metric: str = ""
    metric_version: Positive = 1
    max_new_tokens: Count = 0
    min_new_tokens: Count = 0
    stop: list[str] = []
    chat_template: bool = True
    protocol: str | None = None
    grid: str | None = None
    """Name of the parameter that sets the number of needle depths, where the benchmark has one."""
    params: dict[str, Any] | None = {}

    def as_measured(self) -> dict[str, Any]:
        """Return the record without the fields that may differ between code versions for the same measurement."""
        return {name: value for name, value in to_builtins(self).items() if name not in {"use", "grid"}}


class CellSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a cell's numbers depend on, except the number of examples: a larger limit extends a cell."""

    model: ModelRecord
    weights: dict[str, str | None] | None = None
    """Source of the weights, such as a hub repository and revision."""
    method: MethodRecord
    task: TaskRecord
    digests: dict[str, str | None] = {}
    """Digests of local weights and data, by name."""
    code: dict[str, Any] = {}
    """Source digests of plug-ins, by kind: ``method``, ``task``."""
    length: Count = 0
    seed: int
    chat_template: bool
    engine: str
    dtype: str

    def identity(self) -> dict[str, Any]:
        """Return the fields that identify a measurement.

        Names and import paths are left out: they may change while the measurement stays the same. Ids, versions,
        parameters, weights and data may not.
        """
        method, task = self.method, self.task
        return {
            # A digest, since a moved or renamed folder holds the same weights.
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
        """First 16 hexadecimal digits of the identity's SHA-256."""
        canonical = json.dumps(self.identity(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class TuningRecord(msgspec.Struct, frozen=True):
    """The value of a method's tuned scalar at this length."""

    scalar: str
    value: float
    source: str


class TunedRecord(msgspec.Struct, frozen=True):
    """The parameters of a method at this length that ``longctx-bench calibrate`` chose."""

    scale: float
    """Extension factor that they were chosen at."""
    parameters: dict[str, Any]
    """Empty where the method's own were as good."""
    objective: str


class CellResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A finished cell: ``cell.json``."""

    schema_version: int
    cell: CellKey
    original_length: Positive
    metric: str
    score: float
    """Mean over examples; for losses, over tokens."""
    n: Positive
    exhausted: bool
    """Whether the data has no more examples."""
    prompt_tokens: Count
    new_tokens: Count
    seconds: float
    factor: float
    """Extension factor passed to the method."""
    factor_source: str
    applied: Any = None
    """Config entries that the method changed."""
    tuning: TuningRecord | None = None
    tuned: TunedRecord | None = None
    virtual_length: float | None = None
    """Largest virtual-length factor in training; None where the weights were not trained with virtual length."""
    spec_hash: str
    """:attr:`CellSpec.hash`."""
    spec: CellSpec
    engine: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    """Package versions, commit, system."""
    executor: dict[str, Any] | None = None
    peak_memory: Count | None = None
    """In bytes."""
    training_tokens: Count | None = None
    percent: bool | None = None
    """For metrics that are not built in: whether scores lie in [0, 1] and are shown in per cent."""
    higher_is_better: bool | None = None
    """For metrics that are not built in."""
    lm_eval: dict[str, Any] | None = None
    """lm-eval's own description of its task."""
    finished: str
    """Time of completion, ISO 8601."""


class StoredRecord(msgspec.Struct, gc=False):
    """One line of ``records.jsonl``; unknown fields are ignored."""

    id: Name
    hash: Name
    score: float
    metric: Name = ""
    text: str | None = None
    """The generation; None for tasks without one."""
    references: list[str] = []
    references_sha256: list[str] = []
    """In place of ``references``, where a bundle leaves them out."""
    depths: list[Annotated[float, Meta(ge=0, le=100)]] = []
    prompt_tokens: Count = 0
    new_tokens: Count = 0
    finish_reason: Name | None = None
    document_tokens: Count | None = None
    words: Count | None = None
    scored: Positive = 1
    curve: list[tuple[Count | float, float]] | None = None

    @property
    def reference_texts(self) -> list[str]:
        """The references, with a placeholder for each that was left out."""
        return self.references or [LEFT_OUT] * len(self.references_sha256)


class UnsupportedVersionError(Exception):
    """The file has a schema version that this package does not know."""


def to_builtins(value: Any) -> Any:
    """Return a record as plain JSON types."""
    return msgspec.to_builtins(value)


def parse_result(values: Any) -> CellResult:
    """Parse a ``cell.json`` of any schema version.

    Raises:
        UnsupportedVersionError: a later version wrote it.
        msgspec.ValidationError: a key is missing or has the wrong type.
    """
    return msgspec.convert(upgrade(values) if isinstance(values, Mapping) else values, CellResult)


def parse_spec(values: Mapping[str, Any]) -> CellSpec:
    """Parse the spec in a ``cell.json`` or ``started.json`` of any version; raises as :func:`parse_result`."""
    return msgspec.convert(upgrade(values).get("spec"), CellSpec)


def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the content of a ``cell.json`` or ``started.json`` in the current schema.

    Malformed content is returned unchanged, for type validation to reject.

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
        spec = _upgrade_spec(values)
    except (KeyError, TypeError, AttributeError, ValueError):
        return values
    result = {"schema_version": SCHEMA_VERSION, "exhausted": False, **values, "spec": spec}
    with suppress(msgspec.ValidationError, RecursionError):
        result["spec_hash"] = msgspec.convert(spec, CellSpec).hash
    return result


def upgrade_method(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method record of version 1 in the current schema, with the id of its class."""
    return {"id": _id_of(method.get("use", "")) or method["name"], "version": 1, **method}


def upgrade_certificate(certificate: dict[str, Any]) -> dict[str, Any]:
    """Return a certificate of ``longctx-bench parity`` in the current schema; malformed ones are returned unchanged."""
    method = certificate.get("method")
    if not isinstance(method, dict) or "id" in method:
        return certificate
    if not (isinstance(method.get("name"), str) and isinstance(method.get("use", ""), str)):
        return certificate
    return certificate | {"method": upgrade_method(method)}


def _upgrade_spec(values: Mapping[str, Any]) -> dict[str, Any]:
    spec, cell = dict(values["spec"]), values.get("cell") or {}
    context = values.get("original_length", 1)
    if isinstance(spec.get("model", {}), Mapping):
        spec["model"] = {"name": cell.get("model", ""), "original_length": context, **spec.get("model", {})}
    spec["method"] = upgrade_method({"name": cell.get("method", ""), **(spec.get("method") or {})})
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
    """Return the id of the class at an import path of version 1."""
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
"""Ids of all classes that version 1 had, by import path. Fixed for good."""
