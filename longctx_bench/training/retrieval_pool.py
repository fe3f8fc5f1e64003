"""Retrieval sequences made ahead of time on every core, as rows of token ids that cost a training step nothing."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longctx_bench.errors import UserError
from longctx_bench.provenance import usable_cores
from longctx_bench.training.packing import PackedText
from longctx_bench.training.retrieval import exercise
from longctx_bench.training.token_cache import cache_folder, tokenizer_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]

_BLOCK = 512
"""Rows that one task of a worker makes."""


def retrieval_pool(
    text: PackedText, tokenizer: Any, count: int, seed: int, cache: Path | None = None, most: int = 10
) -> Tokens:
    """Return ``[count, length + 1]`` token ids: an exercise, EOS, then ordinary text up to the row's end.

    An exercise has at most ``most`` needles. Three in five exercises fill the training context, the others take a
    quarter of it or more.

    Raises:
        UserError: the context is too short for any exercise.
    """
    folder = cache or cache_folder()
    sizes = [len(array) for array in text.arrays]
    ends = [array[-64:].tolist() for array in text.arrays]
    name = f"retrieval 3 {tokenizer_text(tokenizer)} {sizes} {ends} {text.length} {count} {seed} {most}"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"
    if not path.is_file():
        rows = np.empty((count, text.length + 1), dtype=text.arrays[0].dtype)
        for first, block in _blocks(text, tokenizer, count, seed, most):
            rows[first : first + len(block)] = block
        made = path.with_suffix(f".new{os.getpid()}")
        try:
            with made.open("wb") as stream:
                np.save(stream, rows)
            made.replace(path)
        except OSError as error:
            raise UserError(f"{folder}: cannot write retrieval sequences: {error.strerror}") from error
        finally:
            made.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _blocks(text: PackedText, tokenizer: Any, count: int, seed: int, most: int) -> Iterator[tuple[int, Tokens]]:
    starts = list(range(0, count, _BLOCK))
    cores = usable_cores()
    workers = min(cores, len(starts))
    on_disk = all(isinstance(array, np.memmap) for array in text.arrays)
    if workers == 1 or not on_disk or not getattr(tokenizer, "is_fast", False):
        here = _Worker(
            text,
            lambda piece: tokenizer.encode(piece, add_special_tokens=False),
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            tokenizer.eos_token_id,
            most,
        )
        for first in starts:
            yield first, _rows(here, first, min(_BLOCK, count - first), seed)
        return
    # A forked copy of a process with CUDA or tokenizer threads can hang, so workers start afresh.
    context = multiprocessing.get_context("spawn")
    paths = [str(array.filename) for array in text.arrays]  # type: ignore[attr-defined]
    serialised = tokenizer.backend_tokenizer.to_str()
    with ProcessPoolExecutor(
        workers, context, _start, (paths, text.length, serialised, tokenizer.eos_token_id, most)
    ) as pool:
        tasks = [(first, pool.submit(_run, first, min(_BLOCK, count - first), seed)) for first in starts]
        for first, task in tasks:
            yield first, task.result()


@dataclass(frozen=True)
class _Worker:
    text: PackedText
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    end: int
    most: int


_worker: _Worker | None = None


def _start(paths: list[str], length: int, tokenizer: str, end: int, most: int) -> None:
    # Arrays are opened again here (pickled, a memory map would travel as all of its tokens), and the bare
    # tokenizer needs no import of transformers, which would take longer than the work.
    from tokenizers import Tokenizer

    global _worker  # noqa: PLW0603 - a process pool hands its workers state through a global only
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    bare = Tokenizer.from_str(tokenizer)
    _worker = _Worker(
        PackedText(arrays, length),
        lambda piece: bare.encode(piece, add_special_tokens=False).ids,
        bare.decode,
        end,
        most,
    )


def _run(first: int, count: int, seed: int) -> Tokens:
    assert _worker is not None
    return _rows(_worker, first, count, seed)


def _rows(worker: _Worker, first: int, count: int, seed: int) -> Tokens:
    length = worker.text.length
    rows = np.empty((count, length + 1), dtype=worker.text.arrays[0].dtype)
    for offset in range(count):
        rows[offset] = _row(worker, first + offset, seed, length)
    return rows


def _row(worker: _Worker, index: int, seed: int, length: int) -> Tokens:
    for attempt in range(100):
        rng = np.random.default_rng([seed, index, attempt])
        start = int(rng.integers(0, max(1, len(worker.text) - 1)))
        target = length if rng.random() < 0.6 else int(rng.integers(length // 4, length + 1))
        haystack = worker.decode(worker.text.row(start).tolist())
        made = exercise(seed, index * 100 + attempt, haystack, worker.encode, target, most=worker.most)
        if made is not None:
            ids = [*worker.encode(made.text), worker.end]
            rest = worker.text.row((start + 1) % len(worker.text))
            return np.concatenate([np.asarray(ids, dtype=rest.dtype), rest])[: length + 1]
    raise UserError(f"sequence_length {length} is too short for retrieval sequences; set retrieval_share to 0")
