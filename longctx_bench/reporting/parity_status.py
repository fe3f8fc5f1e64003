"""Parity status: whether a vLLM result is covered by a certificate of ``longctx-bench parity``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_bench.core.types import NATURAL
from longctx_bench.core.untrusted_files import UnreadableFile, parse_object, read_content
from longctx_bench.store.schema import CellResult, to_builtins, upgrade_certificate

_MUST_MATCH = {
    "model": ("spec.model", "model"),
    "method": ("spec.method.id", "method.id"),
    "version of the method": ("spec.method.version", "method.version"),
    "method's parameters": ("spec.method.params", "method.params"),
    "method's code": ("spec.code.method", "code.method"),
    "weights": ("spec.weights", "weights"),
    "digest of the weights": ("spec.digests.weights", "digests.weights"),
    "dtype": ("spec.dtype", "dtype"),
    "version of vLLM": ("engine.vllm", "engines.vllm.vllm"),
    "device": ("engine.device", "engines.vllm.device"),
    "tensor parallelism": ("engine.tensor_parallel", "engines.vllm.tensor_parallel"),
    "version of torch": ("environment.packages.torch", "environment.packages.torch"),
    "version of transformers": ("environment.packages.transformers", "environment.packages.transformers"),
    "version of longctx-bench": ("environment.longctx_bench", "environment.longctx_bench"),
}
"""What a certificate must share with a cell: dotted keys in ``cell.json`` and in the certificate."""


@dataclass(frozen=True)
class ParityStatus:
    """Whether a vLLM result is certified against transformers."""

    certified: bool
    reason: str = ""
    """Why it is not certified."""

    def __str__(self) -> str:
        return "certified against transformers" if self.certified else f"not certified ({self.reason})"


def read_certificates(folder: Path) -> list[dict[str, Any]]:
    """Return the certificates of a run's folder; files that are not certificates are skipped."""
    certificates = []
    for path in sorted((folder / "parity").glob("*.json")):
        try:
            certificate = parse_object(read_content(path))
        except (FileNotFoundError, UnreadableFile):
            continue
        if isinstance(certificate.get("lengths"), dict):
            certificates.append(upgrade_certificate(certificate))
    return certificates


def parity_status(result: CellResult, certificates: Sequence[dict[str, Any]]) -> ParityStatus | None:
    """Return whether a cell is certified for its own weights, parameters, length, dtype and versions.

    Args:
        result: the cell's result.
        certificates: certificates of the same folder.

    Returns:
        The status; None for engines other than vLLM, which need no certificate.
    """
    if result.spec.engine != "vllm":
        return None
    cell, details = result.cell, to_builtins(result)
    if cell.length == NATURAL:
        return ParityStatus(False, "whole documents have no certificate")
    name = f"{cell.method}-{cell.model}"
    candidates = [certificate for certificate in certificates if certificate.get("contestant") == name]
    if not candidates:
        return ParityStatus(False, "no certificate")
    # The closest certificate gives the most useful reason.
    differing, closest = min(
        ((_mismatches(details, candidate), candidate) for candidate in candidates), key=lambda pair: len(pair[0])
    )
    if differing:
        return ParityStatus(False, f"the certificate has another {' and another '.join(differing)}")
    section = closest["lengths"].get(str(cell.length))
    if section is None:
        return ParityStatus(False, "the certificate lacks this length")
    passed = isinstance(section, dict) and section.get("passed") is True
    return ParityStatus(passed, "" if passed else "failed at this length")


def _mismatches(details: dict[str, Any], certificate: dict[str, Any]) -> list[str]:
    """Return the names of what a certificate does not share with a cell."""
    return [
        name
        for name, (cell_key, certificate_key) in _MUST_MATCH.items()
        if _lookup(details, cell_key) != _lookup(certificate, certificate_key)
    ]


def _lookup(value: Any, key: str) -> Any:
    """Return the value at a dotted key; None where there is none."""
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
