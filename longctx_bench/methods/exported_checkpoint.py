"""Checkpoints written by ``longctx-bench export``, whose config and weights include a method at one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from longctx_bench.core.errors import ContextTooShort
from longctx_bench.core.specs import Spec, validate
from longctx_bench.methods.base import BaseModelInfo, Method

EXPORT_KEY = "longctx_bench_export"
"""The entry of ``config.json`` that holds :class:`ExportMetadata`; other loaders ignore it."""


class ExportMetadata(Spec):
    """What a checkpoint was exported from."""

    model: str
    """Name of the base model."""
    method: str
    """Name of the method; results of the checkpoint are stored under it."""
    length: int = Field(gt=0)
    """Tokens that it was exported for."""
    original_length: int = Field(gt=0)
    """Training context of the base model in tokens; ``--scale`` multiplies it."""
    factor: float = Field(ge=1.0)
    """The extension factor at that length."""
    temperature: float = 1.0
    """Softmax temperature folded into the weights."""


def read_export_metadata(config: Mapping[str, Any], name: str) -> ExportMetadata | None:
    """Return the export metadata in a checkpoint's config; None when the checkpoint was not exported.

    Raises:
        UserError: the metadata is damaged.
    """
    entry = config.get(EXPORT_KEY)
    return None if entry is None else validate(ExportMetadata, entry, f"{name}: config.json: {EXPORT_KEY}")


class ExportedCheckpoint(Method):
    """No-op method for exported checkpoints, whose config and weights already include the method."""

    id: ClassVar[str] = "exported"

    made_for: int
    """Tokens that the checkpoint was exported for."""

    def uses_factor(self) -> bool:
        return False

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        if length > self.made_for:
            raise ContextTooShort(
                f"{base.name} was exported for {self.made_for} tokens, not for {length}; export it again with --length"
            )
        return {}
