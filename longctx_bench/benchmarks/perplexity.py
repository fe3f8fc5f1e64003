"""How well long text is predicted: windows of one document each, never across the boundary of two."""

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
"""A token is at most about so many characters on average: no more of a document need be tokenised."""


class Perplexity(Benchmark):
    """Windows of exactly ``length`` tokens; the loss of their last ``last`` tokens is the result.

    Windows lie side by side, the first of every document before the second of any. With ``stride`` = ``last`` they
    slide through one document after the other (Press et al. 2021, arXiv 2108.12409, appendix B): a document's first
    window is scored whole, each later one at its end, so that every token is predicted once.
    """

    id: ClassVar[str] = "perplexity"
    kind: ClassVar[Literal["generate", "loss", "lm_eval"]] = "loss"

    data: Source
    """A text file, or a folder of them."""
    text_field: str = "text"
    """Column of .jsonl and .parquet files that holds the document."""
    last: int | None = Field(default=None, ge=1)
    """Tokens at a window's end that are scored; all but the first token without it."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens from one window's start to the next's in one document; a window's length without it."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield the first window of each document that is long enough, then the second ones, and so on."""
        begin = _special_start(encoder)
        if self.last is not None and self.last >= length:
            raise ContextTooShort(
                f"perplexity at {length}: the last {self.last} tokens are to be scored; take a larger one"
            )
        found = self._sliding if self.stride else self._side_by_side
        index = 0
        for window, scored in found(encoder, length - len(begin), n):
            tokens = (*begin, *window)
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
            raise ContextTooShort(f"perplexity at {length}: no document has so many tokens")

    def _side_by_side(self, encoder: PromptEncoder, size: int, n: int) -> Iterator[tuple[list[int], int]]:
        scored = self.last or size
        firsts = 0
        for text in self._documents():
            ids = _tokens(encoder, text, size)
            if len(ids) >= size and firsts < n:
                firsts += 1
                yield ids[:size], scored
            if firsts == n:
                return
        # There are fewer long documents than windows wanted: only now are they read whole.
        whole = [ids for text in self._documents() if len(ids := _tokens(encoder, text, size * (n + 1))) >= 2 * size]
        left = n - firsts
        for turn in range(1, n):
            for ids in whole:
                window = ids[turn * size : (turn + 1) * size]
                if len(window) == size and left:
                    left -= 1
                    yield window, scored

    def _sliding(self, encoder: PromptEncoder, size: int, n: int) -> Iterator[tuple[list[int], int]]:
        assert self.stride is not None
        left = n
        for text in self._documents():
            if not left:
                return
            ids = _tokens(encoder, text, size + self.stride * left)
            for start in range(0, len(ids) - size + 1, self.stride):
                if left:
                    left -= 1
                    yield ids[start : start + size], size if start == 0 else (self.last or self.stride)

    def _documents(self) -> Iterator[str]:
        place = fetch(self.data)
        files = [place] if place.is_file() else _text_files(place)
        for file in files:
            yield from read_documents(file, self.text_field)


def _text_files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.is_file() and text_suffix(file) in TEXT_SUFFIXES[2:])
    found = found or sorted(f for f in folder.rglob("*") if f.is_file() and text_suffix(f) in TEXT_SUFFIXES[:2])
    if not found:
        raise UserError(f"{folder}: no text there; known are {' '.join(TEXT_SUFFIXES)} and .xz, .zst of them")
    return found


def _tokens(encoder: PromptEncoder, text: str, wanted: int) -> list[int]:
    """Return a text's first ``wanted`` token ids, or all, tokenising no more of it than needed."""
    piece = text[: (wanted + 1) * _CHARACTERS]
    ids = _ids(encoder, piece)
    if len(ids) <= wanted and len(piece) < len(text):
        ids = _ids(encoder, text)
    return ids[:wanted]


def _ids(encoder: PromptEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _special_start(encoder: PromptEncoder) -> tuple[int, ...]:
    """Return what the tokenizer puts before a text: BOS where it has one."""
    plain, whole = _ids(encoder, "a"), PromptEncoder(encoder.tokenizer).encode("a")
    return tuple(whole[: len(whole) - len(plain)])
