"""A pool of synthetic retrieval sequences, generated on all cores before training and cached as token ids."""

from __future__ import annotations

import hashlib
import json
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
from longctx_bench.core.temp_dirs import ScratchFolder
from longctx_bench.training.data.sequence_packing import PackedText, RetrievalPool
from longctx_bench.training.data.synthetic_retrieval import Encode, Encoded, exercise
from longctx_bench.training.data.token_cache import cache_folder, tokenizer_text
from longctx_bench.training.recipe import ExerciseMix

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Tokens = NDArray[np.unsignedinteger[Any]]

_ROWS_PER_TASK = 512
_MAX_ATTEMPTS = 100
"""Haystacks tried per exercise before the context counts as too short."""


def retrieval_pool(
    text: PackedText,
    tokenizer: Any,
    count: int,
    seed: int,
    cache: Path | None = None,
    max_needles: int = 10,
    mix: ExerciseMix = "one-question",
) -> RetrievalPool:
    """Return ``count`` retrieval sequences, generated on all cores or read from the cache.

    Three in five exercises fill the training context, the others a random share of it, at least a quarter.

    Args:
        text: packed training text; the haystacks are taken from it.
        tokenizer: a fast tokenizer of transformers.
        count: sequences (rows).
        seed: of all random choices; the rows do not depend on the number of cores.
        cache: folder of the cached rows; :func:`~longctx_bench.training.data.token_cache.cache_folder` by default.
        max_needles: needles per exercise at most.
        mix: as in :func:`longctx_bench.training.data.synthetic_retrieval.exercise`.

    Raises:
        UserError: the context is too short for any exercise, or the tokenizer has no character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: retrieval_share needs a fast tokenizer (of the tokenizers library)"
        )
    folder = cache or cache_folder()
    sizes = [len(array) for array in text.arrays]
    ends = [array[-64:].tolist() for array in text.arrays]
    name = f"retrieval 5 {tokenizer_text(tokenizer)} {sizes} {ends} {text.length} {count} {seed} {max_needles} {mix}"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.exercises"

    def generate(target: Path) -> None:
        pool = RetrievalPool(
            np.empty((count, text.length + 1), dtype=text.arrays[0].dtype),
            np.empty((count, text.length + 1), dtype=np.bool_),
        )
        for first, block in _generate_blocks(text, tokenizer, count, seed, max_needles, mix):
            pool.rows[first : first + len(block.rows)] = block.rows
            pool.haystack[first : first + len(block.rows)] = block.haystack
        target.mkdir()
        for field, array in pool._asdict().items():
            np.save(target / f"{field}.npy", array)

    try:
        made_once(path, generate)
    except OSError as error:
        raise UserError(f"{folder}: cannot write retrieval sequences: {error.strerror or error}") from error
    return RetrievalPool(
        *(np.load(path / f"{field}.npy", mmap_mode="r", allow_pickle=False) for field in RetrievalPool._fields)
    )


def _encode_function(tokenizer: Tokenizer) -> Encode:
    def encode(text: str) -> Encoded:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    return encode


def _generate_blocks(
    text: PackedText, tokenizer: Any, count: int, seed: int, max_needles: int, mix: ExerciseMix
) -> Iterator[tuple[int, RetrievalPool]]:
    """Yield blocks of rows, each with the index of its first row, in order."""
    starts = list(range(0, count, _ROWS_PER_TASK))
    workers = min(usable_cores(), len(starts))
    on_disk = all(isinstance(array, np.memmap) for array in text.arrays)
    backend = tokenizer.backend_tokenizer
    if workers == 1 or not on_disk:
        generator = _Generator(
            text, _encode_function(backend), backend.decode, tokenizer.eos_token_id, max_needles, mix
        )
        for first in starts:
            yield first, generator.rows(first, min(_ROWS_PER_TASK, count - first), seed)
        return
    # A forked copy of a process with CUDA or tokenizer threads can hang, so workers start afresh.
    context = multiprocessing.get_context("spawn")
    with ScratchFolder("longctx-bench-retrieval-") as folder:
        # By file: initargs are written into a pipe that a child reads only after its imports. More than the pipe
        # holds (64 kB) would make this process wait for each worker before it starts the next.
        (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        settings = {
            "arrays": [str(array.filename) for array in text.arrays],  # type: ignore[attr-defined]
            "length": text.length,
            "eos": tokenizer.eos_token_id,
            "max_needles": max_needles,
            "mix": mix,
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        with ProcessPoolExecutor(workers, context, _start_worker, (str(folder),)) as pool:
            tasks = [
                (first, pool.submit(_generate_rows, first, min(_ROWS_PER_TASK, count - first), seed))
                for first in starts
            ]
            for first, task in tasks:
                yield first, task.result()


@dataclass(frozen=True)
class _Generator:
    """Generates rows; the same on every machine, whichever process runs it."""

    text: PackedText
    encode: Encode
    decode: Callable[[list[int]], str]
    eos: int
    max_needles: int
    mix: ExerciseMix

    def rows(self, first: int, count: int, seed: int) -> RetrievalPool:
        """Return rows ``first`` to ``first + count`` of the pool."""
        length = self.text.length
        rows = np.empty((count, length + 1), dtype=self.text.arrays[0].dtype)
        haystack = np.zeros((count, length + 1), dtype=np.bool_)
        for offset in range(count):
            ids, flags, filler = self._exercise(first + offset, seed)
            rows[offset] = np.concatenate([np.asarray(ids, dtype=filler.dtype), filler])[: length + 1]
            haystack[offset, : len(flags)] = flags
        return RetrievalPool(rows, haystack)

    def _exercise(self, index: int, seed: int) -> tuple[list[int], list[bool], Tokens]:
        """Return an exercise's tokens with EOS, which of them are haystack, and the text that fills up the row."""
        length = self.text.length
        for attempt in range(_MAX_ATTEMPTS):
            rng = np.random.default_rng([seed, index, attempt])
            row = int(rng.integers(0, max(1, len(self.text) - 1)))
            max_tokens = length if rng.random() < 0.6 else int(rng.integers(length // 4, length + 1))
            example = exercise(
                seed,
                index * _MAX_ATTEMPTS + attempt,
                self.decode(self.text.row(row).tolist()),
                self.encode,
                max_tokens,
                max_needles=self.max_needles,
                mix=self.mix,
            )
            if example is not None:
                encoded = self.encode(example.text)
                filler = self.text.row((row + 1) % len(self.text))
                return [*encoded.ids, self.eos], example.is_haystack(encoded.spans), filler
        raise UserError(f"sequence_length {length} is too short for retrieval sequences; set retrieval_share to 0")


_generator: _Generator | None = None
"""Of this worker process."""


def _start_worker(folder: str) -> None:
    # The bare tokenizer, because importing transformers takes longer than the work; arrays are mapped again, because
    # a pickled memory map carries all of its tokens.
    from tokenizers import Tokenizer

    global _generator  # noqa: PLW0603 - a process pool hands its workers state through a global only
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in settings["arrays"]]
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    _generator = _Generator(
        PackedText(arrays, settings["length"]),
        _encode_function(tokenizer),
        tokenizer.decode,
        settings["eos"],
        settings["max_needles"],
        settings["mix"],
    )


def _generate_rows(first: int, count: int, seed: int) -> RetrievalPool:
    assert _generator is not None
    return _generator.rows(first, count, seed)
