"""Llama and Qwen2 for vLLM with attention by bands: the model rotates nothing, its layers' backend does."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM

from longctx_bench.engines.vllm_backend.banded_backend import BandedBackend
from longctx_bench.engines.vllm_backend.banded_config import banded_rotation
from longctx_bench.engines.vllm_backend.modeling_drope import DropeAttention


class BandedAttention(DropeAttention):
    """Attention by bands, by :class:`BandedBackend`."""

    attn: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # vLLM's class passes no backend on, and its CPU build takes none by name. A layer's name may be used once.
        name = self.attn.layer_name
        del get_current_vllm_config().compilation_config.static_forward_context[name]
        self.attn = Attention(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            cache_config=options["cache_config"],
            quant_config=options["quant_config"],
            prefix=name,
            attn_backend=BandedBackend,
        )


class BandedDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """A Llama decoder layer with :class:`BandedAttention`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=BandedAttention)


class LlamaBandedForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """Llama checkpoints under a method by distance."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        banded_rotation(vllm_config.additional_config)  # fails where there is none: as a checkpoint's own class
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=BandedDecoderLayer)


class Qwen2BandedForCausalLM(LlamaBandedForCausalLM):
    """The same for Qwen2: Llama with a bias in the query, key and value projections."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        vllm_config.model_config.hf_config.qkv_bias = True
        super().__init__(vllm_config=vllm_config, prefix=prefix)
