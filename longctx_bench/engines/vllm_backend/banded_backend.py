"""Banded attention as an attention backend of vLLM: what vLLM asks of one, around ``paged_attention.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)

from longctx_bench.engines.vllm_backend.banded_config import banded_rotation
from longctx_bench.engines.vllm_backend.paged_attention import (
    PagedRows,
    PagedSequence,
    attend_paged,
    group_sequences,
    make_rows,
    write_cache,
)


class BandedBackend(AttentionBackend):  # type: ignore[misc]
    """The attention of the method in ``additional_config``; the cache holds keys as they are, before any rotation."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16]
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        """Return the name that vLLM keeps for backends of others."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[BandedImpl]:
        """Return the class that computes."""
        return BandedImpl

    @staticmethod
    def get_builder_cls() -> type[BandedMetadataBuilder]:
        """Return the class that prepares a forward pass."""
        return BandedMetadataBuilder


@dataclass
class BandedMetadata(AttentionMetadata):  # type: ignore[misc]
    """The sequences of a forward pass, in groups that attend together."""

    groups: list[PagedRows]


class BandedMetadataBuilder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Makes the tables of a forward pass once for all layers. Its shapes vary: vLLM records no CUDA graph of it."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.rotation = banded_rotation(vllm_config.additional_config)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> BandedMetadata:
        """Return the metadata of a forward pass."""
        passed = common_attn_metadata
        starts, totals = passed.query_start_loc_cpu.tolist(), passed.seq_lens.tolist()
        sequences = [
            PagedSequence(row, starts[row], starts[row + 1] - starts[row], totals[row])
            for row in range(passed.num_reqs)
            if starts[row + 1] > starts[row]
        ]
        block_size, dtype = self.kv_cache_spec.block_size, self.vllm_config.model_config.dtype
        return BandedMetadata(
            [
                make_rows(self.rotation, group, passed.block_table_tensor, block_size, dtype)
                for group in group_sequences(sequences)
            ]
        )


class BandedImpl(AttentionImpl):  # type: ignore[misc]
    """Computes one layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale = scale
        self.kv_cache_dtype = kv_cache_dtype
        if alibi_slopes or sliding_window or logits_soft_cap or attn_type != AttentionType.DECODER:
            raise ValueError("banded attention is causal over all tokens, with no slopes, window or cap on its logits")
        if kv_cache_dtype != "auto":
            raise ValueError(f"banded attention reads a KV cache in the model's precision, not {kv_cache_dtype}")

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store the keys and values ``[tokens, key heads, head_size]`` of a pass; vLLM calls this before forward."""
        write_cache(kv_cache, key, value, slot_mapping)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: BandedMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Fill ``output``, ``[tokens, heads, head_size]``; without metadata this is vLLM's trial run for memory."""
        if attn_metadata is None:
            return output.fill_(0)
        for rows in attn_metadata.groups:
            attend_paged(rows, query, kv_cache, output, self.scale)
        return output
