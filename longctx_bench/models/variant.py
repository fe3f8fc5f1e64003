"""Model variants: a method on a base model, which is what ``--model`` names, and their local weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_bench.core.code_digest import CodeDigest
from longctx_bench.core.specs import MethodSpec, ModelSpec, Source
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.models.checkpoint import checkpoint_folder, read_config


@dataclass(frozen=True)
class ModelVariant:
    """A method on a base model, and the source of its weights."""

    model: ModelSpec
    spec: MethodSpec
    method: Method
    source: Source
    """The base model's weights, or the checkpoint that the method needs."""
    code: CodeDigest | None = None
    """Source digest of a plug-in method; None for methods of this package."""

    @property
    def name(self) -> str:
        """``METHOD-BASE``, the form that ``--model`` takes."""
        return f"{self.method_name}-{self.model.name}"

    @property
    def method_name(self) -> str:
        """The method's name in results and tables."""
        return self.spec.name

    def base(self, config: dict[str, Any]) -> BaseModelInfo:
        """Return the base model's properties, given the ``config.json`` of the weights."""
        return BaseModelInfo(self.model.name, self.model.original_length, config)

    def resolve(self) -> ResolvedVariant:
        """Fetch, convert and merge the weights (once; then cached).

        Raises:
            UserError: as :func:`longctx_bench.models.checkpoint.checkpoint_folder`.
        """
        folder = checkpoint_folder(self.source)
        return ResolvedVariant(self, folder, self.base(read_config(folder)))


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant with local weights."""

    variant: ModelVariant
    folder: Path
    """In Hugging Face format."""
    base: BaseModelInfo
    """The base model's properties."""

    def at(self, length: int) -> ModelUnderTest:
        """Return the model under test at a length: prompt and new tokens together."""
        return ModelUnderTest(self.base, self.variant.method, length)


@dataclass(frozen=True)
class ModelUnderTest:
    """A method on a base model at one length (:data:`~longctx_bench.core.types.NATURAL`: at each prompt's length)."""

    base: BaseModelInfo
    method: Method
    length: int
