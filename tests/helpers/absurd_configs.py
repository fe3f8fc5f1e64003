"""What no model can have in its ``config.json``, or what names code to fetch."""

from __future__ import annotations

from typing import Any

ABSURD: dict[str, dict[str, Any]] = {
    "layers": {"num_hidden_layers": -1},
    "many layers": {"num_hidden_layers": 10**9},
    "no heads": {"num_attention_heads": 0},
    "no key heads": {"num_key_value_heads": 0},
    "more heads than dimensions": {"num_attention_heads": 96, "head_dim": None},
    "hidden": {"hidden_size": 0},
    "vocabulary": {"vocab_size": -5},
    "bool": {"max_position_embeddings": True},
    "fraction": {"max_position_embeddings": 1.5},
    "text": {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
    "old theta": {"rope_parameters": None, "rope_theta": "x"},
    "zero theta": {"rope_parameters": None, "rope_theta": 0},
    "infinite theta": {"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}},
    "list": {"rope_parameters": [1]},
    "theta by layer": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": []}}},
    "eos mapping": {"eos_token_id": {"a": 1}},
    "eos text": {"eos_token_id": "x"},
    "eos bool": {"eos_token_id": True},
    "type": {"model_type": ["llama"]},
    "inner": {"intermediate_size": "x"},
    "tied": {"tie_word_embeddings": "x"},
    "kernels": {"_attn_implementation": "evil/kernel"},
    "kernels of a part": {"text_config": {"attn_implementation": {"": "evil/kernel@main:f"}}},
    "hub kernels": {"use_kernels": True},
    "quantisation": {"quantization_config": "x"},
}
"""By name, entries of a ``config.json`` that are refused whatever the engine."""

HF_ONLY: dict[str, dict[str, Any]] = {
    "unknown quantisation": {"quantization_config": {"quant_method": "evil"}},
    "quantisation list": {"quantization_config": {"quant_method": ["x"]}},
    "activation": {"hidden_act": "evil"},
    "rotary type": {"rope_parameters": {"rope_type": "evil", "rope_theta": 1e4}},
    "padding": {"pad_token_id": 10**6},
    "dropout": {"attention_dropout": "x"},
    "heads that do not divide": {"num_attention_heads": 5},
}
"""Entries that only transformers could use, and that are refused where it loads the model."""
