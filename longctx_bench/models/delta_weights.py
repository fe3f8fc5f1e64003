"""Delta weights: the quantised difference of a checkpoint from its base model; file format and merging.

A matrix ``W`` of rows ``i`` is ``scale * B[i] + steps[i] * codes[i]``, ``B`` being the base's of that name: training
changes weights little, so that few bits per weight suffice. Three tensors store it: ``NAME.scale`` (float32, one
number), ``NAME.steps`` (bfloat16, one per row) and ``NAME.codes`` (int8, Huffman-coded by zlib, as bytes). Every other
tensor is stored as it is. The header's metadata has the base model, the sha256 of its weights (so that no other is
used) and the sha256 of the stored tensors.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Source

_FORMAT = "1"
_MEMORY = 9
"""zlib's maximum memLevel: Huffman tables per 32 K codes."""
SCALE, STEPS, CODES = ".scale", ".steps", ".codes"
MAX_CODE = 127
"""Codes are in [-127, 127]."""


@dataclass(frozen=True)
class DeltaBase:
    """The base model that delta weights refer to."""

    name: str
    source: Source
    sha256: str
    """Of its weights, as :func:`tensors_digest` computes it: other versions of transformers write other headers."""


class SafetensorsReader(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, or of all in a folder, read lazily."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsReader]:
    """Open a safetensors file, or all in a folder.

    Raises:
        UserError: there is none, or one is truncated or damaged.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no safetensors files there; expected a model in Hugging Face format")
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in files:
            try:
                weights = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise damaged_file_error(file, error) from error
            tensors |= dict.fromkeys(weights.keys(), weights)
        yield SafetensorsReader(tensors)


def damaged_file_error(file: Path, reason: object) -> UserError:
    """Return the error for a damaged file of weights."""
    return UserError(f"{file}: truncated or damaged ({reason!s:.120}); fetch the checkpoint again")


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and values of tensors, independent of their files."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def compress_codes(codes: torch.Tensor) -> torch.Tensor:
    """Compress int8 codes to a zlib stream (Huffman coding only, as there are no repetitions; with a checksum)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, _MEMORY, zlib.Z_HUFFMAN_ONLY)
    stream = packer.compress(codes.contiguous().numpy().data) + packer.flush()
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8)


def decompress_codes(stream: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Undo :func:`compress_codes`.

    Raises:
        ValueError: the stream is damaged or has another number of codes.
    """
    unpacker = zlib.decompressobj()
    try:
        # Bounded, because a crafted stream could fill the memory.
        codes = bytearray(unpacker.decompress(stream.numpy().data, max(1, shape.numel())))
        surplus = unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(error) from error
    if len(codes) != shape.numel():
        raise ValueError(f"{len(codes)} codes in place of {shape.numel()}")
    if surplus or not unpacker.eof:
        raise ValueError(f"more codes than {shape.numel()}")
    return torch.frombuffer(codes, dtype=torch.int8).view(shape)


def apply_delta(base: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the restored matrix in bfloat16. Each operation rounds once, so that all machines get the same bits."""
    difference = codes.float().mul_(steps.float()[:, None])
    return (base.float() * scale).add_(difference).bfloat16()


def write_delta(file: Path, tensors: dict[str, torch.Tensor], origin: DeltaBase) -> None:
    """Write delta weights. Not atomic: pass a temporary file.

    Raises:
        UserError: the disk is full.
    """
    source = TypeAdapter[Any](Source).dump_json(origin.source, exclude_defaults=True).decode()
    metadata = {
        "difference": _FORMAT, "base": origin.name, "base_source": source, "base_sha256": origin.sha256,
        "sha256": tensors_digest(tensors),
    }  # fmt: skip
    _save(tensors, file, metadata)


def read_delta_base(file: Path) -> DeltaBase:
    """Return the base model of delta weights from the file header, which is untrusted.

    Raises:
        UserError: the file is damaged, or of an unknown format.
    """
    metadata = _metadata(file)
    try:
        source = TypeAdapter[Any](Source).validate_python(json.loads(metadata["base_source"]))
        return DeltaBase(metadata["base"], source, metadata["base_sha256"])
    except (KeyError, ValueError, ValidationError, RecursionError) as error:
        raise damaged_file_error(file, f"its header names no base: {type(error).__name__}") from error


def merge_delta(file: Path, base_folder: Path, out: Path) -> None:
    """Merge delta weights with the base model and write them to ``out`` as safetensors.

    Takes seconds, and memory for the merged weights and a few copies of the largest matrix.

    Raises:
        UserError: the file is damaged, the folder has another base model, or the disk is full.
    """
    origin = read_delta_base(file)
    with open_safetensors(file) as stored, open_safetensors(base_folder) as base:
        if tensors_digest(stored) != _metadata(file).get("sha256"):
            raise damaged_file_error(file, "its sha256 is not the one in its header")
        if tensors_digest(base) != origin.sha256:
            raise UserError(
                f"{file}: its base is another {origin.name} than the weights in {base_folder}; remove that folder if "
                f"it is in the cache (it is created again)"
            )
        try:
            merged = {
                name.removesuffix(CODES): _matrix(name.removesuffix(CODES), stored, base)
                if name.endswith(CODES)
                else stored[name].clone()
                for name in stored
                if not name.endswith((SCALE, STEPS))
            }
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise damaged_file_error(file, error) from error
        _save(merged, out, {"format": "pt"})


def _matrix(name: str, stored: SafetensorsReader, base: SafetensorsReader) -> torch.Tensor:
    base_matrix = base[name]
    scale, steps, stream = (stored[name + part] for part in (SCALE, STEPS, CODES))
    # Other shapes would be broadcast, and could fill the memory.
    if (
        base_matrix.dim() != 2
        or scale.numel() != 1
        or steps.shape != base_matrix.shape[:1]
        or stream.dtype != torch.uint8
    ):
        raise ValueError(f"{name}: shapes do not match the base's {list(base_matrix.shape)}")
    return apply_delta(base_matrix, scale.reshape(()), steps, decompress_codes(stream, base_matrix.shape))


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as weights:
            metadata: dict[str, str] = weights.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise damaged_file_error(file, error) from error
    if metadata.get("difference") != _FORMAT:
        file_format = metadata.get("difference", "none")
        raise UserError(
            f"{file}: delta weights of format {file_format}, not {_FORMAT}; use the version of longctx-bench that "
            "wrote it"
        )
    return metadata


def _save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, file, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be written ({error!s:.120}); make room or choose another folder") from error
