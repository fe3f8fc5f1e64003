"""CUDA-graph decoding: replays one captured decode step, whose kernels take less time than launching them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import torch

from longctx_bench.engines.hf.padding import AsyncTokens
from longctx_bench.methods.attention_override import override_attention
from longctx_bench.methods.banded_attention import supports_capture

try:
    from longctx_bench.methods.kernels import flash_decoding
except ImportError:  # Triton comes with torch where there is one for the GPU.
    flash_decoding = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from longctx_bench.engines.hf.kv_cache import KVCache

_MAX_OVERRUN_STEPS = 2
"""Steps that may run after the last one whose tokens are taken."""


def supports_cuda_graph(model: PreTrainedModel) -> bool:
    """Whether the decode step can be captured as a CUDA graph (CUDA, sdpa or bands, no data-dependent control flow)."""
    static = model._can_compile_fullgraph and model._supports_attention_backend
    is_banded = flash_decoding is not None and supports_capture(model)
    return static and model.device.type == "cuda" and (is_banded or model.config._attn_implementation == "sdpa")


@contextmanager
def decode_attention_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Use the flash-decoding kernel for passes of one token per row on a GPU; elsewhere nothing changes."""
    # Models that do not ask transformers for their attention read its name themselves, and do not know this one.
    replaceable = model._supports_attention_backend and model.config._attn_implementation == "sdpa"
    if flash_decoding is None or model.device.type != "cuda" or not replaceable:
        yield
        return
    with override_attention(model, flash_decoding.IMPLEMENTATION, flash_decoding.one_query_attention):
        yield


class CudaGraphDecoder:
    """Greedy decoding of a batch, one token per row and step, by a captured step.

    The next step can be launched before the tokens of the last one are read: they stay on the GPU, where the next step
    takes them from, and copies of them come back. On a CPU the step runs each time and is not captured. Nothing else
    may touch the cache before :meth:`close`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        kv_mask: torch.Tensor,
        last_tokens: list[int],
        max_steps: int,
        kernels: bool = True,
    ) -> None:
        """Freeze the cache.

        Args:
            model: for which :func:`supports_cuda_graph` holds, or any on a CPU that takes a mask.
            cache: its tokens are aligned at the right end of each row.
            kv_mask: ``[rows, tokens]``, False where the cache holds nothing to attend to.
            last_tokens: each row's latest token, which is not in the cache yet.
            max_steps: steps whose tokens may be taken.
            kernels: use the flash-decoding kernel.
        """
        rows, past = kv_mask.shape
        device = kv_mask.device
        capacity = past + max_steps + _MAX_OVERRUN_STEPS
        self._model, self._cache, self._past, self._num_steps = model, cache, past, 0
        self._kernels = kernels
        self._attention_mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self._attention_mask[:, 0, 0, :past] = kv_mask
        self._slot = torch.tensor([past], device=device)
        self._position_ids = kv_mask.sum(dim=1, keepdim=True)
        self._input_ids = torch.tensor(last_tokens, device=device)[:, None]
        self._graph: torch.cuda.CUDAGraph | None = None
        cache.freeze(capacity, self._slot)

    def step(self) -> AsyncTokens:
        """Launch one more step; return its tokens ``[rows, 1]``."""
        self._num_steps += 1
        if not self._input_ids.is_cuda:
            self._decode()
            return AsyncTokens(self._input_ids)
        with torch.cuda.device(self._input_ids.device):
            # The first step runs kernel by kernel: libraries initialise themselves in it, which cannot be captured.
            if self._num_steps == 1:
                self._decode()
            else:
                self._graph = self._graph or self._capture()
                self._graph.replay()
            return AsyncTokens(self._input_ids)

    def close(self, num_steps: int) -> torch.Tensor:
        """Unfreeze the cache with the tokens of the first ``num_steps`` steps; return its mask, as ``kv_mask`` was."""
        end = self._past + num_steps
        self._graph = None
        self._cache.unfreeze(end)
        return self._attention_mask[:, 0, 0, :end]

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture a step, which does not run it."""
        graph, current, side = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        # torch.cuda.graph would empty the allocator's cache first, and collect garbage: a batch is too short for that.
        with torch.cuda.stream(side):
            graph.capture_begin()
            try:
                self._decode()
            except BaseException:
                # Raise this error, such as out of memory, and not that of the capture that it broke.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(side)
        return graph

    def _decode(self) -> None:
        self._attention_mask.index_fill_(3, self._slot, True)
        with decode_attention_kernel(self._model) if self._kernels else nullcontext():
            output = self._model(
                input_ids=self._input_ids,
                attention_mask=self._attention_mask,
                position_ids=self._position_ids,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._input_ids.copy_(output.logits[:, -1].argmax(dim=-1, keepdim=True))
        self._position_ids += 1
        self._slot += 1
