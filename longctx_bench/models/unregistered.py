"""Unregistered models: a hub repository or folder that no YAML lists, described by its ``config.json``."""

from __future__ import annotations

from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import plain_name
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import HubSource, ModelSpec, PathSource, Source, validate
from longctx_bench.methods.exported_checkpoint import ExportMetadata, read_export_metadata
from longctx_bench.methods.rope_parameters import is_unrotated, native_context
from longctx_bench.models.metadata import model_config
from longctx_bench.models.trusted_sources import trust_source

_DROPE_TYPES = ("llama_drope", "qwen2_drope")
_STATEFUL = ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm")
"""Model types with recurrent state, which the engine cannot run; their config has no training context."""


def model_from_path_or_hub_id(name: str, checkpoint: str | None = None) -> tuple[ModelSpec, ExportMetadata | None]:
    """Return a model's spec, and its export metadata if ``longctx-bench export`` wrote it.

    Args:
        name: a hub id (``ORGANISATION/NAME``) or a folder.
        checkpoint: the kind of weights according to the user (``alibi``); used if the config has no rotary positions,
            as for all methods that remove them.

    Raises:
        UserError: there is no such model, or its config does not say its training context.
    """
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError(f"--model {name}: no such folder, and not a hub id (ORGANISATION/NAME)")
    source: Source = PathSource(path=folder.resolve()) if local else validate(HubSource, {"hub": name}, "--model")
    config_source = source.model_copy(update={"file": "config.json"}) if isinstance(source, HubSource) else source
    config = model_config(fetch(config_source), name)
    trust_source(source)
    metadata = read_export_metadata(config, name)
    length = metadata.original_length if metadata is not None else native_context(name, config)
    if length is None and config.get("model_type") in _STATEFUL:
        raise UserError(
            f"{name}: a {config['model_type']} has recurrent state, which unlike a KV cache cannot be cut back to an "
            f"earlier token; only pure attention models are supported"
        )
    if length is None:
        raise UserError(
            f"{name}: config.json has no max_position_embeddings, so its training context is unknown; list it in a "
            f"models.yaml with its original_length (--include-path)"
        )
    native = "drope" if config.get("model_type") in _DROPE_TYPES else "rope"
    if native == "rope" and checkpoint is not None and is_unrotated(config.get("rope_parameters") or {}):
        native = checkpoint
    model = ModelSpec(
        # Part of a cell's identity, so it must not change. A run of two models with the same name is rejected.
        name=plain_name(folder.resolve().name if local else name.replace("/", "--")),
        source=source,
        original_length=length,
        native_method=native,
    )
    return model, metadata
