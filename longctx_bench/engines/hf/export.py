"""A method written into a plain checkpoint: positions in its config, the softmax temperature in its weights."""

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
from longctx_bench.methods.base import Base, Capability, Method
from longctx_bench.methods.exported_checkpoint import MARK, Mark
from longctx_bench.methods.nope import turning_nothing
from longctx_bench.methods.rope_parameters import unrotated
from longctx_bench.models.variant import ModelUnderTest

TOLERANCE = 1e-3
"""Largest difference of logits, in standard deviations of them, where weights are written as they were computed."""
TOLERANCE_ROUNDED = 0.1
"""The same where a temperature was multiplied into weights that were then rounded to bfloat16."""
_CHECKED = 64
"""Positions at the prompt's end whose logits are compared."""
_BESIDE = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip
"""What is copied from beside the weights, byte for byte."""
_PLAIN: dict[str, tuple[type[Any], type[Any]]] = {
    "llama_drope": (LlamaConfig, LlamaForCausalLM),
    "qwen2_drope": (Qwen2Config, Qwen2ForCausalLM),
}
"""The stock classes of DroPE checkpoints whose queries and keys are not normalised."""


@dataclass(frozen=True)
class ExportResult:
    """An exported checkpoint and how well it reproduces the method."""

    folder: Path
    mark: Mark
    dtype: str
    difference: float
    """Largest difference of logits, in standard deviations of the method's."""
    tolerance: float
    agreeing: int
    """Positions whose likeliest token is the same."""
    positions: int
    prompt: int
    """Tokens of the prompt."""
    architecture: str
    """The class that a server must know."""


_NOT_EXPORTED: dict[Capability, str] = {
    "per_prompt": "follows each prompt's own length, and a checkpoint has one set of frequencies",
    "prompt": "changes the prompts, not the model",
    "model_patch": "computes its attention by code of its own, which no config can name",
}


def check_exportable(method: Method, name: str) -> None:
    """Refuse methods that no config and no weights can say.

    Args:
        method: to be exported.
        name: its own.

    Raises:
        UserError: with the reason.
    """
    for capability in sorted(method.capabilities & _NOT_EXPORTED.keys()):
        raise UserError(f"export: {name} {_NOT_EXPORTED[capability]}; run it with --engine hf")


def export_checkpoint(
    contestant: ModelUnderTest, name: str, source: Path, folder: Path, dtype: str = "auto"
) -> ExportResult:
    """Write a contestant as a plain Hugging Face checkpoint and check that it reproduces the method's logits.

    Models without positions get the llama3 rotation with an endless factor, which turns nothing and which stock
    servers know. The softmax temperature is multiplied into the queries: into the weight of their norm where they
    have one, else into their projection. DroPE checkpoints with normalised queries or keys stay in Sakana AI's format.

    Args:
        contestant: base, method, and the length in tokens that the checkpoint is to read.
        name: the method's.
        source: folder with the weights that the method takes.
        folder: a new folder; it appears whole or not at all.
        dtype: of the weights. ``auto`` is their own, but float32 where a temperature is multiplied into them:
            rounding the product to bfloat16 moves logits.

    Raises:
        UserError: the method cannot be exported, the folder is not empty or cannot be written, or the checkpoint does
            not reproduce the method.
    """
    base, method, length = contestant.base, contestant.method, contestant.length
    check_exportable(method, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder")
    beta = method.attention_temperature(base, length)
    mark = Mark(
        model=base.name, method=name, length=length, original_length=base.original_length,
        factor=method.scale(base, length), temperature=beta,
    )  # fmt: skip
    own = "bfloat16" if (base.config.get("dtype") or base.config.get("torch_dtype")) == "bfloat16" else "float32"
    chosen = dtype if dtype != "auto" else own if beta == 1.0 else "float32"
    model = load_model(source, "float32", "cpu")
    ids = _prompt(model, min(length, base.original_length + _CHECKED))
    with apply_method(model, contestant, length):
        wanted = _logits(model, ids)
    model = _rewritten(model, method, base, mark)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error
    try:
        _save(model, chosen, source, made)
        del model
        loaded = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
        found, architecture = _logits(loaded, ids), type(loaded).__name__
        tolerance = TOLERANCE if chosen == "float32" or (chosen == own and beta == 1.0) else TOLERANCE_ROUNDED
        written = _compared(wanted, found, folder, mark, chosen, tolerance, ids.shape[1], architecture)
        write_text(made / "README.md", card(written))
        made.chmod(0o755)
        made.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return written


def _rewritten(model: PreTrainedModel, method: Method, base: Base, mark: Mark) -> PreTrainedModel:
    """Return the model (float32) with its method in config and weights."""
    config: Any = model.config
    scale = mark.temperature
    if config.model_type in _PLAIN and config.attention_type == "nope":
        # Servers know the stock classes; an absolute softmax scale goes into the queries like a temperature.
        scale *= (config.softmax_scale or base.head_dim**-0.5) * base.head_dim**0.5
        model = _plain(model)
        config = model.config
    entries = method.model_overrides(base, mark.length)
    if config.model_type not in _PLAIN:
        rotary = entries.get("rope_parameters") or getattr(config, "rope_parameters", None) or {}
        if rotary and unrotated(rotary):
            entries["rope_parameters"] = _served(rotary)
    else:
        entries.pop("rope_parameters", None)
    for key, value in entries.items():
        setattr(config, key, value)
    config.max_position_embeddings = max(mark.length, config.max_position_embeddings)
    setattr(config, MARK, mark.model_dump())
    if scale != 1.0:
        for name, module in model.named_modules():
            if name.endswith("self_attn"):
                _sharpen(module, scale)
    return model


def _served(rotary: dict[str, Any]) -> dict[str, Any]:
    """Return rope_parameters that rotate nothing in a form that servers know, by layer type where these are."""
    nested = {key: _served(value) for key, value in rotary.items() if isinstance(value, dict)}
    return nested or (turning_nothing(rotary["rope_theta"]) if rotary["rope_type"] == "proportional" else rotary)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    kinds = _PLAIN[model.config.model_type]
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "attention_type", "softmax_scale"):
        values.pop(key, None)
    with torch.device("meta"):
        plain = kinds[1](kinds[0](**values))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain  # type: ignore[no-any-return]


@torch.no_grad()
def _sharpen(attention: Any, scale: float) -> None:
    for name in ("q_norm", "k_norm"):
        weight = getattr(getattr(attention, name, None), "weight", None)
        if weight is not None:
            weight.mul_(scale)
            return
    attention.q_proj.weight.mul_(scale)
    if attention.q_proj.bias is not None:
        attention.q_proj.bias.mul_(scale)


def _prompt(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Return token ids ``[1, tokens]``, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (1, tokens), generator=generator)


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, logits_to_keep=_CHECKED).logits[0]  # type: ignore[no-any-return]


def _save(model: Any, dtype: str, source: Path, folder: Path) -> None:
    model.to(DTYPES[dtype]).save_pretrained(folder)
    beside = [file for pattern in _BESIDE for file in sorted(source.glob(pattern)) if file.is_file()]
    if not any(file.name.startswith(("tokenizer", "vocab")) for file in beside):
        raise UserError(f"{source}: has no tokenizer files; a server needs them beside the weights")
    for file in beside:
        shutil.copyfile(file, folder / file.name)


def _compared(
    wanted: torch.Tensor, found: torch.Tensor, folder: Path, mark: Mark, dtype: str, tolerance: float, prompt: int,
    architecture: str,
) -> ExportResult:  # fmt: skip
    difference = float((wanted - found).abs().max() / wanted.std())
    agreeing = int((wanted.argmax(-1) == found.argmax(-1)).sum())
    if not difference <= tolerance:
        raise UserError(
            f"{folder}: the checkpoint does not reproduce {mark.method}-{mark.model}: logits differ by "
            f"{difference:.2g} standard deviations, {tolerance:g} are allowed; nothing was written"
        )
    return ExportResult(folder, mark, dtype, difference, tolerance, agreeing, len(wanted), prompt, architecture)


def summary(written: ExportResult) -> str:
    """Return in one sentence how well a checkpoint reproduces its method."""
    return (
        f"loaded plainly in float32, its logits at the last {written.positions} of {written.prompt} tokens differ from "
        f"the method's by at most {written.difference:.1e} of their standard deviation (tolerance "
        f"{written.tolerance:g}); the likeliest token is the same at {written.agreeing} of {written.positions}"
    )


def served_by(written: ExportResult) -> str:
    """Return in one sentence which servers run a checkpoint."""
    if "Drope" in written.architecture:
        return (
            f"Its class is {written.architecture}: no stock Llama normalises queries and keys. vLLM runs it where "
            "longctx-bench is installed beside it."
        )
    return f"Servers that know {written.architecture} run it."


def card(written: ExportResult) -> str:
    """Return the model card: what the checkpoint was made from, and how to serve it."""
    mark = written.mark
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
It is that method at this length alone. {served_by(written)}

Weights: {written.dtype}. Check: {summary(written)}.

```
longctx-bench export {mark.method}-{mark.model} FOLDER --length {mark.length}
vllm serve FOLDER --max-model-len {mark.length} --dtype {written.dtype} --generation-config vllm
longctx-bench run --model FOLDER --engine openai --base-url http://localhost:8000 --length {mark.length}
```
"""
