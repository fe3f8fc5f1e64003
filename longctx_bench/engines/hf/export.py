"""Export: a method written into a plain checkpoint, positions into its config, softmax temperature into its weights."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import write_text
from longctx_bench.engines.devices import DTYPES
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.methods.base import BaseModelInfo, Capability, Method
from longctx_bench.methods.exported_checkpoint import EXPORT_KEY, ExportMetadata
from longctx_bench.methods.factor_list import FactorList, with_mscale
from longctx_bench.methods.head_temperatures import fold_heads, geometric_mean
from longctx_bench.methods.nope import identity_llama3_rope_parameters
from longctx_bench.methods.rope_parameters import is_unrotated
from longctx_bench.models.variant import ModelUnderTest

TOLERANCE = 1e-3
"""Largest allowed difference of logits, in their standard deviations, where weights are written unrounded."""
TOLERANCE_ROUNDED = 0.1
"""The same where a temperature was folded into weights that were then rounded to bfloat16."""
_NUM_COMPARED = 64
"""Positions at the end of the prompt whose logits are compared."""
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip
"""Files that are copied byte for byte."""
_STOCK_CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama_drope": (LlamaConfig, LlamaForCausalLM),
    "qwen2_drope": (Qwen2Config, Qwen2ForCausalLM),
}
"""Stock classes for DroPE checkpoints whose queries and keys are not normalised."""


@dataclass(frozen=True)
class ExportResult:
    """An exported checkpoint and how well it reproduces the method."""

    folder: Path
    mark: ExportMetadata
    dtype: str
    difference: float
    """Largest difference of logits, in standard deviations of the method's logits."""
    tolerance: float
    agreeing: int
    """Positions with the same most likely token."""
    positions: int
    prompt: int
    """Tokens of the prompt."""
    architecture: str
    """The model class that a server must support."""


_NOT_EXPORTED: dict[Capability, str] = {
    "per_prompt": "follows each prompt's own length, and a checkpoint has one set of frequencies",
    "prompt": "changes the prompts, not the model",
    "query_scale": "scales queries by their positions, which stock models do not",
    "banded_attention": "attends by bands of distance, which stock models do not",
    "model_patch": "has its own attention code, which no config can name",
}


def check_exportable(method: Method, name: str) -> None:
    """Refuse methods that cannot be written into a config and weights.

    Args:
        method: to be exported.
        name: of the method.

    Raises:
        UserError: with the reason.
    """
    for capability in sorted(method.required_capabilities() & _NOT_EXPORTED.keys()):
        raise UserError(f"export: {name} {_NOT_EXPORTED[capability]}; run it with --engine hf")


def export_checkpoint(
    under_test: ModelUnderTest, name: str, source: Path, folder: Path, dtype: str = "auto"
) -> ExportResult:
    """Write a method as a plain Hugging Face checkpoint, and check that the checkpoint reproduces its logits.

    Models without positions get the llama3 rotation with a huge factor, which rotates nothing and which stock servers
    support. The softmax temperature is folded into the queries: into the weight of their norm if there is one, else
    into their projection. DroPE checkpoints with normalised queries or keys stay in Sakana AI's format.

    Args:
        under_test: base, method, and the length in tokens that the checkpoint is for.
        name: of the method.
        source: folder with the base's weights.
        folder: a new folder; it appears complete or not at all.
        dtype: of the weights. ``auto`` is that of the source, but float32 where a temperature is folded into them:
            rounding the product to bfloat16 changes logits.

    Raises:
        UserError: the method cannot be exported, the folder is not empty or cannot be written, or the checkpoint does
            not reproduce the method.
    """
    base, length = under_test.base, under_test.length
    method = under_test.method.at(base, length)
    check_exportable(method, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; name a new folder")
    beta = method.attention_temperature(base, length)
    heads = method.head_temperatures(base, length)
    if heads is not None:
        beta = geometric_mean(heads)
    mark = ExportMetadata(
        model=base.name, method=name, length=length, original_length=base.training_context,
        factor=method.scale(base, length), temperature=beta,
    )  # fmt: skip
    source_dtype = (
        "bfloat16" if (base.config.get("dtype") or base.config.get("torch_dtype")) == "bfloat16" else "float32"
    )
    export_dtype = dtype if dtype != "auto" else source_dtype if beta == 1.0 else "float32"
    model = load_model(source, "float32", "cpu")
    ids = _prompt(model, min(length, base.training_context + _NUM_COMPARED))
    with apply_method(model, under_test, length):
        expected = _logits(model, ids)
    model = _fold_method(model, method, base, mark)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error
    try:
        _save(model, export_dtype, source, scratch)
        del model
        loaded = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32).eval()
        actual, architecture = _logits(loaded, ids), type(loaded).__name__
        tolerance = (
            TOLERANCE
            if export_dtype == "float32" or (export_dtype == source_dtype and beta == 1.0)
            else TOLERANCE_ROUNDED
        )
        result = _compare(expected, actual, folder, mark, export_dtype, tolerance, ids.shape[1], architecture)
        write_text(scratch / "README.md", card(result))
        scratch.chmod(0o755)
        scratch.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def _fold_method(model: PreTrainedModel, method: Method, base: BaseModelInfo, mark: ExportMetadata) -> PreTrainedModel:
    """Return the model (float32) with the method in its config and weights."""
    config: Any = model.config
    scale = mark.temperature
    if config.model_type in _STOCK_CLASSES and config.attention_type == "nope":
        # Servers support the stock classes; an absolute softmax scale goes into the queries like a temperature.
        scale *= (config.softmax_scale or base.head_dim**-0.5) * base.head_dim**0.5
        model = _to_stock_class(model)
        config = model.config
    entries = method.model_overrides(base, mark.length)
    if config.model_type not in _STOCK_CLASSES:
        rotary = entries.get("rope_parameters") or getattr(config, "rope_parameters", None) or {}
        if rotary and is_unrotated(rotary):
            entries["rope_parameters"] = _stock_rope_parameters(rotary)
        elif isinstance(method, FactorList):
            entries["rope_parameters"] = with_mscale(rotary)
    else:
        entries.pop("rope_parameters", None)
    for key, value in entries.items():
        setattr(config, key, value)
    config.max_position_embeddings = max(mark.length, config.max_position_embeddings)
    setattr(config, EXPORT_KEY, mark.model_dump())
    heads = method.head_temperatures(base, mark.length)
    if heads is not None:
        scale /= mark.temperature
        fold_heads(model, heads)
    if scale != 1.0:
        for name, module in model.named_modules():
            if name.endswith("self_attn"):
                _scale_queries(module, scale)
    return model


def _stock_rope_parameters(rotary: dict[str, Any]) -> dict[str, Any]:
    """Return rope_parameters that rotate nothing in a form that servers support, per layer type if given so."""
    nested = {key: _stock_rope_parameters(value) for key, value in rotary.items() if isinstance(value, dict)}
    return nested or (
        identity_llama3_rope_parameters(rotary["rope_theta"]) if rotary["rope_type"] == "proportional" else rotary
    )


def _to_stock_class(model: PreTrainedModel) -> PreTrainedModel:
    config_class, model_class = _STOCK_CLASSES[model.config.model_type]
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "attention_type", "softmax_scale"):
        values.pop(key, None)
    with torch.device("meta"):
        stock = model_class(config_class(**values))
    stock.load_state_dict(model.state_dict(), assign=True)
    stock.tie_weights()
    stock.generation_config = model.generation_config
    return stock  # type: ignore[no-any-return]


@torch.no_grad()
def _scale_queries(attention: Any, scale: float) -> None:
    for name in ("q_norm", "k_norm"):
        weight = getattr(getattr(attention, name, None), "weight", None)
        if weight is not None:
            weight.mul_(scale)
            return
    attention.q_proj.weight.mul_(scale)
    if attention.q_proj.bias is not None:
        attention.q_proj.bias.mul_(scale)


def _prompt(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Return random token ids ``[1, tokens]``, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (1, tokens), generator=generator)


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, logits_to_keep=_NUM_COMPARED).logits[0]  # type: ignore[no-any-return]


def _save(model: Any, dtype: str, source: Path, folder: Path) -> None:
    model.to(DTYPES[dtype]).save_pretrained(folder)
    files = [file for pattern in _TOKENIZER_FILES for file in sorted(source.glob(pattern)) if file.is_file()]
    if not any(file.name.startswith(("tokenizer", "vocab")) for file in files):
        raise UserError(f"{source}: has no tokenizer files; a server needs them beside the weights")
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _compare(
    expected: torch.Tensor, actual: torch.Tensor, folder: Path, mark: ExportMetadata, dtype: str, tolerance: float,
    prompt: int, architecture: str,
) -> ExportResult:  # fmt: skip
    difference = float((expected - actual).abs().max() / expected.std())
    agreeing = int((expected.argmax(-1) == actual.argmax(-1)).sum())
    if not difference <= tolerance:
        raise UserError(
            f"{folder}: the checkpoint does not reproduce {mark.method}-{mark.model}: logits differ by "
            f"{difference:.2g} standard deviations, {tolerance:g} are allowed; nothing was written"
        )
    return ExportResult(folder, mark, dtype, difference, tolerance, agreeing, len(expected), prompt, architecture)


def summary(result: ExportResult) -> str:
    """Return one sentence on how well a checkpoint reproduces its method."""
    return (
        f"loaded plainly in float32, its logits at the last {result.positions} of {result.prompt} tokens differ from "
        f"the method's by at most {result.difference:.1e} of their standard deviation (tolerance "
        f"{result.tolerance:g}); the likeliest token is the same at {result.agreeing} of {result.positions}"
    )


def served_by(result: ExportResult) -> str:
    """Return one sentence on which servers run a checkpoint."""
    if "Drope" in result.architecture:
        return (
            f"Its class is {result.architecture}: no stock Llama normalises queries and keys. vLLM runs it where "
            "longctx-bench is installed beside it."
        )
    return f"Servers that know {result.architecture} run it."


def card(result: ExportResult) -> str:
    """Return the model card: where the checkpoint comes from, and how to serve it."""
    mark = result.mark
    folded = (
        f" A softmax temperature of {mark.temperature:.4g} is multiplied into its queries."
        if mark.temperature != 1
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [longctx-bench, long-context, {mark.method}]
---
# {mark.method}-{mark.model} for {mark.length} tokens

The base `{mark.model}`, trained at {mark.original_length} tokens, with the method `{mark.method}` at factor \
{mark.factor:g} written into its config and weights.{folded}
It is that method at this length alone. {served_by(result)}

Weights: {result.dtype}. Check: {summary(result)}.

```
longctx-bench export {mark.method}-{mark.model} FOLDER --length {mark.length}
vllm serve FOLDER --max-model-len {mark.length} --dtype {result.dtype} --generation-config vllm
longctx-bench run --model FOLDER --engine openai --base-url http://localhost:8000 --length {mark.length}
```
"""
