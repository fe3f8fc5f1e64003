"""From prompt text to the token ids that an engine gets, counted the same way everywhere."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from longctx_bench.benchmarks.bpe_cache import CachedBPE, flatten
from longctx_bench.benchmarks.chat_templates import ChatTemplate
from longctx_bench.core.errors import UserError

_END = 64
"""Characters of a prompt's end that decide how what follows is split into tokens."""


class PromptEncoder:
    """A tokenizer as the benchmarks see it: prompt and answer prefix in, token ids (with BOS) out."""

    def __init__(self, tokenizer: Any, chat_template: bool = False) -> None:
        """Wrap a transformers tokenizer.

        Args:
            tokenizer: any transformers tokenizer.
            chat_template: put the prompt into the tokenizer's chat template as a user message; the answer
                prefix then begins the assistant's turn.

        Raises:
            UserError: a chat template is asked for and the tokenizer has none.
        """
        if chat_template and not tokenizer.chat_template:
            raise UserError(f"--chat-template: the tokenizer of {tokenizer.name_or_path} has no chat template")
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._template = ChatTemplate(tokenizer) if chat_template else None
        self._chunks = CachedBPE.from_tokenizer(tokenizer)
        self._opening = self._special() if self._chunks else None
        # What was counted last is encoded next; prompts are written in several threads.
        self._latest = threading.local()

    def text(self, prompt: str, answer_prefix: str) -> str:
        """Return the whole text that is tokenised.

        Raises:
            UserError: the chat template cannot be rendered.
        """
        if self._template is None:
            return prompt + answer_prefix
        return self._template.render([{"role": "user", "content": prompt}]) + answer_prefix

    def encode(self, prompt: str, answer_prefix: str = "") -> list[int]:
        """Return the token ids, BOS included where the tokenizer adds one (EOS at the end never)."""
        return flatten(self._parts(self.text(prompt, answer_prefix)))

    def _parts(self, text: str) -> Sequence[Sequence[int]]:
        """Return a whole text's ids in pieces, the latest text's from memory."""
        if text != getattr(self._latest, "text", None):
            self._latest.text, self._latest.parts = text, self._read(text)
        found: Sequence[Sequence[int]] = self._latest.parts
        return found

    def _read(self, text: str) -> Sequence[Sequence[int]]:
        if self._opening is None or not self._chunks:
            return [self._encoded(text)]
        parts = [self._opening, *self._chunks.ids(text)]
        # A text that itself ends as a tokenizer ends texts is a rare one.
        return [self._encoded(text)] if parts[-1] and parts[-1][-1] in self._ends else parts

    @cached_property
    def _ends(self) -> tuple[int | None, int | None]:
        return self.tokenizer.eos_token_id, self.tokenizer.sep_token_id

    def _special(self) -> tuple[int, ...] | None:
        """Return the special tokens before every text, or None where there are others."""
        whole, plain = (
            tuple(self.tokenizer("a", add_special_tokens=special, return_attention_mask=False)["input_ids"])
            for special in (not self.chat_template, False)
        )
        opening = whole[: len(whole) - len(plain)]
        return opening if opening + plain == whole else None

    def _encoded(self, text: str) -> list[int]:
        # A chat template writes its own special tokens: adding them again would double BOS.
        ids: list[int] = self.tokenizer(
            text,
            add_special_tokens=not self.chat_template,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        if not self.chat_template and len(ids) > 1 and ids[-1] in self._ends:
            ids = ids[:-1]
        return ids

    def continuation(self, prompt: str, answer_prefix: str, answer: str) -> list[int]:
        """Return token ids of an answer behind a prompt: likely those that a model would write, no more than a guess.

        The prompt's end is tokenised with it, because some tokenizers begin every text with a space of their own.
        """
        # Behind a chat template's last words, and behind a space or a new line, an answer begins with no space.
        opened = self.chat_template and not answer_prefix
        end = answer_prefix if opened or answer_prefix else prompt[-_END:]
        gap = "" if opened or end[-1:].isspace() else " "
        before, both = (
            self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            for text in (end, end + gap + answer)
        )
        same = next((place for place, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), None)
        return list(both[min(len(before), len(both)) if same is None else same :])

    def count(self, prompt: str, answer_prefix: str = "") -> int:
        """Return how many tokens :meth:`encode` gives."""
        return sum(map(len, self._parts(self.text(prompt, answer_prefix))))

    def size(self, text: str) -> int:
        """Return how many tokens a piece of text takes by itself, without special tokens."""
        if self._chunks:
            return sum(map(len, self._chunks.ids(text)))
        return len(
            self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        )
