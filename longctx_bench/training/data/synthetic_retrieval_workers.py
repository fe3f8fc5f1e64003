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

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import made_once
from longctx_bench.core.provenance import usable_cores
from longctx_bench.training.data.sequence_packing import PackedText, RetrievalPool
from longctx_bench.training.data.synthetic_retrieval import Encode, Encoded, exercise
from longctx_bench.training.data.token_cache import cache_folder, tokenizer_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Tokens = NDArray[np.unsignedinteger[Any]]

_BLOCK = 512
"""Rows that one task of a worker makes."""


def retrieval_pool(
    text: PackedText,
    tokenizer: Any,
    count: int,
    seed: int,
    cache: Path | None = None,
    most: int = 10,
    mixed: bool = False,
) -> RetrievalPool:
    """Return ``count`` retrieval sequences, made on every core or found in the cache.

    An exercise has at most ``most`` needles; ``mixed`` is that of
    :func:`longctx_bench.training.data.synthetic_retrieval.exercise`. Three in
    five exercises fill the training context, the others take a quarter of it or more.

    Raises:
        UserError: the context is too short for any exercise, or the tokenizer does not say which characters a token
            stands for.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {tokenizer.name_or_path}: retrieval_share needs one of the tokenizers library")
    folder = cache or cache_folder()
    sizes = [len(array) for array in text.arrays]
    ends = [array[-64:].tolist() for array in text.arrays]
    name = f"retrieval 4 {tokenizer_text(tokenizer)} {sizes} {ends} {text.length} {count} {seed} {most} {mixed}"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.exercises"

    def make(made: Path) -> None:
        pool = RetrievalPool(
            np.empty((count, text.length + 1), dtype=text.arrays[0].dtype),
            np.empty((count, text.length + 1), dtype=np.bool_),
        )
        for first, block in _blocks(text, tokenizer, count, seed, most, mixed):
            pool.rows[first : first + len(block.rows)] = block.rows
            pool.haystack[first : first + len(block.rows)] = block.haystack
        made.mkdir()
        for field, array in pool._asdict().items():
            np.save(made / f"{field}.npy", array)

    try:
        made_once(path, make)
    except OSError as error:
        raise UserError(f"{folder}: cannot write retrieval sequences: {error.strerror or error}") from error
    return RetrievalPool(
        *(np.load(path / f"{field}.npy", mmap_mode="r", allow_pickle=False) for field in RetrievalPool._fields)
    )


def _encode(tokenizer: Tokenizer) -> Encode:
    def encode(piece: str) -> Encoded:
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    return encode


def _blocks(
    text: PackedText, tokenizer: Any, count: int, seed: int, most: int, mixed: bool
) -> Iterator[tuple[int, RetrievalPool]]:
    starts = list(range(0, count, _BLOCK))
    cores = usable_cores()
    workers = min(cores, len(starts))
    on_disk = all(isinstance(array, np.memmap) for array in text.arrays)
    backend = tokenizer.backend_tokenizer
    if workers == 1 or not on_disk:
        here = _Worker(text, _encode(backend), backend.decode, tokenizer.eos_token_id, most, mixed)
        for first in starts:
            yield first, _rows(here, first, min(_BLOCK, count - first), seed)
        return
    # A forked copy of a process with CUDA or tokenizer threads can hang, so workers start afresh.
    context = multiprocessing.get_context("spawn")
    paths = [str(array.filename) for array in text.arrays]  # type: ignore[attr-defined]
    settings = (paths, text.length, backend.to_str(), tokenizer.eos_token_id, most, mixed)
    with ProcessPoolExecutor(workers, context, _start, settings) as pool:
        tasks = [(first, pool.submit(_run, first, min(_BLOCK, count - first), seed)) for first in starts]
        for first, task in tasks:
            yield first, task.result()


@dataclass(frozen=True)
class _Worker:
    text: PackedText
    encode: Encode
    decode: Callable[[list[int]], str]
    end: int
    most: int
    mixed: bool


_worker: _Worker | None = None


def _start(paths: list[str], length: int, tokenizer: str, end: int, most: int, mixed: bool) -> None:
    # Arrays are opened again here (pickled, a memory map would travel as all of its tokens), and the bare
    # tokenizer needs no import of transformers, which would take longer than the work.
    from tokenizers import Tokenizer

    global _worker  # noqa: PLW0603 - a process pool hands its workers state through a global only
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    bare = Tokenizer.from_str(tokenizer)
    _worker = _Worker(PackedText(arrays, length), _encode(bare), bare.decode, end, most, mixed)


def _run(first: int, count: int, seed: int) -> RetrievalPool:
    assert _worker is not None
    return _rows(_worker, first, count, seed)


def _rows(worker: _Worker, first: int, count: int, seed: int) -> RetrievalPool:
    length = worker.text.length
    rows = np.empty((count, length + 1), dtype=worker.text.arrays[0].dtype)
    haystack = np.zeros((count, length + 1), dtype=np.bool_)
    for offset in range(count):
        ids, flags, rest = _exercise(worker, first + offset, seed, length)
        rows[offset] = np.concatenate([np.asarray(ids, dtype=rest.dtype), rest])[: length + 1]
        haystack[offset, : len(flags)] = flags
    return RetrievalPool(rows, haystack)


def _exercise(worker: _Worker, index: int, seed: int, length: int) -> tuple[list[int], list[bool], Tokens]:
    """Return an exercise's tokens with EOS, which of them are haystack, and the text that fills the row."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, index, attempt])
        start = int(rng.integers(0, max(1, len(worker.text) - 1)))
        target = length if rng.random() < 0.6 else int(rng.integers(length // 4, length + 1))
        text = worker.decode(worker.text.row(start).tolist())
        made = exercise(seed, index * 100 + attempt, text, worker.encode, target, most=worker.most, mixed=worker.mixed)
        if made is not None:
            encoded = worker.encode(made.text)
            rest = worker.text.row((start + 1) % len(worker.text))
            return [*encoded.ids, worker.end], made.is_haystack(encoded.spans), rest
    raise UserError(f"sequence_length {length} is too short for retrieval sequences; set retrieval_share to 0")
