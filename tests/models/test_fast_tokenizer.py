"""A tokenizer read without transformers is transformers' own, or is not read so at all."""

from __future__ import annotations

import json
import random
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import make_tokenizer
from transformers import AddedToken, AutoTokenizer

from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.models.checkpoint import load_tokenizer, prompt_tokenizer
from longctx_bench.models.fast_tokenizer import _CLASSES, _MODELS, LightTokenizer

TINY = ("rope-tiny", "drope-tiny", "nope-tiny", "alibi-tiny", "rnope-swa-tiny")
SIGNS = (
    *string.printable,
    *(
        "don't",
        "it's",
        "Ünïcödé",
        "e\u0301",
        "中文字",
        "日本語",
        "🙂",
        "👩‍👩‍👧",
        "٣",
        "Ⅷ",
        "½",
        "\u2019",
        "\u201c",
        "—",
        "\u200b",
        "\xa0",
        "\x1c",
    ),
    *("  ", "\n\n", " \n", "\r\n", "\t", "The", " quick", " brown", "1234567", "3.14", "<0x0A>", "Ġ", "▁", "##ing"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "[PAD]", "<|im_start", "assistant\n"),
)


def never(_: Path) -> Any:
    """Stand for loading with transformers where nothing may ask for it."""
    raise AssertionError("transformers was asked")


def same(folder: Path, texts: int = 300) -> None:
    """Check that a folder is read without transformers, and that it gives the same ids and texts."""
    light, whole = LightTokenizer.from_folder(folder, never), load_tokenizer(folder)
    assert light is not None
    assert type(whole).__name__ == "TokenizersBackend", "what is read is what transformers would read too"
    rng = random.Random(0)
    made = ["", " ", *("".join(rng.choices(SIGNS, k=rng.randint(1, 60))) for _ in range(texts))]
    for text in made:
        for special in (True, False):
            ids = whole(text, add_special_tokens=special)["input_ids"]
            assert light(text, add_special_tokens=special, return_attention_mask=False)["input_ids"] == ids, repr(text)
            assert light.encode(text, add_special_tokens=special) == ids
            for skipped in (True, False):
                decoded = whole.decode(ids, skip_special_tokens=skipped)
                assert light.decode(ids, skip_special_tokens=skipped) == decoded, repr(text)
    for _ in range(texts):
        ids = rng.choices(range(len(whole)), k=20)
        assert light.decode(ids, skip_special_tokens=True) == whole.decode(ids, skip_special_tokens=True)
        assert light.decode(ids) == whole.decode(ids)
    every = light(made, return_attention_mask=False, verbose=False, truncation=False)["input_ids"]
    assert every == whole(made)["input_ids"]
    assert (light.eos_token_id, light.sep_token_id) == (whole.eos_token_id, whole.sep_token_id)
    assert len(light) == len(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_tiny_familys(name: str) -> None:
    same(shipped_checkpoint_folder(name))


@pytest.mark.slow
def test_smollm2s(smollm2_folder: Path) -> None:
    same(smollm2_folder)


def saved(folder: Path, tokenizer: Any, model_type: str = "llama") -> Path:
    """Save a tokenizer as a checkpoint folder has it."""
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def changed(folder: Path, **settings: Any) -> None:
    """Change entries of a folder's tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.slow
def test_one_with_bos_and_a_chat_template(tmp_path: Path) -> None:
    same(saved(tmp_path, make_tokenizer(bos=True)))
    light, whole = prompt_tokenizer(tmp_path), load_tokenizer(tmp_path)
    assert isinstance(light, LightTokenizer)
    message = [{"role": "user", "content": "hello"}]
    assert light.chat_template == whole.chat_template
    assert light.apply_chat_template(message, tokenize=False) == whole.apply_chat_template(message, tokenize=False)
    assert light("a", padding=True) == whole("a", padding=True), "what is not known here is transformers' to answer"
    assert light.encode("a b", truncation=True, max_length=1) == whole.encode("a b", truncation=True, max_length=1)
    assert light.decode([5, 6], clean_up_tokenization_spaces=True) == whole.decode([5, 6])
    assert light.convert_ids_to_tokens([5]) == whole.convert_ids_to_tokens([5])
    with pytest.raises(AttributeError):
        _ = light.no_such_thing


@pytest.mark.parametrize("model_type", sorted(_MODELS))
@pytest.mark.parametrize("name", sorted(_CLASSES))
def test_every_class_and_model_that_is_believed(tmp_path: Path, model_type: str, name: str) -> None:
    folder = saved(tmp_path, make_tokenizer(), model_type)
    changed(folder, tokenizer_class=name, clean_up_tokenization_spaces=True, model_max_length=8, padding_side="left")
    same(folder, 20)


def legacy(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<s>"}')


def cut(folder: Path) -> None:
    file = folder / "tokenizer.json"
    found = {**json.loads(file.read_text()), "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0}}
    file.write_text(json.dumps({**found, "truncation": {**found["truncation"], "direction": "Right"}}))


UNUSUAL: dict[str, Callable[[Path], object]] = {
    "a class of its own": lambda folder: changed(folder, tokenizer_class="GPT2Tokenizer"),
    "no class": lambda folder: changed(folder, tokenizer_class=None),
    "a token that the file lacks": lambda folder: changed(folder, eos_token="<new>"),
    "a token that is no text": lambda folder: changed(folder, eos_token={"content": "</s>", "lstrip": True}),
    "an entry that is not known": lambda folder: changed(folder, split_special_tokens=True),
    "code": lambda folder: changed(folder, auto_map={"AutoTokenizer": ["mine.Mine", None]}),
    "another model": lambda folder: (folder / "config.json").write_text('{"model_type": "qwen2"}'),
    "no model": lambda folder: (folder / "config.json").unlink(),
    "a legacy file": legacy,
    "truncation": cut,
    "no file": lambda folder: (folder / "tokenizer.json").unlink(),
    "a broken file": lambda folder: (folder / "tokenizer.json").write_text('{"version": '),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", UNUSUAL)
def test_anything_unusual_is_left_to_transformers(tmp_path: Path, what: str) -> None:
    folder = saved(tmp_path, make_tokenizer())
    assert LightTokenizer.from_folder(folder, never)
    UNUSUAL[what](folder)
    assert LightTokenizer.from_folder(folder, never) is None


def test_a_token_that_takes_spaces_is_left_to_transformers(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    assert LightTokenizer.from_folder(saved(tmp_path, tokenizer), never) is None


def test_one_that_is_no_bpe_is_left_to_transformers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert LightTokenizer.from_folder(saved(tmp_path, PreTrainedTokenizerFast(tokenizer_object=words)), never) is None


def test_a_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path, make_tokenizer())
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        prompt_tokenizer(folder)


@pytest.mark.slow
def test_a_gguf_as_it_is_converted_is_read_without_transformers(smollm2_folder: Path, tmp_path: Path) -> None:
    """And the copy that it was saved from gives the same, digits split."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(smollm2_folder / name, tmp_path / name)
    ids = LightTokenizer.from_folder(tmp_path, never)
    assert ids is not None
    assert len(ids.encode("1234")) == 4
    assert ids.encode("1234") == AutoTokenizer.from_pretrained(smollm2_folder).encode("1234")


@pytest.mark.slow
@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_prompts_are_written_without(heavy: str, tmp_path: Path) -> None:
    out = tmp_path / "examples.jsonl"
    arguments = ["examples", "niah_single_1,vt,cwe,fwe", "--model", "rope-tiny", "--length", "1024", "--limit", "2"]
    code = (
        f"import sys; sys.argv = ['longctx-bench', *{arguments!r}, '--out', {str(out)!r}]\n"
        f"from longctx_bench.cli import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"assert {heavy!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert len(out.read_text().splitlines()) == 8


@pytest.mark.slow
def test_the_tokenizer_of_a_drope_checkpoint_comes_without_a_warning() -> None:
    # In a process of its own: once any other test has registered the configs, nothing warns any more.
    program = (
        "from longctx_bench.core.sources import shipped_checkpoint_folder;"
        "from longctx_bench.models.checkpoint import load_tokenizer;"
        "load_tokenizer(embedded_folder('drope-tiny'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
