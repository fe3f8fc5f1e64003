"""What a base's positions are, that methods keep them, and what it can read with a scaling of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import shipped_folder
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.engines.hf.export import export_checkpoint
from longctx_bench.methods.alibi import ALiBi
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.nope import NoPE, attention_layers
from longctx_bench.methods.rnope_swa import RNoPESWA
from longctx_bench.methods.rope_parameters import is_unrotated
from longctx_bench.methods.rope_scaling import NTK, PI, Crop, DynamicNTK, Llama3, LongRoPE, RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

LISTS = LongRoPE(short_factor=(1.0,) * 32, long_factor=(2.0,) * 32)
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
NEOX = {"model_type": "gpt_neox", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 512}
FREQUENCIES: tuple[Method, ...] = (PI(), NTK(), DynamicNTK(), YaRN(), Llama3(), LISTS)


def name_of(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, Method) else None


def shipped(name: str) -> BaseModelInfo:
    """The facts of a base that ships; SmolLM2's config is converted from GGUF."""
    models = {"tiny": "rope-tiny", "smollm": "control-smollm"}
    length = Registry().models[name].original_length
    if name in models:
        file = shipped_folder("baselines") / "checkpoints" / models[name] / "config.json"
        return BaseModelInfo(name, length, json.loads(file.read_text()))
    rope = {"rope_theta": 100000.0, "rope_type": "default"}
    more = {"hidden_size": 576, "num_attention_heads": 9, "max_position_embeddings": 8192}
    return BaseModelInfo(name, length, {"model_type": "llama", "rope_parameters": rope, **more})


@pytest.mark.parametrize(("name", "theta", "context"), [
    ("tiny", 10000.0, 512), ("smollm", 10000.0, 2048), ("smollm2-135m", 100000.0, 8192),
])  # fmt: skip
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_what_methods_write_for_the_bases_that_ship_is_what_was_measured(
    name: str, theta: float, context: int, scale: int
) -> None:
    base, length = shipped(name), scale * context
    s, before = float(scale), {"original_max_position_embeddings": context}
    nothing = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.0}
    larger = {"rope_type": "default", "rope_theta": theta * s ** (64 / 62)}
    yarn = {"rope_type": "yarn", "rope_theta": theta, "factor": s, **before, "beta_fast": 32.0, "beta_slow": 1.0}
    lists = [2.0 if scale > 1 else 1.0] * 32
    expected: list[tuple[Method, dict[str, Any]]] = [
        (PI(), {"rope_type": "linear", "rope_theta": theta, "factor": s}),
        (NTK(), larger),
        (DynamicNTK(), larger),
        (YaRN(), yarn),
        (YaRN(attention_factor=1.2), {**yarn, "attention_factor": 1.2}),
        (Llama3(), {"rope_type": "llama3", "rope_theta": theta, "factor": s, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, **before}),
        (LISTS, {"rope_type": "longrope", "rope_theta": theta, "factor": s, **before,
                 "short_factor": lists, "long_factor": lists}),
        (NoPE(), nothing), (DroPE(), nothing), (ALiBi(), nothing),
    ]  # fmt: skip
    for method, rope in expected:
        overrides = {"rope_parameters": rope, "max_position_embeddings": length}
        assert method.model_overrides(base, length) == overrides, method
    assert RoPE().model_overrides(base, length) == Crop().model_overrides(base, length) == {}
    assert RNoPESWA().model_overrides(base, length) == {"max_position_embeddings": length}


@pytest.mark.parametrize("config", [
    {**NEOX, "rotary_pct": 0.25, "rotary_emb_base": 5000},  # as transformers 4 writes it
    {**NEOX, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}},
])  # fmt: skip
def test_the_rotated_part_of_a_head_is_kept(config: dict[str, Any]) -> None:
    base = BaseModelInfo("neox", 512, config)
    lists = LongRoPE(short_factor=(1.0,) * 8, long_factor=(2.0,) * 8)
    for method in (*FREQUENCIES[:-1], lists):
        rope = method.model_overrides(base, 1024)["rope_parameters"]
        assert rope["partial_rotary_factor"] == 0.25, method
        assert rope["rope_theta"] == (5000.0 if not isinstance(method, NTK) else 5000.0 * 2 ** (16 / 14))
    with pytest.raises(UserError, match="a list of 8 numbers"):
        LISTS.model_overrides(base, 1024)
    assert is_unrotated(NoPE().model_overrides(base, 1024)["rope_parameters"])


class Whole(Method):
    """A plug-in that writes the whole dict, as one may think it is done."""

    rope: dict[str, Any]

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        return {"rope_parameters": dict(self.rope), "max_position_embeddings": length}


class Declared(Whole):
    changes: ClassVar = frozenset({"theta", "rotary_pairs", "original_length", "scaling"})


def test_a_plug_ins_dict_is_completed_from_the_base() -> None:
    base = BaseModelInfo("neox", 512, {**NEOX, "rotary_pct": 0.25, "rotary_emb_base": 5000})
    half = Whole(rope={"rope_type": "linear", "factor": 1.5})
    assert half.model_overrides(base, 1024)["rope_parameters"] == {
        "rope_type": "linear", "factor": 1.5, "rope_theta": 5000, "partial_rotary_factor": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize(("rope", "what"), [
    ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, "theta from 5000 to 10000"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}, "rotary_pairs from 8 to 32"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 99}, "original_length from 512 to 99"),
    ({"rope_type": "proportional", "partial_rotary_factor": 0.0}, "rotary_pairs from 8 to 0"),
])  # fmt: skip
def test_a_change_that_a_plug_in_does_not_declare_is_refused(rope: dict[str, Any], what: str) -> None:
    base = BaseModelInfo("neox", 512, {**NEOX, "rotary_pct": 0.25, "rotary_emb_base": 5000})
    with pytest.raises(UserError, match=what):
        Whole(rope=rope).model_overrides(base, 1024)
    assert Declared(rope=rope).model_overrides(base, 1024)["rope_parameters"].items() >= rope.items()


def test_names_of_transformers_4_do_nothing_and_are_refused() -> None:
    class Old(Method):
        def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
            return {"rope_scaling": {"type": "linear", "factor": 2.0}}

    with pytest.raises(UserError, match="rope_scaling"):
        Old().model_overrides(shipped("tiny"), 1024)


@pytest.mark.parametrize("method", FREQUENCIES, ids=name_of)
@pytest.mark.parametrize("rope", [
    LLAMA3,
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    {"rope_type": "dynamic", "factor": 2.0},
    {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
], ids=lambda rope: str(rope.get("rope_type", "longrope")))  # fmt: skip
def test_a_bases_own_scaling_is_never_replaced_without_a_word(method: Method, rope: dict[str, Any]) -> None:
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "rope_theta": 1e4}
    base = BaseModelInfo("scaled", 1024, {**config, "rope_scaling": rope, "max_position_embeddings": 1024})
    kind = rope.get("rope_type") or rope["type"]
    with pytest.raises(UserError, match=f"'{kind}'") as refused:
        method.model_overrides(base, 2048)
    assert "\n" not in str(refused.value)
    assert is_unrotated(NoPE().model_overrides(base, 2048)["rope_parameters"])
    assert RoPE().model_overrides(base, 2048) == {}


def test_interpolating_an_interpolated_base_multiplies_the_factors() -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "rope_parameters": rope}
    base = BaseModelInfo("linear", 1024, config)
    assert PI().model_overrides(base, 2048)["rope_parameters"] == {**rope, "factor": 16.0}
    with pytest.raises(UserError, match="'linear', factor 8"):
        Whole(rope={"rope_type": "linear", "factor": 1.5}).model_overrides(base, 2048)


def test_layers_with_a_window_keep_their_positions() -> None:
    base = BaseModelInfo(
        "gemma3", 512, {"model_type": "gemma3_text", "num_hidden_layers": 6, "max_position_embeddings": 512}
    )
    rope = YaRN().model_overrides(base, 1024)["rope_parameters"]
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}
    assert rope["full_attention"]["rope_type"] == "yarn"
    assert rope["full_attention"]["rope_theta"] == 1e6
    nested = {"full_attention": {"rope_type": "linear", "factor": 2.0}}
    merged = Whole(rope=nested).model_overrides(base, 1024)["rope_parameters"]
    assert merged["sliding_attention"] == rope["sliding_attention"]
    assert merged["full_attention"]["rope_theta"] == 1e6
    assert is_unrotated(NoPE().model_overrides(base, 1024)["rope_parameters"])


def test_where_all_layers_have_a_window_there_is_nothing_to_extend() -> None:
    config = {"model_type": "mistral", "max_position_embeddings": 512}
    for window, refused in ((256, True), (512, True), (1024, False), (None, False)):
        base = BaseModelInfo("mistral", 512, {**config, "sliding_window": window})
        if refused:
            with pytest.raises(UserError, match=f"the last {window} tokens"):
                YaRN().model_overrides(base, 1024)
        else:
            assert YaRN().model_overrides(base, 1024)["rope_parameters"]["rope_type"] == "yarn"
        assert RoPE().model_overrides(base, 1024) == {}


@pytest.mark.parametrize(("config", "why"), [
    ({"model_type": "gpt2"}, "a gpt2 has no rotary positions"),
    ({"model_type": "mamba"}, "a mamba has no rotary positions"),
    ({"model_type": "gptj"}, "tables of its own"),
    ({"model_type": "falcon", "alibi": True}, "alibi"),
    ({"model_type": "gemma3", "text_config": {}}, "more than text"),
    ({"model_type": "llama_drope", "hidden_size": 64, "num_attention_heads": 4}, "no rotary positions left"),
    ({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
      "rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.0}},
     "no rotary positions left"),
])  # fmt: skip
def test_a_base_without_rotary_positions_says_so(config: dict[str, Any], why: str) -> None:
    for method in (YaRN(), PI(), Llama3()):
        with pytest.raises(UserError, match=why):
            method.model_overrides(BaseModelInfo("x", 512, config), 1024)


def written(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 4, **config}))
    return str(folder)


@pytest.mark.parametrize(("config", "length"), [
    ({"model_type": "llama", "max_position_embeddings": 1024, "rope_scaling": LLAMA3}, 1024),
    ({"model_type": "llama", "max_position_embeddings": 2048}, 2048),
    ({"model_type": "phi3", "max_position_embeddings": 1024, "original_max_position_embeddings": 512,
      "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}, 1024),
    # Qwen's leave max_position_embeddings at the length before the scaling, or not.
    ({"model_type": "qwen2", "max_position_embeddings": 256,
      "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 1024),
    ({"model_type": "qwen2", "max_position_embeddings": 1024,
      "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 1024),
    ({"model_type": "gpt2", "n_positions": 128}, 128),
])  # fmt: skip
def test_the_training_context_is_what_a_base_can_read(tmp_path: Path, config: dict[str, Any], length: int) -> None:
    folder = written(tmp_path / "model", **config)
    assert Registry().variant(folder).model.original_length == length
    (tmp_path / "models.yaml").write_text(f"mine: {{source: {{path: {folder}}}, original_length: 77}}\n")
    assert Registry(include_paths=[tmp_path]).variant("mine").model.original_length == 77


def test_a_model_whose_context_nothing_names_must_be_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="original_length"):
        Registry().variant(written(tmp_path / "bloom", model_type="bloom"))


def test_a_checkpoint_is_believed_where_its_config_bears_it_out(tmp_path: Path) -> None:
    none = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.0}
    llama = {"model_type": "llama", "max_position_embeddings": 512}
    unturned = written(tmp_path / "none", **llama, rope_parameters=none)
    assert isinstance(Registry().variant(f"alibi:{unturned}").method, ALiBi)
    turned = written(tmp_path / "rope", **llama)
    for method in ("alibi", "drope", "rnope-swa"):
        with pytest.raises(UserError, match=f"checkpoint of {method}") as refused:
            Registry().variant(f"{method}:{turned}")
        assert f"name one as {method}:" not in str(refused.value)


def save(folder: Path, config: Any, tokenizer: Path) -> BaseModelInfo:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return BaseModelInfo("made", 64, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("method", [YaRN(), NTK(), NoPE()], ids=name_of)
def test_an_exported_checkpoint_keeps_the_rotated_part(method: Method, tiny_folder: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = GPTNeoXConfig(**shape, vocab_size=300, max_position_embeddings=64, initializer_range=0.2)
    base = save(tmp_path / "neox", config, tiny_folder)
    name = type(method).__name__.lower()
    export_checkpoint(ModelUnderTest(base, method, 128), name, tmp_path / "neox", tmp_path / "out")
    rope = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    assert rope["partial_rotary_factor"] == 0.25
    assert is_unrotated(rope) == isinstance(method, NoPE)


def test_a_cap_on_the_logits_of_attention_is_kept(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import Gemma2Config

    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = Gemma2Config(**shape, num_key_value_heads=2, head_dim=8, vocab_size=300, initializer_range=0.5,
                          attn_logit_softcapping=0.5)  # fmt: skip
    save(tmp_path / "gemma2", config, tiny_folder)
    ids = torch.arange(5, 45)[None]
    eager = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma2", attn_implementation="eager").eval()
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "gemma2", "float32", "cpu")(ids).logits, eager(ids).logits)


def test_a_temperature_reaches_every_layer_or_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import StableLmConfig

    assert len(attention_layers(load_model(tiny_folder, "float32", "cpu"))) == 2
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    base = save(tmp_path / "stablelm", StableLmConfig(**shape, num_key_value_heads=4, vocab_size=300), tiny_folder)
    model = load_model(tmp_path / "stablelm", "float32", "cpu")
    with pytest.raises(UserError, match="no temperature"), apply_method(model, _sharp(base), 128):
        pass
    assert not is_unrotated(model.config.rope_parameters), "what was begun is undone"


def _sharp(base: BaseModelInfo) -> ModelUnderTest:
    return ModelUnderTest(base, NoPE().with_scalar(1.5), 128)


def test_a_method_that_returns_no_dict_is_told_so() -> None:
    class Forgets(Method):
        """Returns nothing."""

        def model_overrides(self, base: BaseModelInfo, length: int) -> Any:
            return None

    with pytest.raises(UserError, match=r"Forgets\.model_overrides must return a dict"):
        Forgets().model_overrides(BaseModelInfo("tiny", 512, {}), 1024)
