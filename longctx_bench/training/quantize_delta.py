"""``python -m longctx_bench.training.pack FOLDER --base NAME --out DIR``: a trained model as a small difference.

What it writes, :mod:`longctx_bench.models.delta_weights` merges with the base again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import atomic_write
from longctx_bench.core.provenance import usable_cores
from longctx_bench.core.sources import fetch, resolve_revision
from longctx_bench.core.specs import PathSource, Source
from longctx_bench.models.checkpoint import DELTA_FILE, checkpoint_folder, tokenizer_files
from longctx_bench.models.delta_weights import (
    CODES,
    MAX_CODE,
    SCALE,
    STEPS,
    DeltaBase,
    SafetensorsReader,
    apply_delta,
    compress_codes,
    open_safetensors,
    tensors_digest,
    write_delta,
)
from longctx_bench.models.trusted_sources import trust_source
from longctx_bench.registry import Registry
from longctx_bench.training.gptq import input_moments, rounded

_FIRST_SHARE = 0.05
_CLOSE = 0.998
"""Of the bytes that were asked for: a size between this share of them and all is good enough."""
_ATTEMPTS = 10
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


_Moments = Mapping[str, torch.Tensor]
_Error = tuple[float, float]


@dataclass(frozen=True)
class Packed:
    """What packing came to."""

    file: Path
    share: float
    bytes: int
    error: float
    """Root mean square of what the matrices are off, relative to that of their weights."""
    worst: float
    """The largest of one matrix."""
    effect: float | None
    """The same of what the matrices make of their inputs, where those are known."""


@dataclass(frozen=True)
class _Coded:
    tensors: dict[str, torch.Tensor]
    matrices: int
    """Weights in matrices."""
    errors: list[tuple[float, float]]
    """Sum of squares of what is off and of the weights, for every matrix."""
    effects: list[tuple[float, float]]
    """The same of what matrices with known inputs make of them."""

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def pack(
    folder: Path,
    base: str,
    out: Path,
    share: float | None = None,
    size: int | None = None,
    text: Path | None = None,
    tokens: int = 16_384,
) -> Packed:
    """Write ``folder`` to ``out`` with a difference to ``base`` in place of its weights.

    Args:
        folder: a trained model in Hugging Face format, bf16.
        base: a listed model, or the folder of one, that it was trained from.
        out: gets all files of the folder but the weights, and but a tokenizer that is the base's.
        share: a matrix' row is stored to multiples of this share of its root mean square.
        size: bytes of the difference, of which the share follows; one of the two is given.
        text: documents that no test uses; with it, rounding minds what the matrices do to this text.
        tokens: how many of its tokens are read.

    Raises:
        UserError: no such model, weights that are not finite, a size that cannot be had, or no space on the disk.
    """
    if (share is None) == (size is None):
        raise UserError("pack: give one of --share and --bytes")
    if not 0 < (1e-4 if share is None else share) <= 1:
        raise UserError(f"--share {share}: is part of a row's root mean square, such as 0.04")
    source = _source(base)
    if (fetch(source) / DELTA_FILE).is_file():
        raise UserError(f"--base {base}: is a difference itself, which none can be taken from; name what it came from")
    base_folder = checkpoint_folder(source)
    if out.resolve() in (folder.resolve(), base_folder.resolve()):
        raise UserError(f"--out {out}: is the folder of the model or its base; name another")
    model_folder = checkpoint_folder(PathSource(path=folder))
    moments = input_moments(model_folder, text, tokens) if text is not None else {}
    with open_safetensors(model_folder) as model, open_safetensors(base_folder) as before:
        coded = _coded(model, before, share or _FIRST_SHARE, moments)
        if size is not None:
            coded, share = _of_size(model, before, coded, size, moments)
        assert share is not None
        origin = DeltaBase(
            base if not isinstance(source, PathSource) else source.path.name, source, tensors_digest(before)
        )
        with atomic_write(out / DELTA_FILE) as temporary:
            write_delta(temporary, coded.tensors, origin)
    _copy_beside(model_folder, base_folder, out)
    worst = max(((part / all_) ** 0.5 for part, all_ in coded.errors if all_), default=0.0)
    file = out / DELTA_FILE
    effect = _relative(coded.effects) if coded.effects else None
    return Packed(file, share, file.stat().st_size, _relative(coded.errors), worst, effect)


def _relative(errors: list[tuple[float, float]]) -> float:
    off, whole = (sum(pair[part] for pair in errors) for part in (0, 1))
    return (off / whole) ** 0.5 if whole else 0.0


def _source(base: str) -> Source:
    path = Path(base).expanduser()
    if path.is_dir():
        source = PathSource(path=path.resolve())
        trust_source(source)  # What is packed can be merged on this machine, and nowhere else.
        return source
    # A branch of the hub may move, and what was packed against it before would no longer fit.
    return resolve_revision(Registry().variant(base).source)


def _of_size(
    model: SafetensorsReader, before: SafetensorsReader, coded: _Coded, size: int, moments: _Moments
) -> tuple[_Coded, float]:
    """Find the share by what each attempt came to: twice the step takes one bit less a weight, while bits are many."""
    share = _FIRST_SHARE
    for _ in range(_ATTEMPTS):
        if _CLOSE * size <= coded.bytes + _header(coded) <= size:
            return coded, share
        surplus = coded.bytes + _header(coded) - size * (1 + _CLOSE) / 2
        share *= 2 ** min(4.0, 8 * surplus / max(1, coded.matrices))
        coded = _coded(model, before, share, moments)
    raise UserError(f"--bytes {size}: the nearest share found, {share:.3g}, takes {coded.bytes} bytes; give --share")


def _header(coded: _Coded) -> int:
    """Return what safetensors' header takes, and a little more."""
    return 1000 + sum(len(name) + 90 for name in coded.tensors)


def _coded(model: SafetensorsReader, before: SafetensorsReader, share: float, moments: _Moments) -> _Coded:
    tensors: dict[str, torch.Tensor] = {}
    errors, effects = [], []
    matrices = [name for name in model if model[name].dim() == 2 and _shape(before, name) == model[name].shape]
    with ThreadPoolExecutor(usable_cores()) as pool:
        of_name = pool.map(lambda name: _matrix(name, model[name], before[name], share, moments.get(name)), matrices)
        for parts, error, effect in of_name:
            tensors |= parts
            errors.append(error)
            effects += effect
    for name in model:
        if name not in matrices:
            if name.endswith((SCALE, STEPS, CODES)):
                raise UserError(f"{name}: a tensor of that name cannot be packed")
            tensors[name] = model[name].clone()
    return _Coded(tensors, sum(model[name].numel() for name in matrices), errors, effects)


def _shape(weights: SafetensorsReader, name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _matrix(
    name: str, trained: torch.Tensor, base: torch.Tensor, share: float, moments: torch.Tensor | None
) -> tuple[dict[str, torch.Tensor], _Error, list[_Error]]:
    weight, before = trained.float(), base.float()
    if not bool(weight.isfinite().all()):
        raise UserError(f"{name}: has weights that are not finite")
    # One scale a matrix, for what weight decay took: one a row takes as many bytes as it saves.
    scale = (before.flatten() @ weight.flatten()) / before.square().sum().clamp_min(1e-30)
    rest = weight - before * scale
    least = rest.abs().amax(1) / (MAX_CODE - 1)  # One less: the step is rounded itself.
    steps = torch.maximum(weight.square().mean(1).sqrt() * share, least).clamp_min(1e-30).bfloat16()
    if moments is None:
        codes = (rest / steps.float()[:, None]).round_().to(torch.int8)
    else:
        codes = rounded(rest, steps.float(), moments, MAX_CODE)
    off = apply_delta(base, scale, steps, codes).float() - weight
    error = float(off.square().sum()), float(weight.square().sum())
    effect = [] if moments is None else [(_squared(off, moments), _squared(weight, moments))]
    return {name + SCALE: scale, name + STEPS: steps, name + CODES: compress_codes(codes)}, error, effect


def _squared(weight: torch.Tensor, moments: torch.Tensor) -> float:
    """Return the mean square of what a matrix makes of inputs with these moments, summed over its rows."""
    return float(((weight @ moments) * weight).sum())


def _copy_beside(folder: Path, base_folder: Path, out: Path) -> None:
    left_out = tokenizer_files(folder) if _same_tokenizer(folder, base_folder) else []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file in left_out or file.suffix in _WEIGHTS or file.name.endswith(".index.json"):
            continue
        with atomic_write(out / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _same_tokenizer(folder: Path, base_folder: Path) -> bool:
    """Tell whether two folders have one tokenizer, whichever version of transformers wrote them."""
    own, others = ({file.name: _content(file) for file in tokenizer_files(each)} for each in (folder, base_folder))
    return own == others


def _content(file: Path) -> Any:
    if file.name != "tokenizer_config.json":
        return file.read_bytes()
    config = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in ("transformers_version", "local_files_only")}


def main(arguments: list[str]) -> int:
    """Pack a model; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m longctx_bench.training.pack", description=pack.__doc__)
    parser.add_argument("folder", type=Path, help="the trained model")
    parser.add_argument(
        "--base", required=True, help="a listed model, or a folder (for this machine alone): what it was trained from"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--share", type=float, help="step of a row, as a share of its root mean square")
    parser.add_argument("--bytes", type=float, help="size of the difference in place of --share, such as 88e6")
    parser.add_argument("--text", type=Path, help="rounding minds what the matrices do to this text")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the text that are read")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.bytes is not None and not 0 < chosen.bytes < 1e15:
            raise UserError(f"--bytes {chosen.bytes}: is a number of bytes, such as 88e6")
        size = None if chosen.bytes is None else int(chosen.bytes)
        packed = pack(chosen.folder, chosen.base, chosen.out, chosen.share, size, chosen.text, chosen.tokens)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"wrote {packed.file}: {packed.bytes / 1e6:.2f} MB at share {packed.share:.4g}; relative rms error "
        f"{packed.error:.5f}, of the worst matrix {packed.worst:.5f}"
        + (f"; of what they make of the text {packed.effect:.5f}" if packed.effect is not None else "")
    )
    return 0
