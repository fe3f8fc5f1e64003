"""Cache of tokenised text: one memory-mapped array per file or hub dataset, named by a hash of text and tokenizer."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import cache_dir, made_once
from longctx_bench.core.text_files import read_documents
from longctx_bench.training.data.corpus import corpus_files, hub_documents
from longctx_bench.training.recipe import TextSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]

_BATCH_CHARACTERS = 8_000_000
"""Text handed to the tokenizer at a time: enough to keep every core busy."""
_MAX_FILES_AT_ONCE = 4
"""Files tokenised at a time: one is read and written while the tokenizer's threads work on the others. Each takes a few
hundred MB of memory for a batch's tokens."""


def cache_folder() -> Path:
    """Return the folder of token arrays, in ``$LONGCTX_BENCH_CACHE`` or the user's cache folder."""
    return cache_dir() / "tokens"


def tokenizer_text(tokenizer: Any) -> str:
    """Return what decides a tokenizer's output, as text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))


def token_arrays(
    sources: Sequence[TextSource], root: Path, tokenizer: Any, limit: int, cache: Path | None = None
) -> list[Tokens]:
    """Return one memory-mapped 1-D array of token ids per file or hub dataset, EOS after every document.

    Args:
        sources: where the documents come from.
        root: folder that paths are relative to.
        tokenizer: a transformers tokenizer with an EOS token.
        limit: tokens after which reading a hub dataset stops.
        cache: folder of the arrays; :func:`cache_folder` unless given.

    Raises:
        UserError: bad text, a tokenizer without EOS, or no space on the disk.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no EOS token to separate documents with")
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    base = hashlib.sha256(tokenizer_text(tokenizer).encode()).hexdigest()
    jobs: list[Callable[[], Tokens]] = []
    for source in sources:
        if source.hub is not None:
            name = f"{base} {source.model_dump_json()} {limit}"
            jobs.append(partial(_cached, folder, name, hub_documents(source), tokenizer, limit))
        else:
            jobs += [
                partial(_file_tokens, folder, base, file, source.text_field, tokenizer)
                for file in corpus_files(source, root)
            ]
    # A slow tokenizer of transformers is not safe to share between threads, nor would they make it faster.
    threads = min(_MAX_FILES_AT_ONCE, len(jobs)) if getattr(tokenizer, "is_fast", False) else 1
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: job(), jobs))


def _file_tokens(folder: Path, base: str, file: Path, text_field: str, tokenizer: Any) -> Tokens:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = f"{base} {digest} {text_field}"
    return _cached(folder, name, read_documents(file, text_field), tokenizer, None)


def _cached(folder: Path, name: str, documents: Iterable[str], tokenizer: Any, limit: int | None) -> Tokens:
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"
    try:
        made_once(path, lambda made: _write(made, documents, tokenizer, limit))
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{folder}: cannot write tokens: {error.strerror or error} ({free / 1e9:.1f} GB free); "
            f"make room or set LONGCTX_BENCH_CACHE to another folder"
        ) from error
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _write(path: Path, documents: Iterable[str], tokenizer: Any, limit: int | None) -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    raw = path.with_suffix(".raw")
    total = 0
    with raw.open("wb") as stream:
        for batch in _batches(documents):
            ids = _token_ids(tokenizer, batch, dtype)
            ids.tofile(stream)
            total += len(ids)
            if limit is not None and total >= limit:
                break
    if total == 0:
        raise UserError(f"{path}: the data holds no text")
    with path.open("wb") as stream:
        np.save(stream, np.memmap(raw, dtype=dtype, mode="r", shape=(total,)))


def _token_ids(tokenizer: Any, batch: list[str], dtype: type[np.unsignedinteger[Any]]) -> Tokens:
    """Return the token ids of a batch of documents, EOS after each: ``[tokens]``."""
    eos = tokenizer.eos_token_id
    if getattr(tokenizer, "is_fast", False):
        # Leaves out the character offsets, which take longer than the tokens.
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        documents: Iterable[list[int]] = (encoding.ids for encoding in encodings)
    else:
        documents = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray([*ids, eos], dtype=dtype) for ids in documents])


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
