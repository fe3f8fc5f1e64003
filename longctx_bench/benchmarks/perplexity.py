"""Perplexity of long documents, in windows that never span two documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from longctx_bench.benchmarks.base import Benchmark, ContextTooShort, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import Source
from longctx_bench.core.text_files import TEXT_SUFFIXES, read_documents, text_suffix
from longctx_bench.core.types import Example

_CHARACTERS = 12
"""Upper bound on average characters per token: no more of a document is tokenised than this requires."""


class Perplexity(Benchmark):
    """Windows of exactly ``length`` tokens, scored by the loss of their last ``last`` tokens.

    Windows do not overlap; the first window of every document comes before the second of any. With ``stride`` they
    slide through one document after another (Press et al. 2021, arXiv 2108.12409, appendix B): a document's first
    window is scored whole, each later one at its end, so that with ``stride`` = ``last`` every token is predicted once.
    """

    id: ClassVar[str] = "perplexity"
    kind: ClassVar[Literal["generate", "loss", "lm_eval"]] = "loss"

    data: Source
    """A text file, or a folder of them."""
    text_field: str = "text"
    """Column of .jsonl and .parquet files with the document."""
    last: int | None = Field(default=None, ge=1)
    """Number of scored tokens at the end of a window; default: all but the first."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens between the starts of consecutive windows of a document; default: the window length."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield the first window of each sufficiently long document, then the second ones, and so on."""
        prefix = _special_prefix(encoder)
        if self.last is not None and self.last >= length:
            raise ContextTooShort(
                f"perplexity at {length}: the last {self.last} tokens are scored; choose a larger length"
            )
        windows = self._sliding if self.stride else self._non_overlapping
        index = 0
        for window, scored in windows(encoder, length - len(prefix), n):
            tokens = (*prefix, *window)
            yield Example(
                id=example_id(index),
                prompt=encoder.tokenizer.decode(window),
                answer_prefix="",
                references=(),
                depths=(),
                n_tokens=len(tokens),
                max_new_tokens=0,
                ids=tokens,
                scored=min(scored, length - 1),
            )
            index += 1
        if index == 0:
            raise ContextTooShort(f"perplexity at {length}: no document has that many tokens")

    def _non_overlapping(self, encoder: PromptEncoder, size: int, n: int) -> Iterator[tuple[list[int], int]]:
        scored = self.last or size
        num_first_windows = 0
        for text in self._documents():
            ids = _tokens(encoder, text, size)
            if len(ids) >= size and num_first_windows < n:
                num_first_windows += 1
                yield ids[:size], scored
            if num_first_windows == n:
                return
        # Fewer long documents than requested windows: only now are they tokenised further.
        long_documents = [
            ids for text in self._documents() if len(ids := _tokens(encoder, text, size * (n + 1))) >= 2 * size
        ]
        remaining = n - num_first_windows
        for turn in range(1, n):
            for ids in long_documents:
                window = ids[turn * size : (turn + 1) * size]
                if len(window) == size and remaining:
                    remaining -= 1
                    yield window, scored

    def _sliding(self, encoder: PromptEncoder, size: int, n: int) -> Iterator[tuple[list[int], int]]:
        assert self.stride is not None
        remaining = n
        for text in self._documents():
            if not remaining:
                return
            ids = _tokens(encoder, text, size + self.stride * remaining)
            for start in range(0, len(ids) - size + 1, self.stride):
                if remaining:
                    remaining -= 1
                    yield ids[start : start + size], size if start == 0 else (self.last or self.stride)

    def _documents(self) -> Iterator[str]:
        path = fetch(self.data)
        files = [path] if path.is_file() else _text_files(path)
        for file in files:
            yield from read_documents(file, self.text_field)


def _text_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and text_suffix(file) in TEXT_SUFFIXES[2:])
    files = files or sorted(f for f in folder.rglob("*") if f.is_file() and text_suffix(f) in TEXT_SUFFIXES[:2])
    if not files:
        raise UserError(f"{folder}: no text files there; supported are {' '.join(TEXT_SUFFIXES)} and .xz, .zst of them")
    return files


def _tokens(encoder: PromptEncoder, text: str, n: int) -> list[int]:
    """Return a text's first ``n`` token ids, or all, tokenising no more of the text than needed."""
    start = text[: (n + 1) * _CHARACTERS]
    ids = _ids(encoder, start)
    if len(ids) <= n and len(start) < len(text):
        ids = _ids(encoder, text)
    return ids[:n]


def _ids(encoder: PromptEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _special_prefix(encoder: PromptEncoder) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer puts before a text, such as BOS."""
    plain, with_special = _ids(encoder, "a"), PromptEncoder(encoder.tokenizer).encode("a")
    return tuple(with_special[: len(with_special) - len(plain)])
