"""Tasks of lm-eval, which writes their prompts and scores them itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from longctx_bench.benchmarks.base import Benchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import PathSource
from longctx_bench.core.types import Example

PREFIX = "lm_eval:"
"""Prefix of task names on the command line."""


class LMEval(Benchmark):
    """A task of EleutherAI lm-evaluation-harness (0.4.13), by name."""

    id: ClassVar[str] = "lm-eval"
    kind: ClassVar[Literal["generate", "loss", "lm_eval"]] = "lm_eval"

    task: str = Field(pattern=r"^[\w.+-]+$")
    include: PathSource | None = None
    """Folder with your own task YAMLs; lm-eval's ``--include_path``."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Default: as the task says."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Not available: lm-eval writes these prompts itself.

        Raises:
            UserError: always.
        """
        raise UserError(f"{PREFIX}{self.task}: lm-eval writes these prompts itself")
