"""Decoder types of transformers with rotary positions as small random models, and what becomes of each method."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.methods import METHODS
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.rope_scaling import LongRoPE
from longctx_bench.methods.scalar_schedule import ScalarSchedule
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

CONTEXT = 64
"""Training context of the models, in tokens."""
NEW = 4
"""Tokens of an answer."""
_COMMON: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT, "initializer_range": 0.2,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1, "sliding_window": None, "layer_types": None,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
_HYBRID: dict[str, Any] = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": CONTEXT // 8,
}  # fmt: skip
_YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT // 4}
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0], "factor": 4.0,
    "original_max_position_embeddings": CONTEXT * 3 // 4,
}  # fmt: skip

PLAIN = (
    "arcee", "aria_text", "bitnet", "cohere", "diffllama", "ernie4_5", "ernie4_5_moe", "falcon", "flex_olmo", "gemma",
    "glm", "glm4", "glm4_moe", "gpt_neox", "granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "hyperclovax", "hy_v3", "jais2", "llama", "minimax_m2", "mistral", "mixtral", "nanochat",
    "nemotron", "olmo", "olmo2", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2",
)  # fmt: skip
"""Rotary positions in every layer, no scaling of their own, no window."""
OTHERS: dict[str, dict[str, Any]] = {
    "afmoe": _HYBRID,
    "apertus": {"rope_parameters": {**_LLAMA3, "rope_theta": 1e4}},
    "cohere2": _HYBRID,
    "cwm": {**_HYBRID, "rope_parameters": {**_LLAMA3, "rope_theta": 1e4}},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "doge": {},
    "exaone4": _HYBRID,
    "gemma2": _HYBRID,
    "gemma3_text": _HYBRID,
    "gemma4_unified_text": {**_HYBRID, "global_head_dim": 8},
    "jetmoe": {"kv_channels": 8},
    "laguna": _HYBRID,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 16},
    "mellum": _HYBRID,
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "ministral": _HYBRID,
    "ministral3": {"rope_parameters": {**_YARN, "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}},
    "modernbert-decoder": {**_HYBRID, "local_attention": 16},
    "olmo3": _HYBRID,
    "vaultgemma": _HYBRID,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, llama3 scaling": ("llama", {"rope_parameters": {**_LLAMA3, "rope_theta": 1e4}}),
    "llama, linear scaling": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama, dynamic scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "qwen2, YaRN scaling": ("qwen2", {"rope_parameters": {**_YARN, "rope_theta": 1e4}}),
    "phi3, longrope scaling": (
        "phi3",
        {"rope_parameters": {**_LONGROPE, "rope_theta": 1e4}, "original_max_position_embeddings": CONTEXT * 3 // 4},
    ),
    "mistral, sliding window": ("mistral", {"sliding_window": 16}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
}
"""What checkpoints of a type may be besides."""
UNROTATED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": CONTEXT, "n_embd": 32, "n_head": 4, "n_layer": 2},
    "gpt_bigcode": {"n_positions": CONTEXT, "n_embd": 32, "n_head": 4, "n_layer": 2},
}
"""Positions of another kind."""
UNLOADED: dict[str, dict[str, Any]] = {
    "codegen": {"n_positions": CONTEXT, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_ctx": CONTEXT, "rotary_dim": 8},
    "gpt_oss": _HYBRID,
    "gptj": {"n_positions": CONTEXT, "n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 8},
    "mamba": {"state_size": 4},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 16},
}
"""Models that the engine refuses."""


def types() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return all of the above: by the table's name, transformers' ``model_type`` and its config entries."""
    plain = {kind: (kind, {}) for kind in PLAIN}
    others = {kind: (kind, entries) for kind, entries in (OTHERS | UNROTATED | UNLOADED).items()}
    return dict(sorted((plain | others | VARIANTS).items()))


def build(folder: Path, kind: str, entries: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """Save a random model of a type with a tokenizer, and return its ``config.json``."""
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    values = {**_COMMON, **entries, "vocab_size": vocabulary}
    if kind in {"gpt_neox", "stablelm"}:
        values |= {"hidden_size": 64, "head_dim": 16}  # a quarter of a head is rotated
    if kind == "falcon":
        values |= {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None}
    for name in ("head_dim", "sliding_window", "layer_types"):
        if values[name] is None:
            del values[name]
    if "sliding_window" not in values and "sliding_window" in CONFIG_MAPPING[kind]().to_dict():
        values["sliding_window"] = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values), dtype=torch.float32)
    model.save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def methods(base: BaseModelInfo) -> Iterator[tuple[str, Method]]:
    """Return one method for each class that ships, with what it needs besides a base."""
    seen = set()
    for name, spec in sorted(Registry().methods.items(), key=lambda item: (len(item[0]), item[0])):
        kind = METHODS[spec.use]
        if kind in seen:
            continue
        seen.add(kind)
        more: dict[str, Any] = {}
        if kind is LongRoPE:
            try:
                pairs = base.positions.pairs
            except UserError:
                pairs = 1
            more = {"short_factor": (1.0,) * pairs, "long_factor": tuple(1.0 + index for index in range(pairs))}
        if kind is DroPE:
            more = {"temperature": ScalarSchedule(c=0.412)}
        yield name, kind(**more)


COLUMNS = (
    "rope, crop", "pi", "ntk, dynamic-ntk", "yarn, llama3",
    "longrope, cope, giraffe, mrrope-pro, mrrope-uni, p-rope, resonance", "nope", "drope", "alibi",
)  # fmt: skip
"""Of the table. ``rnope-swa`` changes nothing in a model: it runs where ``rope`` does."""
REASONS = {
    "already scaled": "It has a scaling of its own: what it reads with it is its training context, and another "
    "scaling on top is not defined. Interpolation (`pi`) of a linear one is: the factors are multiplied.",
    "only to the last": "All its layers with rotary positions attend to a window alone that is no longer than its "
    "training context: there is no distance to extend.",
    "by layer": "transformers cannot compute longrope where positions differ by layer type.",
    "does not support rotary positions of type": "transformers computes its positions for `default` frequencies alone.",
    "where they cannot be changed": "It computes its rotations where they cannot be changed.",
    "llama_4_scaling_beta": "It scales queries by their positions besides rotating them.",
    "takes no temperature": "It computes the softmax by code of its own, which takes no temperature.",
    "attention interface": "It attends by code of its own, which another attention cannot stand in for.",
    "caps its": "It caps the logits of its attention (and runs by transformers' eager attention for that).",
    "its own attention bias": "It weighs its attention by more than queries and keys.",
    "no rotary positions to change": "It has no rotary positions.",
    "table of positions": "It has a table of positions, and runs up to its end.",
    "keeps a state": "It remembers more than keys and values, which the engine cannot cut back.",
    "does not support an attention implementation": "transformers has no sdpa attention for it.",
}
"""What a refusal says, and how the table explains it."""


def prompts() -> list[Request]:
    """Return two prompts, one within the training context and one up to twice the training context with its answer."""
    generator = torch.Generator().manual_seed(3)
    ids = [tuple(torch.randint(5, 250, (size,), generator=generator).tolist()) for size in (122, 40)]
    return [Request(f"{index:06d}", each, NEW) for index, each in enumerate(ids)]


def answers(engine: HFEngine, who: ModelUnderTest, asked: Sequence[Request], together: bool) -> list[tuple[str, int]]:
    """Return text and new tokens that an engine gives to each prompt, in batches or one by one."""
    asked = [replace(each, input_ids=tuple(who.method.prompt(who.base, each.input_ids, NEW))) for each in asked]
    batches = engine.batches(asked, who.method.per_prompt) if together else [[request] for request in asked]
    found = {
        each.example_id: (each.text, each.new_tokens)
        for batch in batches
        for each in engine.generate(batch, who, lambda example, text: False)
    }
    return [found[request.example_id] for request in asked]


def outcomes(folder: Path, name: str, config: dict[str, Any], check: Callable[..., None]) -> dict[str, str]:
    """Return by method "yes" or the refusal; whatever else is raised is a bug.

    Args:
        folder: the model's.
        name: of the type, in the table.
        config: the model's.
        check: is given engine, base and method, and runs it.
    """
    engine, base = HFEngine(device="cpu", dtype="float32", batch_tokens=1024), BaseModelInfo(name, CONTEXT, config)
    found = {}
    try:
        engine.load(folder)
    except UserError as error:
        return {method_name: str(error) for method_name, _ in methods(base)}
    for method_name, method in methods(base):
        try:
            check(engine, base, method)
            found[method_name] = "yes"
        except UserError as error:
            found[method_name] = str(error)
    return found


def cells(found: dict[str, str]) -> tuple[str, ...]:
    """Return a row of the table: "yes", or the numbers of the reasons, one for each column."""
    row = []
    for column in COLUMNS:
        said = {_reason(found[method]) for method in column.split(", ")}
        row.append(", ".join(sorted(said, key=lambda each: (each != "yes", each))))
    return tuple(row)


def _reason(outcome: str) -> str:
    if outcome == "yes":
        return outcome
    numbers = [str(number) for number, part in enumerate(REASONS, start=1) if part in outcome]
    assert len(numbers) == 1, outcome
    return numbers[0]


def section(rows: dict[str, tuple[str, ...]]) -> str:
    """Return the section of the documentation: types with equal rows share one."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows.items():
        alike.setdefault(row, []).append(name)
    lines = ["| " + " | ".join(("model type", *COLUMNS)) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for row, names in sorted(alike.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(row)} |")
    reasons = [f"{number}. {text}" for number, text in enumerate(REASONS.values(), start=1)]
    return "\n".join([*lines, "", *reasons, ""])


def documented(text: str) -> dict[str, tuple[str, ...]]:
    """Return the rows of the section by type."""
    rows = {}
    _, _, behind = text.partition("## Which method runs on which model type")
    for line in behind.partition("\n## ")[0].splitlines():
        if line.startswith("| `"):
            names, *row = (part.strip() for part in line.strip("|").split("|"))
            rows |= {name.strip("`"): tuple(row) for name in names.split("`, `")}
    return rows
