"""Whatever a prompt holds: what is counted is what is encoded, and both are what the tokenizer makes of the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.tiny_models import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_bench.benchmarks.bpe_cache import CachedBPE
from longctx_bench.benchmarks.chat_templates import ChatTemplate
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder

PIECES = (
    *("a", "'s", "I'll", "42", ".", "e\u0301", "中文", " ", "  ", "\n", "\r\n", "\xa0", "\u2028", "\x1c", "\u200b"),
    *("<s>", "</s>", "<|im_start|>", "<user>", "{{", "magic", " special", "\U0001f600", "\ufffd", "\x00", "_", "-"),
)
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
CHECKED = settings(max_examples=150)


@pytest.fixture(scope="module", params=["plain", "bos", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2_encoder").tokenizer
    return make_tokenizer(bos=request.param == "bos")


@pytest.fixture(scope="module")
def fresh(tokenizer: Any) -> Callable[..., PromptEncoder]:
    """Makes encoders that have read nothing.

    One process renders the chats of all, where each would start its own, and the tokenizer is written out once, which
    takes 30 ms for SmolLM2's.
    """
    template, bpe = ChatTemplate(tokenizer), CachedBPE.from_tokenizer(tokenizer)

    def unread(_: Any) -> CachedBPE | None:
        return None if bpe is None else CachedBPE(tokenizer, bpe._cut)

    def make(chat: bool = False) -> PromptEncoder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("longctx_bench.benchmarks.prompt_encoder.ChatTemplate", lambda _: template)
            patch.setattr(CachedBPE, "from_tokenizer", unread)
            return PromptEncoder(tokenizer, chat)

    return make


def whole(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """What the tokenizer makes of a whole text, without the end that some add."""
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids[:-1] if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


@pytest.mark.slow
@CHECKED
@given(prompt=TEXTS, prefix=TEXTS)
def test_a_prompt_is_the_whole_text(tokenizer: Any, fresh: Any, prompt: str, prefix: str) -> None:
    encoder = fresh()
    ids = encoder.encode(prompt, prefix)
    assert ids == whole(tokenizer, prompt + prefix)
    assert encoder.count(prompt, prefix) == len(ids)
    assert encoder.size(prompt) == len(whole(tokenizer, prompt, special=False))


@pytest.mark.slow
@CHECKED
@given(prompt=TEXTS, prefix=TEXTS)
def test_a_chat_is_the_whole_text(tokenizer: Any, fresh: Any, prompt: str, prefix: str) -> None:
    encoder = fresh(chat=True)
    text = encoder.text(prompt, prefix)
    assert text.endswith(prefix)
    assert encoder.encode(prompt, prefix) == whole(tokenizer, text, special=False)
    assert encoder.count(prompt, prefix) == len(encoder.encode(prompt, prefix))


@pytest.mark.slow
@CHECKED
@given(texts=st.lists(TEXTS, min_size=2, max_size=4), order=st.lists(st.integers(0, 3), max_size=8))
def test_what_was_read_before_makes_no_difference(fresh: Any, texts: list[str], order: list[int]) -> None:
    used = fresh()
    for place in order:
        text = texts[place % len(texts)]
        assert used.count(text) == fresh().count(text)
        assert used.encode(text) == fresh().encode(text)


@CHECKED
@given(prompt=TEXTS, prefix=TEXTS, answer=TEXTS)
def test_a_guess_is_made_of_any_text(fresh: Any, prompt: str, prefix: str, answer: str) -> None:
    encoder = fresh()
    before = encoder.encode(prompt, prefix)
    guess = encoder.continuation(prompt, prefix, answer)
    assert all(isinstance(token, int) and token >= 0 for token in guess)
    assert encoder.encode(prompt, prefix) == before
