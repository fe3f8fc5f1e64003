"""Model metadata that is read without the weights: config.json and our calibrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch, is_local
from longctx_bench.core.specs import Source, validate
from longctx_bench.core.untrusted_files import require_object

_MAX_SIZE = 2**31
_MIN_HEAD_DIM = 4


def _size_or_sizes(value: Any) -> Any:
    if all(each is None or (type(each) is int and 0 < each < _MAX_SIZE) for each in _listed(value)):
        return value
    raise ValueError("must be a number above 0, or a list of them by layer")


def _id_or_ids(value: Any) -> Any:
    if value is None or all(type(each) is int for each in _listed(value)):
        return value
    raise ValueError("must be a token id, or a list of them")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_Size = Annotated[int, Field(gt=0, lt=_MAX_SIZE)]
_Sizes = Annotated[Any, AfterValidator(_size_or_sizes)]
_Ids = Annotated[Any, AfterValidator(_id_or_ids)]

TUNED_PARAMETERS = "parameters"
"""Key in ``calibration.json`` of what was chosen by method, beside the names of scalars."""

_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
            "_experts_implementation")  # fmt: skip
_HUB_KERNELS = ("use_kernels", "kernel_config")


class _Rotary(BaseModel):
    """Rotary parameters; of one kind of layer, where a model has several."""

    model_config = ConfigDict(extra="ignore", strict=True)

    rope_type: str | None = None
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    original_max_position_embeddings: _Size | None = None


class _Config(BaseModel):
    """The entries of a ``config.json`` that this project computes with; all others are left to transformers."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model_type: str | None = None
    architectures: list[str] | None = None
    num_hidden_layers: Annotated[int, Field(gt=0, le=4096)] | None = None
    hidden_size: _Size | None = None
    num_attention_heads: _Sizes = None
    num_key_value_heads: _Sizes = None
    head_dim: _Sizes = None
    intermediate_size: _Sizes = None
    vocab_size: _Size | None = None
    max_position_embeddings: _Size | None = None
    tie_word_embeddings: bool | None = None
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    bos_token_id: _Ids = None
    eos_token_id: _Ids = None
    pad_token_id: _Ids = None
    quantization_config: dict[str, Any] | None = None


class _Generation(BaseModel):
    """The entries that are read from a ``generation_config.json``."""

    model_config = ConfigDict(extra="ignore", strict=True)

    eos_token_id: _Ids = None


class _VirtualLength(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]


class _Recipe(BaseModel):
    """The entries that are read from a ``recipe.json``: see :class:`longctx_bench.training.recipe.Recipe`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    virtual_length: _VirtualLength | None = None


def read_calibration(source: Source, tunable: str | None) -> dict[str, Any]:
    """Return the scalar schedules that ``longctx-bench calibrate`` fitted to these weights, by objective."""
    if tunable is None:
        return {}
    with _calibrations(source) as loaded:
        return {
            name: {"table": fit["table"]} if name == "heads" else {"c": fit["c"], "table": fit["table"]}
            for name, fit in loaded.get(tunable, {}).items()
        }


def read_tuned_parameters(source: Source, method: str) -> dict[str, Any]:
    """Return the parameters that ``longctx-bench calibrate`` chose for a method on these weights.

    Args:
        source: of the weights.
        method: its id.

    Returns:
        By objective, the arguments of a :class:`~longctx_bench.methods.tuned_parameters.TunedParameters`.

    Raises:
        UserError: there is a ``calibration.json`` that is not a calibration.
    """
    with _calibrations(source) as loaded:
        fits = loaded.get(TUNED_PARAMETERS, {}).get(method, {})
        return {name: {"table": fit["table"]} for name, fit in fits.items()}


@contextmanager
def _calibrations(source: Source) -> Iterator[dict[str, Any]]:
    """Give the content of the ``calibration.json`` beside local weights, empty if there is none.

    Raises:
        UserError: it cannot be read, or the block raised because its content is malformed.
    """
    path = fetch(source) / "calibration.json" if is_local(source) else None
    if path is None or not path.is_file():
        yield {}
        return
    try:
        yield require_object(path, "run `calibrate` again")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a calibration ({error}); run `calibrate` again") from error


def virtual_length(source: Source) -> float | None:
    """Return the largest factor of the virtual length that local weights were trained under; None for others.

    The ``recipe.json`` that training leaves beside weights says so.

    Raises:
        UserError: there is a ``recipe.json`` that is not a recipe.
    """
    if not is_local(source):
        return None
    path = fetch(source) / "recipe.json"
    if not path.is_file():
        return None
    option = validate(_Recipe, require_object(path, "remove it, or train again"), str(path)).virtual_length
    return None if option is None else option.factor


def model_config(path: Path, name: str) -> dict[str, Any]:
    """Return the ``config.json`` of a folder, or the file itself.

    Raises:
        UserError: it is missing, not a JSON object, has impossible entries, or names code to fetch.
    """
    file = path / "config.json" if path.is_dir() else path
    config = require_object(file, "expected a Hugging Face model folder")
    where = f"{name}: config.json"
    _reject_impossible(config, where)
    for key, value in _entries(config):
        if (key in _KERNELS and not _plain_kernels(value)) or (key in _HUB_KERNELS and value):
            raise UserError(f"{where}: '{key}' names code to fetch (got {value!r:.80}), which is never run; remove it")
    return config


def eos_token_ids(folder: Path) -> frozenset[int]:
    """Return the EOS token ids at which transformers' ``generate`` stops, read without the weights.

    Raises:
        UserError: as :func:`model_config`, also of ``generation_config.json``.
    """
    stop = model_config(folder, str(folder)).get("eos_token_id")
    file = folder / "generation_config.json"
    if file.exists():
        generation = require_object(file, "fetch the model again")
        generation_stop = validate(_Generation, generation, str(file)).eos_token_id
        stop = stop if generation_stop is None else generation_stop
    return frozenset([] if stop is None else _listed(stop))


def _reject_impossible(config: dict[str, Any], where: str) -> None:
    checked = validate(_Config, config, where)
    for name in ("rope_parameters", "rope_scaling"):
        rotary = config.get(name) or {}
        for part in (rotary, *(value for value in rotary.values() if isinstance(value, dict))):
            validate(_Rotary, part, f"{where}: {name}")
    heads, size = checked.num_attention_heads, checked.head_dim
    if size is None and isinstance(heads, int) and checked.hidden_size is not None:
        size = checked.hidden_size // heads
    if isinstance(size, int) and size < _MIN_HEAD_DIM:
        raise UserError(f"{where}: makes attention heads of {size} dimensions; expected a Hugging Face model folder")


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield all entries of a config, also nested ones."""
    pending: list[Any] = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _plain_kernels(value: Any) -> bool:
    """Whether an implementation is a plain name such as ``sdpa``; with a slash it would be a repository."""
    if isinstance(value, dict):
        return all(_plain_kernels(name) for name in value.values())
    return value is None or (isinstance(value, str) and all(char.isalnum() or char in "_-" for char in value))
