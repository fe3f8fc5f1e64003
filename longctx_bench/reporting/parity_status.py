"""Whether a number that vLLM made comes from a pair of engines that ``longctx-bench parity`` has certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_bench.core.types import NATURAL
from longctx_bench.core.untrusted_files import UnreadableFile, parse_object, read_content
from longctx_bench.store.schema import CellResult, plain, upgraded_certificate

_SAME = {
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
"""What a certificate must share with a cell: where the cell's ``cell.json`` has it, and where the certificate."""


@dataclass(frozen=True)
class Standing:
    """How a number of vLLM's stands to transformers' certificates."""

    certified: bool
    why: str = ""
    """What keeps it from being certified."""

    def __str__(self) -> str:
        return "certified against transformers" if self.certified else f"not certified ({self.why})"


def read_certificates(folder: Path) -> list[dict[str, Any]]:
    """Return the certificates below a run's folder; what is not one certifies nothing and is passed over."""
    found = []
    for path in sorted((folder / "parity").glob("*.json")):
        try:
            certificate = parse_object(read_content(path))
        except (FileNotFoundError, UnreadableFile):
            continue
        if isinstance(certificate.get("lengths"), dict):
            found.append(upgraded_certificate(certificate))
    return found


def standing(result: CellResult, certificates: Sequence[dict[str, Any]]) -> Standing | None:
    """Tell whether a cell's number is certified: by its own weights, parameters, length, precision and versions.

    Args:
        result: of the cell.
        certificates: of the same folder.

    Returns:
        None where another engine than vLLM made the number: there is nothing to certify.
    """
    if result.spec.engine != "vllm":
        return None
    cell, details = result.cell, plain(result)
    if cell.length == NATURAL:
        return Standing(False, "whole documents have no certificate")
    name = f"{cell.method}-{cell.model}"
    own = [certificate for certificate in certificates if certificate.get("contestant") == name]
    if not own:
        return Standing(False, "no certificate")
    # The nearest one says best what is lacking.
    differing, nearest = min(((_differing(details, other), other) for other in own), key=lambda found: len(found[0]))
    if differing:
        return Standing(False, f"the certificate has another {' and another '.join(differing)}")
    section = nearest["lengths"].get(str(cell.length))
    if section is None:
        return Standing(False, "the certificate lacks this length")
    passed = isinstance(section, dict) and section.get("passed") is True
    return Standing(passed, "" if passed else "failed at this length")


def _differing(details: dict[str, Any], certificate: dict[str, Any]) -> list[str]:
    """Name what a certificate does not share with a cell."""
    return [what for what, (cells, own) in _SAME.items() if _at(details, cells) != _at(certificate, own)]


def _at(value: Any, key: str) -> Any:
    """Return what an object has at a dotted key; None where it has nothing."""
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
