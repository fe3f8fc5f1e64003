"""The echo engine: repeats a part of its prompt, without weights; to test everything around an engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import Generation, LoglikelihoodResult, Request
from longctx_bench.engines.base import ALL_CAPABILITIES, DeviceOptions, MemoryEstimate, Speed, StoppingCriterion
from longctx_bench.engines.batching import batch_by_tokens
from longctx_bench.models.checkpoint import prompt_tokenizer
from longctx_bench.models.variant import ModelUnderTest


class EchoEngine:
    """Returns the tokens in the middle of the prompt, so that a needle at half depth is found."""

    name = "echo"
    supports = ALL_CAPABILITIES
    Options: ClassVar[type[Spec]] = DeviceOptions
    dtype = "none"
    device = "none"

    def __init__(self, device: str = "auto", dtype: str = "auto", batch_tokens: int | None = None) -> None:
        """Accept the options of other engines, so that it can replace them; nothing is computed."""
        self._batch_tokens = batch_tokens or 16384
        self._tokenizer: Any = None

    def load(self, folder: Path) -> None:
        """Load only the tokenizer."""
        self._tokenizer = prompt_tokenizer(folder)

    def estimate_memory(self, folder: Path) -> MemoryEstimate | None:
        """Return None: nothing is loaded."""
        return None

    def measure_speed(self) -> Speed:
        """Return infinities: nothing is computed."""
        return Speed(math.inf, math.inf, math.inf)

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Group by token budget."""
        return batch_by_tokens(requests, self._batch_tokens, per_prompt)

    def generate(
        self, batch: Sequence[Request], model: ModelUnderTest, should_stop: StoppingCriterion
    ) -> Iterator[Generation]:
        """Yield the ``max_new_tokens`` tokens around the middle of each prompt."""
        for request in batch:
            start = max(0, (len(request.input_ids) - request.max_new_tokens) // 2)
            ids = request.input_ids[start : start + request.max_new_tokens]
            text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
            reason = "settled" if should_stop(request.example_id, text) else "length"
            yield Generation(request.example_id, text, len(request.input_ids), len(ids), reason, 0.0)

    def loglikelihood(self, batch: Sequence[Request], model: ModelUnderTest) -> Iterator[LoglikelihoodResult]:
        """Raise: nothing is computed."""
        raise UserError("--engine echo gives no losses; use --engine hf")

    def settings(self) -> dict[str, Any]:
        """Return the engine's name."""
        return {"engine": self.name}

    def peak_memory(self) -> int | None:
        """Return None: nothing is loaded."""
        return None
