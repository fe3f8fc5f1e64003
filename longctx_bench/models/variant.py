"""What ``--model`` names: a method on a base model, and its way to weights on this machine."""

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
    """A method on a base model, and the weights that it runs on."""

    model: ModelSpec
    spec: MethodSpec
    method: Method
    source: Source
    """The base's own weights, or the checkpoint that the method needs."""
    code: CodeDigest | None = None
    """The source of a method that is not this package's own."""

    @property
    def name(self) -> str:
        """``METHOD-BASE``, the form that ``--model`` takes."""
        return f"{self.method_name}-{self.model.name}"

    @property
    def method_name(self) -> str:
        """The method's name in results and tables."""
        return self.spec.name

    def base(self, config: dict[str, Any]) -> BaseModelInfo:
        """Return what a method computes with, given the ``config.json`` of the weights."""
        return BaseModelInfo(self.model.name, self.model.original_length, config)

    def resolve(self) -> ResolvedVariant:
        """Bring the weights to this machine: fetched, converted and merged once.

        Raises:
            UserError: as :func:`longctx_bench.models.checkpoint.checkpoint_folder`.
        """
        folder = checkpoint_folder(self.source)
        return ResolvedVariant(self, folder, self.base(read_config(folder)))


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant whose weights lie on this machine."""

    variant: ModelVariant
    folder: Path
    """In Hugging Face format."""
    base: BaseModelInfo
    """What a method computes with."""

    def at(self, length: int) -> ModelUnderTest:
        """Return the model that an engine runs for prompts and answers of ``length`` tokens together."""
        return ModelUnderTest(self.base, self.variant.method, length)


@dataclass(frozen=True)
class ModelUnderTest:
    """A method on a base, at one length; at :data:`~longctx_bench.core.types.NATURAL`, at each prompt's own."""

    base: BaseModelInfo
    method: Method
    length: int
