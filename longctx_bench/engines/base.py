"""What an engine is: token ids in, greedy text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

from pydantic import Field

from longctx_bench.core.specs import Spec
from longctx_bench.core.types import Generation, Losses, Request
from longctx_bench.methods.base import Capability
from longctx_bench.models.variant import ModelUnderTest

StoppingCriterion = Callable[[str, str], bool]
"""(example id, text so far) -> True when decoding on cannot change the score."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What a cell is expected to take, for ``--dry-run`` and for refusing the impossible early."""

    weights: int
    """Bytes of the loaded weights."""
    per_token: int
    """Bytes that one token of one prompt takes: its keys and values."""
    per_prefill_token: int
    """Bytes of activations while a token is being prefilled."""
    available: int
    """Bytes of memory free on the device before anything is loaded."""
    flops_per_token: float
    """Floating-point operations of one token without attention over the context."""
    flops_per_pair: float
    """Floating-point operations of attention between two positions."""
    process: int = 0
    """Bytes that the process holds already where its own memory is the model's: on a CPU."""

    def peak(self, tokens: int, chunk: int) -> int:
        """Return the peak bytes for prompts of ``tokens`` tokens in all, prefilled ``chunk`` at a time."""
        return self.weights + tokens * self.per_token + min(tokens, chunk) * self.per_prefill_token


class EngineInfo(Protocol):
    """What a plan and a record need to know of an engine, wherever it runs."""

    name: str
    dtype: str
    """What the numbers were computed in: ``float32``, ``bfloat16``, ``server`` (what it chose) or ``none``."""
    device: str

    def estimate_memory(self, folder: Any) -> MemoryEstimate | None:
        """Return the memory that a checkpoint needs, without loading it; None when the engine cannot say."""

    def measure_speed(self) -> tuple[float, float]:
        """Return what this device does in a second: floating-point operations and bytes read, measured briefly."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change results: device name, dtype, attention, threads, batch tokens."""


ALL_CAPABILITIES: frozenset[Capability] = frozenset(get_args(Capability))
"""Of an engine that runs whatever a method is."""


class DeviceOptions(Spec):
    """Options of an engine that computes on a device of this machine."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens in a batch; from the free memory when None."""


class Engine(EngineInfo, Protocol):
    """Runs one checkpoint. ``load`` first; then any number of methods on it, at any lengths."""

    supports: frozenset[Capability]
    """What methods may ask of it; it refuses all others."""
    Options: ClassVar[type[Spec]]
    """Its options, which are the keyword arguments that it is made with."""

    def load(self, folder: Any) -> None:
        """Load a checkpoint folder (Hugging Face format) and its tokenizer, dropping the one before."""

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Group requests into batches; a function of the requests and the batch budget alone."""

    def generate(
        self, batch: Sequence[Request], contestant: ModelUnderTest, settled: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue every request of a batch greedily, in the batch's order.

        Raises:
            UserError: one request alone does not fit in memory.
        """

    def loglikelihood(self, batch: Sequence[Request], contestant: ModelUnderTest) -> Iterator[Losses]:
        """Predict the last ``scored`` tokens of every request of a batch of one length, in the batch's order.

        Raises:
            UserError: one request alone does not fit in memory, or this engine gives no losses.
        """

    def peak_memory(self) -> int | None:
        """Return the most bytes of memory held since this was last asked; None when the engine cannot say.

        On a GPU what its tensors took. On a CPU what the process held at most since it began: that cannot be reset.
        """
