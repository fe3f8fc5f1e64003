"""LongBench (Bai et al. 2023, arXiv 2308.14508): published rows in published prompts, cut in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from longctx_bench.benchmarks.base import Benchmark, ContextTooShort, example_id
from longctx_bench.benchmarks.longbench.reader import read_rows
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch, is_local
from longctx_bench.core.specs import Source
from longctx_bench.core.types import NATURAL, Example

_LEAST = 32
"""Prompt tokens below which nothing of a document would be left."""


class LongBench(Benchmark):
    """One of LongBench's files, its rows in their published order (THUDM/LongBench LongBench/pred.py)."""

    id: ClassVar[str] = "longbench"
    natural: ClassVar[bool] = True

    data: Source
    """Folder, zip or file that holds the rows."""
    rows: str
    """The file's name without its ending."""
    template: str
    """The prompt, with ``{context}`` and ``{input}``."""

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield the first n rows, or all there are; nothing is random here."""
        for index, row in enumerate(read_rows(_fetched(self.data), self.rows, n)):
            # As str.format would: a brace within the text is text.
            whole = self.template.format(context=row.context, input=row.question)
            prompt, n_tokens = whole, -1
            if length != NATURAL:
                prompt, n_tokens = truncate_to_length(encoder, whole, length - max_new_tokens)
            yield Example(
                id=example_id(index),
                prompt=prompt,
                answer_prefix="",
                references=row.answers,
                depths=(),
                n_tokens=n_tokens if n_tokens >= 0 else encoder.count(prompt),
                max_new_tokens=max_new_tokens,
                classes=row.classes,
                words=row.length,
            )


def _fetched(data: Source) -> Path:
    """Return where the rows lie.

    Raises:
        UserError: they cannot be fetched; it says how to name a copy.
    """
    try:
        return fetch(data)
    except UserError as error:
        if is_local(data):
            raise
        raise UserError(f"{error}; LongBench's files on this machine: --data longbench=FOLDER") from error


def truncate_middle(encoder: PromptEncoder, prompt: str, budget: int) -> str:
    """Cut a prompt of more than ``budget`` tokens in the middle as LongBench does.

    The whole prompt is tokenised, special tokens included; its first and last ``budget // 2`` tokens are decoded
    without special tokens and joined.
    """
    ids = encoder.tokenizer(prompt, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    if len(ids) <= budget:
        return prompt
    half = budget // 2
    ends = (ids[:half], ids[-half:])
    return "".join(encoder.tokenizer.decode(end, skip_special_tokens=True) for end in ends)


def truncate_to_length(encoder: PromptEncoder, prompt: str, budget: int) -> tuple[str, int]:
    """Return a prompt that takes at most ``budget`` tokens when it is encoded, and its tokens.

    LongBench's cut text can take a few tokens more when it is tokenised again, and a chat template adds some: where
    it does, the cut is made again for as many tokens less.

    Raises:
        ContextTooShort: next to nothing of the prompt would be left.
    """
    limit = budget
    while limit >= _LEAST:
        text = truncate_middle(encoder, prompt, limit)
        tokens = encoder.count(text)
        if tokens <= budget:
            return text, tokens
        limit -= tokens - budget
    raise ContextTooShort(f"LongBench: {max(budget, 0)} tokens are free for the prompt, at least {_LEAST} are needed")
