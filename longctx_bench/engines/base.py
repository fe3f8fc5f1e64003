"""The engine protocol: token ids in, greedy text and log-likelihoods out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

from pydantic import Field

from longctx_bench.core.specs import Spec
from longctx_bench.core.types import Generation, LoglikelihoodResult, Request
from longctx_bench.methods.base import Capability
from longctx_bench.models.variant import ModelUnderTest

StoppingCriterion = Callable[[str, str], bool]
"""(example id, text so far) -> True when further tokens cannot change the score."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected memory and work of a cell, for ``--dry-run`` and to refuse early what cannot fit."""

    weights: int
    """Bytes of the loaded weights."""
    per_token: int
    """Bytes of keys and values per token of a prompt."""
    per_prefill_token: int
    """Bytes of activations per token of a prefill pass."""
    available: int
    """Bytes free on the device before anything is loaded."""
    flops_per_token: float
    """Floating-point operations per token, without attention over the context."""
    flops_per_pair: float
    """Floating-point operations of attention per pair of positions."""
    process: int = 0
    """Bytes that the process takes before the model is loaded, where both share the memory: on a CPU."""

    def peak(self, tokens: int, chunk: int) -> int:
        """Return the peak bytes for prompts of ``tokens`` tokens in total, prefilled ``chunk`` at a time."""
        return self.weights + tokens * self.per_token + min(tokens, chunk) * self.per_prefill_token


class Speed(NamedTuple):
    """What a machine computes per second in an engine's precision."""

    matmul: float
    """Floating-point operations of a matrix product per second."""
    attention: float
    """Floating-point operations of causal attention per second, counted as in :class:`MemoryEstimate`."""
    bandwidth: float
    """Bytes of memory traffic per second."""


class EngineInfo(Protocol):
    """What plans and records need to know of an engine, wherever it runs."""

    name: str
    dtype: str
    """Precision of the computation: ``float32``, ``bfloat16``, ``server`` (what the server chose) or ``none``."""
    device: str

    def estimate_memory(self, folder: Any) -> MemoryEstimate | None:
        """Return the memory that a checkpoint needs, without loading it; None where the engine does not know."""

    def measure_speed(self) -> Speed:
        """Return what the machine computes per second, from a short measurement; infinities where it is not known."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change results: device name, dtype, attention, threads, batch tokens."""


ALL_CAPABILITIES: frozenset[Capability] = frozenset(get_args(Capability))
"""What an engine supports that runs every method."""


class DeviceOptions(Spec):
    """Options of an engine that computes on a device of this machine."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per batch; from the free memory when None."""


class Engine(EngineInfo, Protocol):
    """Runs one checkpoint: ``load`` first, then any number of methods on it, at any lengths."""

    supports: frozenset[Capability]
    """Capabilities that methods may need; it refuses methods that need others."""
    Options: ClassVar[type[Spec]]
    """Its options, which are the keyword arguments of its constructor."""

    def load(self, folder: Any) -> None:
        """Load a checkpoint folder (Hugging Face format) and its tokenizer, dropping the one before."""

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Split requests into batches; a function of the requests and the token budget alone.

        Args:
            requests: in any order.
            per_prompt: whether the method depends on the length of each prompt.
        """

    def generate(
        self, batch: Sequence[Request], model: ModelUnderTest, should_stop: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue every request of a batch greedily, in the batch's order.

        Raises:
            UserError: one request alone does not fit in memory.
        """

    def loglikelihood(self, batch: Sequence[Request], model: ModelUnderTest) -> Iterator[LoglikelihoodResult]:
        """Score the last ``scored`` tokens of every request of a batch of one length, in the batch's order.

        Raises:
            UserError: one request alone does not fit in memory, or the engine computes no log-likelihoods.
        """

    def peak_memory(self) -> int | None:
        """Return the peak memory in bytes since the last call; None where the engine does not know.

        On a GPU this counts tensors; on a CPU it is the peak of the process since it began, which cannot be reset.
        """
