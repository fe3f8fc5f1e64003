"""Counting: BOS, chat templates, answer prefixes."""

from __future__ import annotations

from typing import Any

import pytest

from longctx_bench.benchmarks.encoder import PromptEncoder
from longctx_bench.errors import UserError
from longctx_bench.registry import Registry


def test_bos_is_counted_and_the_answer_prefix_belongs_to_the_prompt(plain_tokenizer: Any, bos_tokenizer: Any) -> None:
    plain, with_bos = PromptEncoder(plain_tokenizer), PromptEncoder(bos_tokenizer)
    assert with_bos.encode("some", " text") == [0, *plain.encode("some", " text")]
    assert with_bos.count("some", " text") == plain.count("some text") + 1
    assert with_bos.size("some text") == plain.count("some text")


def test_a_chat_template_is_counted_and_its_bos_not_doubled(smollm2_encoder: Any) -> None:
    chat = PromptEncoder(smollm2_encoder.tokenizer, chat_template=True)
    text = chat.text("Where is it?", " It is")
    assert text.count("<|im_start|>") == 3
    assert text.endswith("<|im_start|>assistant\n It is")
    assert chat.encode("Where is it?", " It is") == chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    spec = Registry().tasks["niah_single_1"]
    for example in Registry().benchmark(spec).examples(chat, 1024, spec.max_new_tokens, 3, 42):
        assert 1024 - 64 < example.n_tokens + example.max_new_tokens <= 1024


def test_a_tokenizer_without_chat_template_is_refused(plain_tokenizer: Any) -> None:
    plain_tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        PromptEncoder(plain_tokenizer, chat_template=True)


def test_an_answer_continues_the_prompts_tokens(bos_tokenizer: Any) -> None:
    encoder = PromptEncoder(bos_tokenizer)
    prompt, prefix = "A special magic number is hidden.\n", " The special magic number is"
    for answer in ("1234567", "3141592, and 2718281"):
        ids = encoder.encode(prompt, prefix)
        assert ids + encoder.continuation(prompt, prefix, answer) == encoder.encode(f"{prompt}{prefix} {answer}")
    assert bos_tokenizer.decode(encoder.continuation("Numbers:\n", "", "12")) == "12", "a new line needs no space"
    chat = PromptEncoder(bos_tokenizer, chat_template=True)
    assert bos_tokenizer.decode(chat.continuation("Which number?", "", "12")) == "12", "an answer begins the reply"
    assert bos_tokenizer.decode(chat.continuation("Which number?", "It is", "12")) == " 12"
