"""A checkpoint that ``longctx-bench export`` wrote: its config and weights are the method, at one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from longctx_bench.core.errors import ContextTooShort
from longctx_bench.core.specs import Spec, validate
from longctx_bench.methods.base import BaseModelInfo, Method

EXPORT_KEY = "longctx_bench_export"
"""The entry of ``config.json`` that holds a :class:`ExportMetadata`; loaders that do not know it pass it by."""


class ExportMetadata(Spec):
    """What an exported checkpoint was made from."""

    model: str
    """The base's name."""
    method: str
    """The method's name, under which results of the checkpoint are kept."""
    length: int = Field(gt=0)
    """Tokens that it was made to read."""
    original_length: int = Field(gt=0)
    """The base's training context in tokens; ``--scale`` multiplies it."""
    factor: float = Field(ge=1.0)
    """The extension factor at that length."""
    temperature: float = 1.0
    """Softmax temperature that the weights hold."""


def read_export_metadata(config: Mapping[str, Any], name: str) -> ExportMetadata | None:
    """Return the mark of an exported checkpoint's config; None when it is no exported one.

    Raises:
        UserError: there is a mark, and it is damaged.
    """
    found = config.get(EXPORT_KEY)
    return None if found is None else validate(ExportMetadata, found, f"{name}: config.json: {EXPORT_KEY}")


class ExportedCheckpoint(Method):
    """Changes nothing: whatever the method did at its length stands in the config and the weights."""

    id: ClassVar[str] = "exported"

    made_for: int
    """Tokens that the checkpoint was made to read."""

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        if length > self.made_for:
            raise ContextTooShort(
                f"{base.name} was exported for {self.made_for} tokens, not for {length}; export it again with --length"
            )
        return {}
