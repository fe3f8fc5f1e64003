"""Bases of somebody else's: training reads them as every other model folder is read, and runs nothing of theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.absurd_configs import ABSURD, HF_ONLY
from helpers.fake_hub import publish
from safetensors.torch import load_file

from longctx_bench.core.errors import UserError
from longctx_bench.models.checkpoint import ADAPTER_CONFIG
from longctx_bench.training.checkpoint_export import save_model
from longctx_bench.training.models import fresh_model, recipe_tokenizer, starting_model
from longctx_bench.training.recipe import Recipe, Shape, read_recipe

pytestmark = pytest.mark.slow

SHAPE = Shape(hidden_size=32, layers=4, heads=4, kv_heads=2, ffn=64, vocab_size=300, window=8)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def base(tokenizer: Any, tmp_path: Path) -> Path:
    """A small Llama and the corpus' tokenizer."""
    save_model(fresh_model(SHAPE, "rope", 64, len(tokenizer), 0, seed=0), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def edit(base: Path, entries: dict[str, Any], file: str = "config.json") -> None:
    path = base / file
    path.write_text(json.dumps(json.loads(path.read_text() if path.exists() else "{}") | entries))


def refused(call: Call, recipe: Path, out: Path) -> str:
    """Train by a recipe whose base is refused, and return the one line."""
    code, _, error = call("train", recipe, "--out", out)
    assert (code, len(error.splitlines())) == (2, 1), error
    assert not out.exists(), "no folder is claimed, and no data is read"
    return error


@pytest.fixture
def recipe(small: Any, base: Path) -> Path:
    """A recalibration of the base."""
    path: Path = small(kind="recalibrate", positions="drope", base=str(base), shape=None)
    return path


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_config_is_one_line(name: str, base: Path, recipe: Path, tmp_path: Path, call: Call) -> None:
    edit(base, ABSURD[name])
    assert f"{base}: config.json" in refused(call, recipe, tmp_path / "out")


@pytest.mark.parametrize("name", HF_ONLY)
def test_what_transformers_refuses_is_one_line(name: str, base: Path, recipe: Path, tmp_path: Path, call: Call) -> None:
    edit(base, HF_ONLY[name])
    code, _, error = call("train", recipe, "--out", tmp_path / "out")
    assert (code, len(error.splitlines()), str(base) in error) == (2, 1, True), error


@pytest.mark.parametrize("name", ABSURD)
def test_a_tokenizer_apart_from_the_base_hides_nothing(
    name: str, base: Path, small: Any, tmp_path: Path, call: Call
) -> None:
    tokenizer = shutil.copytree(base, tmp_path / "tokenizer")
    for file in ("config.json", "model.safetensors"):
        (tokenizer / file).unlink()
    edit(base, ABSURD[name])
    recipe = small(kind="control", base=str(base), tokenizer=str(tokenizer), shape=None)
    assert "config.json" in refused(call, recipe, tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", "nan", "[" * 10**5, '{"a":' * 500 + "1" + "}" * 500, "\xff"])
def test_a_config_that_is_no_config_is_one_line(
    content: str, base: Path, recipe: Path, tmp_path: Path, call: Call
) -> None:
    (base / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refused(call, recipe, tmp_path / "out")


@pytest.mark.parametrize("quantisation", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}])
def test_a_quantised_base_is_refused(
    quantisation: dict[str, Any], base: Path, recipe: Path, tmp_path: Path, call: Call
) -> None:
    edit(base, {"quantization_config": quantisation})
    assert "quantised" in refused(call, recipe, tmp_path / "out")


def test_code_that_a_base_brings_is_never_run(base: Path, recipe: Path, tmp_path: Path, call: Call) -> None:
    (base / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    code = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.X")}
    edit(base, code | {"model_type": "evil"})
    assert "never run" in refused(call, recipe, tmp_path / "out")
    edit(base, {"model_type": "llama"})
    edit(base, {"auto_map": {"AutoTokenizer": [None, "evil.X"]}, "tokenizer_class": "X"}, "tokenizer_config.json")
    code, _, error = call("train", recipe, "--out", tmp_path / "out")
    assert (code, "never run" in error, len(error.splitlines())) == (2, True, 1), error
    assert not (tmp_path / "ran").exists()


def test_an_adapter_in_place_of_a_base_is_refused(base: Path, recipe: Path, tmp_path: Path, call: Call) -> None:
    (base / ADAPTER_CONFIG).write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    assert "merge the adapter" in refused(call, recipe, tmp_path / "out")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_pickled_weights_are_never_loaded(
    base: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    code, _, error = call("train", recipe, "--out", tmp_path / "out")
    assert (code, len(error.splitlines())) == (2, 1), error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-8], lambda content: b"", lambda content: b"x" * 100])
def test_damaged_weights_are_one_line(
    damage: Callable[[bytes], bytes], base: Path, recipe: Path, tmp_path: Path, call: Call
) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    code, _, error = call("train", recipe, "--out", tmp_path / "out")
    assert (code, len(error.splitlines())) == (2, 1), error


def test_a_base_without_some_weights_is_not_filled_up_with_random_ones(base: Path, recipe: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        starting_model(read_recipe(recipe), recipe_tokenizer(read_recipe(recipe)))


def test_an_endless_chat_template_is_passed_on_and_never_rendered(base: Path, recipe: Path) -> None:
    endless = "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}"
    edit(base, {"chat_template": endless}, "tokenizer_config.json")
    (base / "chat_template.jinja").write_text(endless)
    tokenizer = recipe_tokenizer(read_recipe(recipe))
    assert starting_model(read_recipe(recipe), tokenizer).config.model_type == "llama_drope"


def test_a_base_on_the_hub_obeys_the_same_rules(
    base: Path, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    publish(tmp_path / "hub", "org/right", base, "a" * 40)
    right = read_recipe(small(kind="recalibrate", positions="drope", base="org/right", shape=None))
    assert starting_model(right, recipe_tokenizer(right)).config.max_position_embeddings == 64
    edit(base, ABSURD["kernels"])
    publish(tmp_path / "hub", "org/wrong", base, "b" * 40)
    wrong = small(kind="recalibrate", positions="drope", base="org/wrong", shape=None)
    assert "_attn_implementation" in refused(call, wrong, tmp_path / "out")
    nowhere = small(kind="recalibrate", positions="drope", base="org/nowhere", shape=None)
    assert "org/nowhere" in refused(call, nowhere, tmp_path / "out")


def test_the_tokenizer_is_saved_with_the_limit_that_it_came_with(base: Path, recipe: Path) -> None:
    read: Recipe = read_recipe(recipe)
    expected = json.loads((base / "tokenizer_config.json").read_text())["model_max_length"]
    assert recipe_tokenizer(read).model_max_length == expected
