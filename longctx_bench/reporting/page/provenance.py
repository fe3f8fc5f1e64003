"""What a cell's numbers come from, as pairs of label and text."""

from __future__ import annotations

from typing import Any

from longctx_bench.reporting.summaries import CellSummary


def provenance(summary: CellSummary) -> dict[str, str]:
    """Return what ``cell.json`` says of where a cell's numbers come from; what it does not say is left out."""
    details = summary.details
    spec, engine = _object(details, "spec"), _object(details, "engine")
    environment = _object(details, "environment")
    found = {
        "factor": _factor(details),
        "calibration": _tuning(details),
        "dtype": engine.get("dtype", spec.get("dtype")),
        "device": engine.get("device"),
        "engine": _listed(engine.get("engine", spec.get("engine")), engine.get("attention")),
        "parity": summary.parity,
        "seed": spec.get("seed"),
        "chat template": "yes" if spec.get("chat_template") else None,
        "protocol": _object(spec, "task").get("protocol"),
        "weights": ", ".join(
            filter(None, (_commit_on_hub(_object(spec, "weights")), _digests(_object(spec, "digests"))))
        ),
        "commit": _commit(_object(environment, "git")),
        "versions": _versions(environment),
        "tokens": _tokens(details),
        "time": f"{details['seconds']:,.1f} s" if details.get("seconds") is not None else None,
        "finished": details.get("finished"),
        "spec": details.get("spec_hash"),
    }
    return {label: str(value) for label, value in found.items() if value not in (None, "")}


def _object(of: dict[str, Any], key: str) -> dict[str, Any]:
    value = of.get(key)
    return value if isinstance(value, dict) else {}


def _factor(details: dict[str, Any]) -> str:
    if details.get("factor") is None:
        return ""
    return f"{details['factor']:g} ({details.get('factor_source', 'unknown')})"


def _tuning(details: dict[str, Any]) -> str:
    tuning = _object(details, "tuning")
    if not tuning:
        return "none"
    return f"{tuning['scalar'].replace('_', ' ')} {tuning['value']:.4g} by {tuning['source']}"


def _commit(git: dict[str, Any]) -> str:
    commit = str(git.get("commit") or "")[:12]
    return commit + (" (with local changes)" if commit and git.get("dirty") else "")


def _versions(environment: dict[str, Any]) -> str:
    own = {
        "longctx-bench": environment.get("longctx_bench"),
        "Python": environment.get("python"),
        **_object(environment, "packages"),
    }
    return ", ".join(f"{name} {value}" for name, value in own.items() if value)


def _commit_on_hub(weights: dict[str, Any]) -> str:
    return f"{weights['hub']}@{weights['revision'][:12]}" if weights.get("hub") and weights.get("revision") else ""


def _digests(digests: dict[str, Any]) -> str:
    return ", ".join(str(value) if name == "weights" else f"{name} {value}" for name, value in digests.items())


def _tokens(details: dict[str, Any]) -> str:
    if details.get("prompt_tokens") is None:
        return ""
    return f"{details['prompt_tokens']:,} read, {details.get('new_tokens', 0):,} written"


def _listed(*values: Any) -> str:
    return ", ".join(str(value) for value in values if value)
