"""How well long text is predicted: windows of one document each, never across the boundary of two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from longctx_bench.benchmarks.base import Benchmark, DoesNotFit, example_id
from longctx_bench.benchmarks.encoder import PromptEncoder
from longctx_bench.data import fetch
from longctx_bench.documents import TEXT_SUFFIXES, documents_of_file, text_suffix
from longctx_bench.errors import UserError
from longctx_bench.records import Example
from longctx_bench.specs import Source

_CHARACTERS = 12
"""A token is at most about so many characters on average: no more of a document need be tokenised."""


class Perplexity(Benchmark):
    """Windows of exactly ``length`` tokens; the loss of their last ``last`` tokens is the result.

    With ``stride`` = ``last`` this is the sliding window by which every token is predicted once from at least
    ``length - stride`` tokens (Press et al. 2021, arXiv 2108.12409, appendix B); with neither, windows side by side.
    """

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
            raise DoesNotFit(
                f"perplexity at {length}: the last {self.last} tokens are to be scored; take a longer length"
            )
        inside = length - len(begin)
        stride = self.stride or inside
        wanted = inside + stride * (n - 1)
        documents = []
        for text in self._documents():
            ids = _tokens(encoder, text[: wanted * _CHARACTERS])[:wanted]
            if len(ids) >= inside:
                documents.append(ids)
            if len(documents) >= n:
                break
        if not documents:
            raise DoesNotFit(f"perplexity at {length}: no document has so many tokens")
        index = 0
        for turn in range(n):
            for ids in documents:
                window = ids[turn * stride : turn * stride + inside]
                if len(window) < inside or index >= n:
                    continue
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
                    scored=min(self.last or length, length - 1),
                )
                index += 1

    def _documents(self) -> Iterator[str]:
        place = fetch(self.data)
        files = [place] if place.is_file() else _text_files(place)
        for file in files:
            yield from documents_of_file(file, self.text_field)


def _text_files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.is_file() and text_suffix(file) in TEXT_SUFFIXES[2:])
    found = found or sorted(file for file in folder.rglob("*.txt*") if file.is_file())
    if not found:
        raise UserError(f"{folder}: no text there; known are {' '.join(TEXT_SUFFIXES)} and .xz, .zst of them")
    return found


def _tokens(encoder: PromptEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _special_start(encoder: PromptEncoder) -> tuple[int, ...]:
    """Return what the tokenizer puts before a text: BOS where it has one."""
    plain, whole = _tokens(encoder, "a"), encoder.encode("a")
    return tuple(whole[: len(whole) - len(plain)])
