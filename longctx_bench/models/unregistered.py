"""Models that no YAML lists: a hub repository or a folder, described by its own ``config.json``."""

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
"""Model types whose config names no training context, and which the engine would refuse whatever a YAML said."""


def model_from_path_or_hub_id(name: str, checkpoint: str | None = None) -> tuple[ModelSpec, ExportMetadata | None]:
    """Describe a model, and what it was exported as if ``longctx-bench export`` wrote it.

    Args:
        name: a hub id (``ORGANISATION/NAME``) or a folder.
        checkpoint: the kind of weights that a user says they are (``alibi``); believed where their config rotates
            nothing, as those of all methods that take the positions away.

    Raises:
        UserError: there is none of that name, or its config does not say what its training context was.
    """
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError(f"--model {name}: no such folder, and not a hub id (ORGANISATION/NAME)")
    source: Source = PathSource(path=folder.resolve()) if local else validate(HubSource, {"hub": name}, "--model")
    config_source = source.model_copy(update={"file": "config.json"}) if isinstance(source, HubSource) else source
    config = model_config(fetch(config_source), name)
    trust_source(source)
    mark = read_export_metadata(config, name)
    length = mark.original_length if mark is not None else native_context(name, config)
    if length is None and config.get("model_type") in _STATEFUL:
        raise UserError(
            f"{name}: a {config['model_type']} keeps a state that cannot be cut back to an earlier token, as is done "
            f"here with keys and values; only models of attention alone can be run"
        )
    if length is None:
        raise UserError(
            f"{name}: config.json names no max_position_embeddings, and nothing else says what its training context "
            f"is; list it in a models.yaml with its original_length (--include-path)"
        )
    native = "drope" if config.get("model_type") in _DROPE_TYPES else "rope"
    if native == "rope" and checkpoint is not None and is_unrotated(config.get("rope_parameters") or {}):
        native = checkpoint
    model = ModelSpec(
        # Part of what identifies a cell: it stays what it was. A run of two models of one name is refused.
        name=plain_name(folder.resolve().name if local else name.replace("/", "--")),
        source=source,
        original_length=length,
        native_method=native,
    )
    return model, mark
