"""Quantized delta weights: a trained model as a small difference to its base.

Command line: ``python -m longctx_bench.training.pack FOLDER --base NAME --out DIR``.
:mod:`longctx_bench.models.delta_weights` merges the result with the base again.
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
from longctx_bench.training.gptq import gptq_codes, input_moments

_FIRST_SHARE = 0.05
"""Step size that the search for a file size starts from."""
_MIN_FILL = 0.998
"""The search for a file size ends when the file has at least this share of the requested bytes, and not more."""
_ATTEMPTS = 10
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


_Moments = Mapping[str, torch.Tensor]
_Error = tuple[float, float]


@dataclass(frozen=True)
class Packed:
    """The size and the errors of a quantized delta."""

    file: Path
    share: float
    """Step size of a row, relative to the row's root mean square."""
    bytes: int
    """Size of the file."""
    error: float
    """Root mean square error of all weight matrices, relative to the root mean square of the weights."""
    worst: float
    """The largest relative error of a single matrix."""
    effect: float | None
    """Relative root mean square error of the matrices' outputs on the calibration text; None without one."""


@dataclass(frozen=True)
class _QuantizedDelta:
    tensors: dict[str, torch.Tensor]
    num_weights: int
    """Weights in matrices; other tensors are stored as they are."""
    errors: list[_Error]
    """Per matrix: sum of squares of the error and of the weights."""
    output_errors: list[_Error]
    """Per matrix with known inputs: sum of squares of its output's error and of its output."""

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
    """Write ``folder`` to ``out`` with delta weights, the quantized difference to ``base``, in place of its weights.

    Args:
        folder: a trained model in Hugging Face format, bf16.
        base: the model that it was trained from: a registered name, or a folder.
        out: receives all files of the folder except the weights, and except a tokenizer equal to the base's.
        share: step size of each row of a matrix, relative to the row's root mean square.
        size: bytes of the delta weights, from which the step size is computed; give either ``share`` or ``size``.
        text: calibration documents that no test uses; with them, weights are rounded by GPTQ instead of to nearest.
        tokens: number of calibration tokens.

    Raises:
        UserError: unknown model, non-finite weights, a size that cannot be reached, or no space on the disk.
    """
    if (share is None) == (size is None):
        raise UserError("pack: give one of --share and --bytes")
    if not 0 < (1e-4 if share is None else share) <= 1:
        raise UserError(f"--share {share}: must be a share of a row's root mean square, such as 0.04")
    source = _source(base)
    if (fetch(source) / DELTA_FILE).is_file():
        raise UserError(f"--base {base}: has delta weights itself; name the model that it is based on")
    base_folder = checkpoint_folder(source)
    if out.resolve() in (folder.resolve(), base_folder.resolve()):
        raise UserError(f"--out {out}: is the folder of the model or of its base; choose another")
    model_folder = checkpoint_folder(PathSource(path=folder))
    moments = input_moments(model_folder, text, tokens) if text is not None else {}
    with open_safetensors(model_folder) as model, open_safetensors(base_folder) as base_weights:
        delta = _quantize(model, base_weights, share or _FIRST_SHARE, moments)
        if size is not None:
            delta, share = _fit_size(model, base_weights, delta, size, moments)
        assert share is not None
        origin = DeltaBase(
            base if not isinstance(source, PathSource) else source.path.name, source, tensors_digest(base_weights)
        )
        with atomic_write(out / DELTA_FILE) as temporary:
            write_delta(temporary, delta.tensors, origin)
    _copy_other_files(model_folder, base_folder, out)
    worst = max(((error / total) ** 0.5 for error, total in delta.errors if total), default=0.0)
    file = out / DELTA_FILE
    effect = _relative(delta.output_errors) if delta.output_errors else None
    return Packed(file, share, file.stat().st_size, _relative(delta.errors), worst, effect)


def _relative(errors: list[tuple[float, float]]) -> float:
    error, total = (sum(pair[index] for pair in errors) for index in (0, 1))
    return (error / total) ** 0.5 if total else 0.0


def _source(base: str) -> Source:
    path = Path(base).expanduser()
    if path.is_dir():
        source = PathSource(path=path.resolve())
        trust_source(source)  # The delta can be merged on this machine only.
        return source
    # Pin the commit: a hub branch may move, and the delta would no longer fit.
    return resolve_revision(Registry().variant(base).source)


def _fit_size(
    model: SafetensorsReader, base_weights: SafetensorsReader, delta: _QuantizedDelta, size: int, moments: _Moments
) -> tuple[_QuantizedDelta, float]:
    """Search for the step size that gives a file of ``size`` bytes.

    Doubling the step saves about one bit per weight, so each attempt's size gives the next step.

    Raises:
        UserError: no step size gives that size.
    """
    share = _FIRST_SHARE
    for _ in range(_ATTEMPTS):
        if _MIN_FILL * size <= delta.bytes + _max_header_bytes(delta) <= size:
            return delta, share
        surplus = delta.bytes + _max_header_bytes(delta) - size * (1 + _MIN_FILL) / 2
        share *= 2 ** min(4.0, 8 * surplus / max(1, delta.num_weights))
        delta = _quantize(model, base_weights, share, moments)
    raise UserError(f"--bytes {size}: not reached; --share {share:.3g} takes {delta.bytes} bytes; give --share")


def _max_header_bytes(delta: _QuantizedDelta) -> int:
    """Return an upper bound of the safetensors header's size in bytes."""
    return 1000 + sum(len(name) + 90 for name in delta.tensors)


def _quantize(
    model: SafetensorsReader, base_weights: SafetensorsReader, share: float, moments: _Moments
) -> _QuantizedDelta:
    tensors: dict[str, torch.Tensor] = {}
    errors, output_errors = [], []
    matrices = [name for name in model if model[name].dim() == 2 and _shape(base_weights, name) == model[name].shape]
    with ThreadPoolExecutor(usable_cores()) as pool:
        quantized = pool.map(
            lambda name: _quantize_matrix(name, model[name], base_weights[name], share, moments.get(name)), matrices
        )
        for stored, error, output_error in quantized:
            tensors |= stored
            errors.append(error)
            output_errors += output_error
    for name in model:
        if name not in matrices:
            if name.endswith((SCALE, STEPS, CODES)):
                raise UserError(f"{name}: a tensor with this name ending cannot be stored with delta weights")
            tensors[name] = model[name].clone()
    return _QuantizedDelta(tensors, sum(model[name].numel() for name in matrices), errors, output_errors)


def _shape(weights: SafetensorsReader, name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _quantize_matrix(
    name: str, trained: torch.Tensor, base: torch.Tensor, share: float, moments: torch.Tensor | None
) -> tuple[dict[str, torch.Tensor], _Error, list[_Error]]:
    weight, base_weight = trained.float(), base.float()
    if not bool(weight.isfinite().all()):
        raise UserError(f"{name}: has non-finite weights")
    # One scale per matrix, for the effect of weight decay; one per row would take as many bytes as it saves.
    scale = (base_weight.flatten() @ weight.flatten()) / base_weight.square().sum().clamp_min(1e-30)
    residual = weight - base_weight * scale
    min_steps = residual.abs().amax(1) / (MAX_CODE - 1)  # One less, because the step itself is rounded.
    steps = torch.maximum(weight.square().mean(1).sqrt() * share, min_steps).clamp_min(1e-30).bfloat16()
    if moments is None:
        codes = (residual / steps.float()[:, None]).round_().to(torch.int8)
    else:
        codes = gptq_codes(residual, steps.float(), moments, MAX_CODE)
    difference = apply_delta(base, scale, steps, codes).float() - weight
    error = float(difference.square().sum()), float(weight.square().sum())
    output_error = [] if moments is None else [(_output_energy(difference, moments), _output_energy(weight, moments))]
    return {name + SCALE: scale, name + STEPS: steps, name + CODES: compress_codes(codes)}, error, output_error


def _output_energy(weight: torch.Tensor, moments: torch.Tensor) -> float:
    """Return the mean square of a matrix's outputs for inputs with these moments, summed over its rows."""
    return float(((weight @ moments) * weight).sum())


def _copy_other_files(folder: Path, base_folder: Path, out: Path) -> None:
    skipped = tokenizer_files(folder) if _same_tokenizer(folder, base_folder) else []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file in skipped or file.suffix in _WEIGHTS or file.name.endswith(".index.json"):
            continue
        with atomic_write(out / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _same_tokenizer(folder: Path, base_folder: Path) -> bool:
    """Whether two folders hold the same tokenizer, whichever transformers version wrote them."""
    first, second = ({file.name: _content(file) for file in tokenizer_files(path)} for path in (folder, base_folder))
    return first == second


def _content(file: Path) -> Any:
    if file.name != "tokenizer_config.json":
        return file.read_bytes()
    config = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in ("transformers_version", "local_files_only")}


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m longctx_bench.training.pack", description=pack.__doc__)
    parser.add_argument("folder", type=Path, help="the trained model")
    parser.add_argument(
        "--base",
        required=True,
        help="what it was trained from: a registered name, or a folder (for this machine only)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--share", type=float, help="step size of a row, relative to its root mean square")
    parser.add_argument("--bytes", type=float, help="size of the delta weights, instead of --share, such as 88e6")
    parser.add_argument("--text", type=Path, help="calibration text: round weights by GPTQ instead of to nearest")
    parser.add_argument("--tokens", type=int, default=16_384, help="number of calibration tokens")
    options = parser.parse_args(arguments)
    try:
        if options.bytes is not None and not 0 < options.bytes < 1e15:
            raise UserError(f"--bytes {options.bytes}: must be a number of bytes, such as 88e6")
        size = None if options.bytes is None else int(options.bytes)
        packed = pack(options.folder, options.base, options.out, options.share, size, options.text, options.tokens)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"wrote {packed.file}: {packed.bytes / 1e6:.2f} MB at share {packed.share:.4g}; relative rms error "
        f"{packed.error:.5f}, of the worst matrix {packed.worst:.5f}"
        + (f"; of the outputs on the text {packed.effect:.5f}" if packed.effect is not None else "")
    )
    return 0
