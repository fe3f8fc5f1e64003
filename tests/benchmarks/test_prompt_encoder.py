"""Counting: BOS, chat templates, answer prefixes."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from longctx_bench.benchmarks.bpe_cache import CachedBPE
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.registry import Registry


def test_bos_is_counted_and_the_answer_prefix_belongs_to_the_prompt(plain_tokenizer: Any, bos_tokenizer: Any) -> None:
    plain, with_bos = PromptEncoder(plain_tokenizer), PromptEncoder(bos_tokenizer)
    assert with_bos.encode("some", " text") == [0, *plain.encode("some", " text")]
    assert with_bos.count("some", " text") == plain.count("some text") + 1
    assert with_bos.size("some text") == plain.count("some text")


@pytest.mark.slow
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


PIECES = (
    *("a", "'s", "'", "ab", "I'll", "5", "42", ".", "!", "-", "—", "é", "e\u0301", "中文", "Ünïcödé"),
    *(" ", " ", " ", "  ", "\n", "\t", "\r\n", "\xa0", "\u2028", "\x1c", " 7", " .", " \u0301"),
    *("<|im_start|>", "<|endoftext|>", "</s>", "-", "lucky-window", "8f3a", ":", '"', "(", ". ", ".\n", "\n\n", "_"),
)


def whole(encoder: PromptEncoder, text: str) -> list[int]:
    """Return what the tokenizer makes of the whole text."""
    ids: list[int] = encoder.tokenizer(text)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == encoder.tokenizer.eos_token_id else ids


@pytest.mark.slow
def test_words_read_one_by_one_are_the_whole_text(smollm2_encoder: Any, tiny_encoder: Any) -> None:
    rng = random.Random(0)
    for encoder in (smollm2_encoder, tiny_encoder):
        assert CachedBPE.from_tokenizer(encoder.tokenizer)
        for _ in range(2000):
            text = "".join(rng.choices(PIECES, k=rng.randint(0, 25)))
            assert encoder.encode(text) == whole(encoder, text), repr(text)
            assert encoder.size(text) == len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]), repr(text)


def test_a_tokenizer_of_another_kind_is_read_as_a_whole(mistral_encoder: Any) -> None:
    assert not CachedBPE.from_tokenizer(mistral_encoder.tokenizer), "sentencepiece has no pattern that cuts at spaces"
    text = "Two  spaces and one."
    assert mistral_encoder.encode(text) == whole(mistral_encoder, text)


@pytest.mark.parametrize("rule", ["lstrip", "rstrip"])
def test_a_special_token_that_takes_spaces_forbids_cutting(plain_tokenizer: Any, rule: str) -> None:
    from transformers import AddedToken

    assert CachedBPE.from_tokenizer(plain_tokenizer)
    plain_tokenizer.add_tokens([AddedToken("<mask>", **{rule: True})])
    assert not CachedBPE.from_tokenizer(plain_tokenizer)
    encoder = PromptEncoder(plain_tokenizer)
    assert encoder.encode("a <mask> b") == whole(encoder, "a <mask> b")


def other_tokenizer(pre_tokenizer: Any = None, normalizer: Any = None, added: tuple[str, ...] = ()) -> Any:
    """Make a tokenizer that differs in how it cuts."""
    from helpers.tiny_models import make_tokenizer
    from transformers import AddedToken

    tokenizer = make_tokenizer()
    if pre_tokenizer:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


@pytest.mark.slow
def test_sentences_and_pieces_are_the_whole_text_whatever_the_tokenizer_cuts(
    smollm2_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import normalizers, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    groups = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), level])
    monkeypatch.setattr("longctx_bench.benchmarks.bpe_cache._LINE", 20)
    monkeypatch.setattr("longctx_bench.benchmarks.bpe_cache._SENTENCE", 4)
    rng = random.Random(1)
    signs = [
        *string.printable,
        *" " * 20,
        *[". "] * 5,
        *["\n"] * 3,
        "a-b",
        "<x5>",
        "it's",
        "\u0338",
        "\u0301",
        "\u0663",
    ]
    for tokenizer in (
        smollm2_encoder.tokenizer,
        other_tokenizer(level),
        other_tokenizer(groups),
        other_tokenizer(normalizer=normalizers.NFC()),
        other_tokenizer(added=("a-b", "<x5>", "fo")),
    ):
        encoder, words = PromptEncoder(tokenizer), CachedBPE.from_tokenizer(tokenizer)
        assert words
        for _ in range(600):
            text = "".join(rng.choices(signs, k=rng.randint(0, 80)))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert [number for part in words.ids(text) for number in part] == ids, repr(text)
            assert encoder.encode(text) == whole(encoder, text), repr(text)


def test_a_special_token_across_lines_forbids_cutting() -> None:
    assert CachedBPE.from_tokenizer(other_tokenizer(added=("<x>",)))
    assert not CachedBPE.from_tokenizer(other_tokenizer(added=("x\ny",)))


@pytest.mark.parametrize("bound", ["_MOST", "_MOST_TEXT", "_WORD", "_LINE"])
def test_forgetting_changes_nothing(smollm2_encoder: Any, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    encoder = PromptEncoder(smollm2_encoder.tokenizer)
    monkeypatch.setattr(f"longctx_bench.benchmarks.bpe_cache.{bound}", 3)
    for text in ("one two three four five", "five six seven eight", "one nine two ten " * 3 + ". So.\nIt is 12-ab."):
        assert encoder.encode(text) == whole(encoder, text)
        assert encoder.count(text) == len(whole(encoder, text))
