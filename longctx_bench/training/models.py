"""Initial models: random weights per position method, or a base model with its positions dropped (DroPE)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, SmolLM3Config

from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.core.specs import HubSource, PathSource, Source, validate
from longctx_bench.engines.hf.engine import load_config, load_model
from longctx_bench.methods.modeling_drope import DROPE_MODEL_TYPES
from longctx_bench.methods.nope import nope_rope_parameters
from longctx_bench.models.checkpoint import DELTA_FILE, checkpoint_folder, stored_tokenizer, transformers_tokenizer
from longctx_bench.registry import Registry
from longctx_bench.training.recipe import Recipe, Shape, builtin_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOPE_EVERY = 4
"""RNoPE-SWA: every fourth layer is full attention without positions."""


def fresh_model(shape: Shape, positions: str, length: int, vocab_size: int, end: int, seed: int) -> PreTrainedModel:
    """Return a model with random weights in fp32; every method is a stock transformers config.

    ALiBi's is that of NoPE: its penalty is the ``alibi`` method's attention function.
    """
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": length,
        "tie_word_embeddings": shape.tie,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
    }
    config: LlamaConfig | SmolLM3Config
    if positions == "rnope-swa":
        full = [(layer + 1) % NOPE_EVERY == 0 for layer in range(shape.layers)]
        config = SmolLM3Config(
            **sizes,
            no_rope_layers=[int(not layer) for layer in full],
            layer_types=["full_attention" if layer else "sliding_attention" for layer in full],
            use_sliding_window=True,
            sliding_window=shape.window,
        )
    else:
        if positions in ("nope", "alibi"):
            sizes["rope_parameters"] = nope_rope_parameters(shape.rope_theta)
        config = LlamaConfig(**sizes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def starting_model(recipe: Recipe, tokenizer: Any) -> PreTrainedModel:
    """Return the fp32 model that a recipe starts from.

    Raises:
        UserError: the base cannot be continued this way, or the tokenizer is larger than the model's vocabulary.
    """
    if recipe.shape is not None:
        shape = recipe.shape
        size = max(shape.vocab_size, len(tokenizer))
        model = fresh_model(shape, recipe.positions, recipe.sequence_length, size, tokenizer.eos_token_id, recipe.seed)
    else:
        model = load_base(recipe)
        if recipe.positions == "drope" and model.config.model_type not in DROPE_MODEL_TYPES:
            model = without_positions(model, recipe.qk_norm)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, base '{recipe.base}' {model.config.vocab_size}: "
            f"leave 'tokenizer' out to use the base's own"
        )
    return model


def base_source(name: str, revision: str | None = None) -> Source:
    """Return the source of a base or a tokenizer.

    Args:
        name: a folder, an embedded name, the name of a listed model or a hub id.
        revision: of a hub id.

    Raises:
        UserError: it is none of the four.
    """
    for folder in (Path(name).expanduser(), shipped_checkpoint_folder(name)):
        if (folder / "tokenizer_config.json").is_file() or (folder / "config.json").is_file():
            return PathSource(path=folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return validate(HubSource, {"hub": name, "revision": revision}, f"base '{name}'")
    model = Registry().models.get(name)
    if model is None:
        raise UserError(
            f"base '{name}': no folder with a config.json, no embedded or listed model and no hub id (owner/name)"
            f"{_how_to_train(name)}"
        )
    return model.source


def _how_to_train(name: str) -> str:
    """Return a hint on how to train a missing base; empty where no built-in recipe has its name."""
    stage = Path(name).name
    if not builtin_recipe(stage).is_file():
        return ""
    return f"; train it first: `longctx-bench train {stage}`, or name its folder with --set base=FOLDER"


def base_folder(name: str, revision: str | None = None) -> Path:
    """Return a local folder with the checkpoint of a base; arguments as :func:`base_source`.

    Raises:
        UserError: it cannot be fetched, or does not hold the full weights of a model.
    """
    return checkpoint_folder(base_source(name, revision))


def base_config(recipe: Recipe) -> PreTrainedConfig:
    """Return the config of the checkpoint that a recipe continues, as training changes it.

    It names the recipe's sequence length as training context, and a control's own rotary base.

    Raises:
        UserError: the config is invalid, or the base is not Llama- or Qwen2-like, is quantised, has no rotary positions
            or a shorter context than the recipe's.
    """
    assert recipe.base is not None
    config: Any = load_config(base_folder(recipe.base, recipe.base_revision))
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"base '{recipe.base}' is quantised, which cannot be trained: name its full weights")
    if config.model_type in DROPE_MODEL_TYPES and recipe.positions == "drope":
        if config.attention_type != _attention_type(recipe.qk_norm):
            raise UserError(f"base '{recipe.base}' has attention '{config.attention_type}': set qk_norm accordingly")
    elif config.model_type not in ("llama", "qwen2"):
        raise UserError(
            f"base '{recipe.base}' is a '{config.model_type}'; positions can be dropped from llama and qwen2"
        )
    else:
        rotary = config.rope_parameters or {}
        if rotary.get("rope_type") == "proportional" and not rotary.get("partial_rotary_factor", 1.0):
            raise UserError(f"base '{recipe.base}' has no rotary positions: start from a RoPE checkpoint")
    limit = config.max_position_embeddings
    if recipe.sequence_length > limit:
        raise UserError(f"sequence_length {recipe.sequence_length} is more than the {limit} of base '{recipe.base}'")
    config.max_position_embeddings = recipe.sequence_length
    if recipe.rope_theta is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": recipe.rope_theta}
    return config  # type: ignore[no-any-return]


def load_base(recipe: Recipe) -> PreTrainedModel:
    """Load the checkpoint that a recipe continues, in fp32, with its positions as stored.

    A recalibration may also continue one whose positions were dropped before.

    Raises:
        UserError: as :func:`base_config`, or its weights are missing or damaged.
    """
    assert recipe.base is not None
    return load_model(base_folder(recipe.base, recipe.base_revision), "float32", "cpu", base_config(recipe))


def _attention_type(qk_norm: bool) -> str:
    return "qk_norm_nope" if qk_norm else "nope"


def without_positions(model: PreTrainedModel, qk_norm: bool) -> PreTrainedModel:
    """Return the DroPE form of a Llama or Qwen2 with the same weights; new query and key norms start at 1."""
    config_class, model_class = DROPE_MODEL_TYPES[f"{model.config.model_type}_drope"]
    fields = model.config.to_dict()
    for key in ("model_type", "architectures", "dtype", "_name_or_path", "transformers_version"):
        fields.pop(key, None)
    fields["attention_type"] = _attention_type(qk_norm)
    config = config_class(**fields)
    config.architectures = [model_class.__name__]
    drope_model: PreTrainedModel = model_class(config).to(torch.float32)
    mismatched = drope_model.load_state_dict(model.state_dict(), strict=False)
    missing = {key for key in mismatched.missing_keys if not key.endswith(("q_norm.weight", "k_norm.weight"))}
    assert not missing, missing
    assert not mismatched.unexpected_keys, mismatched.unexpected_keys
    with torch.no_grad():
        for name, parameter in drope_model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(1.0)
    drope_model.tie_weights()
    return drope_model


def recipe_tokenizer(recipe: Recipe) -> Any:
    """Load the tokenizer that a recipe names, or its base's.

    Raises:
        UserError: there is none, or it is broken.
    """
    if recipe.tokenizer is None:
        assert recipe.base is not None
        return stored_tokenizer(base_folder(recipe.base, recipe.base_revision))
    source = base_source(recipe.tokenizer)
    if isinstance(source, HubSource):
        # transformers fetches the tokenizer's files only, not the weights.
        return transformers_tokenizer(source.hub, source.revision)
    if isinstance(source, PathSource) and not (source.path / DELTA_FILE).is_file():
        return stored_tokenizer(source.path)
    return stored_tokenizer(checkpoint_folder(source))
