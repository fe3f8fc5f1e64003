"""Decoding on a GPU by a step that is recorded once and replayed: calling small kernels takes longer than they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from longctx_bench.engines.hf.kv_cache import RoomyLayer
from longctx_bench.methods.attention_override import attending

try:
    from longctx_bench.engines.hf.kernels import flash_decoding
except ImportError:  # Triton comes with torch where there is one for the GPU.
    flash_decoding = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

_AHEAD = 2
"""Steps that may run beyond the last that is wanted."""


def supports_cuda_graph(model: PreTrainedModel) -> bool:
    """Tell whether a model's step is the same kernels each time: on a GPU, by sdpa, without a look at its numbers."""
    same = getattr(model, "_can_compile_fullgraph", False) and getattr(model, "_supports_attention_backend", False)
    return bool(same) and model.device.type == "cuda" and model.config._attn_implementation == "sdpa"


@contextmanager
def decode_attention_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a GPU attend from one token a row by a kernel made for that inside; elsewhere nothing changes."""
    # Models that do not ask transformers for their attention read the name themselves, and would not know this one.
    asks = getattr(model, "_supports_attention_backend", False) and model.config._attn_implementation == "sdpa"
    if flash_decoding is None or model.device.type != "cuda" or not asks:
        yield
        return
    with attending(model, flash_decoding.IMPLEMENTATION, flash_decoding.one_query_attention):
        yield


class Replay:
    """Greedy decoding of a batch whose prompts a cache holds, a token a row and step.

    The step after the one that is looked at runs already: tokens stay on the GPU, and only copies of them come back.
    Nothing may touch the cache before :meth:`close`.
    """

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, seen: torch.Tensor, last: list[int], most: int
    ) -> None:
        """Make room in a cache.

        Args:
            model: one that :func:`supports_cuda_graph`, or any that takes a mask, whose step is then not recorded.
            cache: of :class:`RoomyLayer`; what it holds stands at the right end of each row.
            seen: ``[rows, positions]``, False where the cache holds nothing to attend to.
            last: each row's latest token, which is not in the cache.
            most: steps that will be wanted, at most.
        """
        rows, past = seen.shape
        device = seen.device
        self._model, self._cache, self._past, self._steps = model, cache, past, 0
        self._told = torch.zeros(rows, 1, 1, past + most + _AHEAD, dtype=torch.bool, device=device)
        self._told[:, 0, 0, :past] = seen
        self._place = torch.tensor([past], device=device)
        self._position = seen.sum(dim=1, keepdim=True)
        self._ids = torch.tensor(last, device=device)[:, None]
        self._graph: torch.cuda.CUDAGraph | None = None
        for layer in cache.layers:
            assert isinstance(layer, RoomyLayer)
            layer.fix(past + most + _AHEAD, self._place)

    def tokens(self) -> Iterator[list[int]]:
        """Return each step's token of every row, for as long as it is asked."""
        waiting: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        while True:
            coming = self._next()
            if waiting is not None:
                yield _arrived(*waiting)
            waiting = coming

    def close(self) -> torch.Tensor:
        """Give the cache back as an ordinary one; return what of it may be attended to, as ``seen`` was."""
        # The last step was not looked at: what it wrote was never asked for.
        end = self._past + max(0, self._steps - 1)
        self._graph = None
        for layer in self._cache.layers:
            assert isinstance(layer, RoomyLayer)
            layer.loose(end)
        return self._told[:, 0, 0, :end]

    def _next(self) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Begin one more step; return where its tokens will be, and when."""
        self._steps += 1
        if not self._ids.is_cuda:
            self._step()
            return self._ids[:, 0].clone(), None
        with torch.cuda.device(self._ids.device):
            # The first is made kernel by kernel: libraries prepare themselves in it, which cannot be recorded.
            if self._steps == 1:
                self._step()
            else:
                self._graph = self._graph or self._recorded()
                self._graph.replay()
            here = torch.empty(len(self._ids), dtype=torch.long, pin_memory=True)
            here.copy_(self._ids[:, 0], non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return here, arrived

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Record a step without making it."""
        graph, before, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(before)
        # torch.cuda.graph would give all free memory back first, and collect garbage: a batch is too short for that.
        with torch.cuda.stream(aside):
            graph.capture_begin()
            try:
                self._step()
            except BaseException:
                # What went wrong is said, a full memory above all, and not that the recording was cut short.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        before.wait_stream(aside)
        return graph

    def _step(self) -> None:
        self._told.index_fill_(3, self._place, True)
        with decode_attention_kernel(self._model):
            output = self._model(
                input_ids=self._ids,
                attention_mask=self._told,
                position_ids=self._position,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._ids.copy_(output.logits[:, -1].argmax(dim=-1, keepdim=True))
        self._position += 1
        self._place += 1


def _arrived(tokens: torch.Tensor, event: torch.cuda.Event | None) -> list[int]:
    if event is not None:
        event.synchronize()
    return tokens.tolist()
