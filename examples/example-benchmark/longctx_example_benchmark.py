"""A benchmark: the pass key in a wall of noise of Mohtashami and Jaggi (2023, arXiv 2305.16300), to an exact length."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from longctx_bench.benchmarks.base import ContextTooShort, IndexedBenchmark, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.types import Example

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
TASK = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it."
ANSWER = "What is the pass key? The pass key is"


class PassKey(IndexedBenchmark):
    """A number at one of a grid of depths between repeated sentences."""

    id: ClassVar[str] = "passkey"
    grid: ClassVar[str | None] = "depths"

    depths: int = Field(default=5, ge=2)
    digits: int = Field(default=5, ge=1)

    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Write one example, as long as whole sentences allow."""
        key = str(random.Random(f"passkey {seed} {index}").randrange(10**self.digits)).zfill(self.digits)
        depth = index % self.depths / (self.depths - 1)

        def prompt(repeats: int) -> str:
            noise = [NOISE] * repeats
            noise.insert(round(depth * repeats), f"The pass key is {key}. Remember it. {key} is the pass key.")
            return "\n".join((TASK, *noise))

        budget, repeats = length - max_new_tokens, 0
        step = max(1, budget // 16)
        while step:
            if encoder.count(prompt(repeats + step), ANSWER) <= budget:
                repeats += step
            else:
                step //= 2
        tokens = encoder.count(prompt(repeats), ANSWER)
        if tokens > budget:
            raise ContextTooShort(f"passkey: the shortest prompt takes {tokens} tokens, {budget} are to be had")
        return Example(
            id=example_id(index),
            prompt=prompt(repeats),
            answer_prefix=ANSWER,
            references=(key,),
            depths=(round(100 * depth, 2),),
            n_tokens=tokens,
            max_new_tokens=max_new_tokens,
        )
