"""A task of lm-eval, by name: lm-eval writes its prompts and scores its answers."""

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
"""Of a task's name on the command line."""


class LMEval(Benchmark):
    """Names a task of lm-eval (EleutherAI lm-evaluation-harness 0.4.13)."""

    id: ClassVar[str] = "lm-eval"
    kind: ClassVar[Literal["generate", "loss", "lm_eval"]] = "lm_eval"

    task: str = Field(pattern=r"^[\w.+-]+$")
    include: PathSource | None = None
    """Folder of task YAMLs of your own, as lm-eval's ``--include_path``."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """The task's own number unless set."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Refuse: lm-eval writes these prompts itself.

        Raises:
            UserError: always.
        """
        raise UserError(f"{PREFIX}{self.task}: lm-eval writes these prompts itself")
