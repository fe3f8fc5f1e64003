"""Prompt encoder: prompt text to the token ids that engines get, and token counts that agree with them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from longctx_bench.benchmarks.bpe_cache import CachedBPE, flatten
from longctx_bench.benchmarks.chat_templates import ChatTemplate
from longctx_bench.core.errors import UserError

_END = 64
"""Characters at the end of a prompt that are tokenised together with a completion."""


class PromptEncoder:
    """A tokenizer as benchmarks use it: encodes prompt and answer prefix to token ids (with BOS)."""

    def __init__(self, tokenizer: Any, chat_template: bool = False) -> None:
        """Wrap a transformers tokenizer.

        Args:
            tokenizer: any transformers tokenizer.
            chat_template: wrap the prompt in the tokenizer's chat template as a user message; the answer prefix then
                starts the assistant's turn.

        Raises:
            UserError: a chat template is asked for and the tokenizer has none.
        """
        if chat_template and not tokenizer.chat_template:
            raise UserError(f"--chat-template: the tokenizer of {tokenizer.name_or_path} has no chat template")
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._template = ChatTemplate(tokenizer) if chat_template else None
        self._bpe = CachedBPE.from_tokenizer(tokenizer)
        self._special_prefix = self._find_special_prefix() if self._bpe else None
        # A prompt that was just counted is usually encoded next; thread-local because threads share an encoder.
        self._latest = threading.local()

    def text(self, prompt: str, answer_prefix: str) -> str:
        """Return the full text that is tokenised.

        Raises:
            UserError: the chat template cannot be rendered.
        """
        if self._template is None:
            return prompt + answer_prefix
        return self._template.render([{"role": "user", "content": prompt}]) + answer_prefix

    def encode(self, prompt: str, answer_prefix: str = "") -> list[int]:
        """Return the token ids: with BOS if the tokenizer adds one, never with a final EOS."""
        return flatten(self._cached_chunks(self.text(prompt, answer_prefix)))

    def _cached_chunks(self, text: str) -> Sequence[Sequence[int]]:
        """Return the ids of a full text in chunks, cached for the latest text."""
        if text != getattr(self._latest, "text", None):
            self._latest.text, self._latest.chunks = text, self._encode_chunks(text)
        chunks: Sequence[Sequence[int]] = self._latest.chunks
        return chunks

    def _encode_chunks(self, text: str) -> Sequence[Sequence[int]]:
        if self._special_prefix is None or not self._bpe:
            return [self._encode_whole(text)]
        chunks = [self._special_prefix, *self._bpe.ids(text)]
        # Rare: the text itself ends with the text of an end token.
        return [self._encode_whole(text)] if chunks[-1] and chunks[-1][-1] in self._end_ids else chunks

    @cached_property
    def _end_ids(self) -> tuple[int | None, int | None]:
        return self.tokenizer.eos_token_id, self.tokenizer.sep_token_id

    def _find_special_prefix(self) -> tuple[int, ...] | None:
        """Return the special tokens before every text; None if the tokenizer adds any elsewhere."""
        whole, plain = (
            tuple(self.tokenizer("a", add_special_tokens=special, return_attention_mask=False)["input_ids"])
            for special in (not self.chat_template, False)
        )
        prefix = whole[: len(whole) - len(plain)]
        return prefix if prefix + plain == whole else None

    def _encode_whole(self, text: str) -> list[int]:
        # A chat template writes its own special tokens: adding them again would double BOS.
        ids: list[int] = self.tokenizer(
            text,
            add_special_tokens=not self.chat_template,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        if not self.chat_template and len(ids) > 1 and ids[-1] in self._end_ids:
            ids = ids[:-1]
        return ids

    def continuation(self, prompt: str, answer_prefix: str, answer: str) -> list[int]:
        """Return the token ids of an answer as the continuation of a prompt, for use as draft tokens.

        Best effort: a model may tokenise it differently. The prompt's end is tokenised along with the answer, because
        some tokenizers prepend a space to every text.
        """
        # No space before an answer after a chat template, a space or a newline.
        starts_turn = self.chat_template and not answer_prefix
        end = answer_prefix if starts_turn or answer_prefix else prompt[-_END:]
        gap = "" if starts_turn or end[-1:].isspace() else " "
        end_ids, continued_ids = (
            self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            for text in (end, end + gap + answer)
        )
        diverges = next(
            (index for index, (a, b) in enumerate(zip(end_ids, continued_ids, strict=False)) if a != b), None
        )
        return list(continued_ids[min(len(end_ids), len(continued_ids)) if diverges is None else diverges :])

    def count(self, prompt: str, answer_prefix: str = "") -> int:
        """Return the number of tokens that :meth:`encode` returns."""
        return sum(map(len, self._cached_chunks(self.text(prompt, answer_prefix))))

    def size(self, text: str) -> int:
        """Return the number of tokens of a text on its own, without special tokens."""
        if self._bpe:
            return sum(map(len, self._bpe.ids(text)))
        return len(
            self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        )
