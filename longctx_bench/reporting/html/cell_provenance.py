"""Provenance of a cell: label and text pairs from ``cell.json``."""

from __future__ import annotations

from typing import Any

from longctx_bench.core.sanitize import describe_parameters
from longctx_bench.reporting.results import CellSummary
from longctx_bench.store.schema import TunedRecord, TuningRecord


def provenance(summary: CellSummary) -> dict[str, str]:
    """Return the provenance of a cell's numbers by label; unknown fields are left out."""
    result, spec = summary.result, summary.result.spec
    engine, environment = result.engine or {}, result.environment or {}
    fields = {
        "factor": f"{result.factor:g} ({result.factor_source})",
        "calibration": _tuning(result.tuning),
        "tuned parameters": _tuned(result.tuned),
        "dtype": engine.get("dtype", spec.dtype),
        "device": engine.get("device"),
        "engine": _listed(engine.get("engine", spec.engine), engine.get("attention")),
        "parity": summary.parity,
        "seed": spec.seed,
        "chat template": "yes" if spec.chat_template else None,
        "protocol": spec.task.protocol,
        "weights": ", ".join(filter(None, (_commit_on_hub(spec.weights or {}), _digests(spec.digests)))),
        "commit": _commit(_object(environment, "git")),
        "versions": _versions(environment),
        "tokens": f"{result.prompt_tokens:,} read, {result.new_tokens:,} written",
        "time": f"{result.seconds:,.1f} s",
        "finished": result.finished,
        "spec": result.spec_hash,
    }
    return {label: str(value) for label, value in fields.items() if value not in (None, "")}


def _object(of: dict[str, Any], key: str) -> dict[str, Any]:
    value = of.get(key)
    return value if isinstance(value, dict) else {}


def _tuning(tuning: TuningRecord | None) -> str:
    if tuning is None:
        return "none"
    return f"{tuning.scalar.replace('_', ' ')} {tuning.value:.4g} by {tuning.source}"


def _tuned(tuned: TunedRecord | None) -> str:
    if tuned is None:
        return ""
    return f"{describe_parameters(tuned.parameters)} by {tuned.objective}, chosen at {tuned.scale:g}x"


def _commit(git: dict[str, Any]) -> str:
    commit = str(git.get("commit") or "")[:12]
    return commit + (" (with local changes)" if commit and git.get("dirty") else "")


def _versions(environment: dict[str, Any]) -> str:
    versions = {
        "longctx-bench": environment.get("longctx_bench"),
        "Python": environment.get("python"),
        **_object(environment, "packages"),
    }
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)


def _commit_on_hub(weights: dict[str, Any]) -> str:
    return f"{weights['hub']}@{weights['revision'][:12]}" if weights.get("hub") and weights.get("revision") else ""


def _digests(digests: dict[str, Any]) -> str:
    return ", ".join(str(value) if name == "weights" else f"{name} {value}" for name, value in digests.items())


def _listed(*values: Any) -> str:
    return ", ".join(str(value) for value in values if value)
