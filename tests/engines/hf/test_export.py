"""Exported checkpoints: the method's own tokens from a plain folder, recognised as what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from longctx_bench.core.errors import ContextTooShort, UserError
from longctx_bench.core.types import Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.engines.hf.export import ExportResult, export_checkpoint
from longctx_bench.methods.modeling_drope import LlamaDropeConfig, LlamaDropeForCausalLM
from longctx_bench.models.checkpoint import checkpoint_folder, read_config
from longctx_bench.models.variant import ModelUnderTest, ModelVariant
from longctx_bench.registry import Registry

LENGTH = 2048
IDS = torch.randint(26, 5000, (700,), generator=torch.Generator().manual_seed(3)).tolist()


def export(variant: ModelVariant, folder: Path, length: int) -> ExportResult:
    source = checkpoint_folder(variant.source)
    contestant = ModelUnderTest(variant.base(read_config(source)), variant.method, length)
    return export_checkpoint(contestant, variant.method_name, source, folder)


def greedy(name: str, length: int = LENGTH, ids: list[int] = IDS) -> str:
    """What the transformers engine writes after a prompt, in float32."""
    variant = Registry().variant(name)
    folder = checkpoint_folder(variant.source)
    engine = HFEngine("cpu", "float32")
    engine.load(folder)
    contestant = ModelUnderTest(variant.base(read_config(folder)), variant.method, length)
    [found] = engine.generate([Request("0", ids, 24)], contestant, lambda *_: False)
    return found.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["rope", "pi", "ntk", "yarn", "llama3", "nope-retrieval", "drope", "mrrope-pro", "p-rope"]
)
def test_an_exported_folder_gives_the_methods_tokens_and_is_known_as_it(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    written = export(Registry().variant(f"{method}-tiny"), folder, LENGTH)
    assert written.difference <= written.tolerance == 1e-3
    variant = Registry().variant(str(folder))
    assert (variant.name, variant.model.original_length) == (f"{method}-served", 512)
    assert variant.method.factor == 4.0
    assert greedy(str(folder)) == greedy(f"{method}-tiny")
    config = json.loads((folder / "config.json").read_text())
    assert config["max_position_embeddings"] == LENGTH
    assert config["rope_parameters"]["rope_theta"] > 0
    assert f"{method}-tiny for 2048 tokens" in (folder / "README.md").read_text()
    with pytest.raises(ContextTooShort, match="was exported for 2048 tokens, not for 4096"):
        variant.method.model_overrides(variant.base(config), 4096)
    with pytest.raises(UserError, match="name it alone"):
        Registry().variant(f"yarn:{folder}")
    with pytest.raises(UserError, match="name it alone"):
        Registry(settings={method: {"factor": 2}}).variant(str(folder))


def test_a_list_of_factors_is_written_for_vllm_servers_too(tmp_path: Path) -> None:
    export(Registry().variant("mrrope-pro-tiny"), tmp_path / "served", LENGTH)
    rope = json.loads((tmp_path / "served" / "config.json").read_text())["rope_parameters"]
    assert rope["short_factor"] == rope["long_factor"]
    assert rope["attention_factor"] == rope["short_mscale"] == rope["long_mscale"] == pytest.approx(1.1386294361119891)


@pytest.mark.slow
def test_no_positions_are_written_for_stock_servers_and_the_temperature_into_the_queries(tmp_path: Path) -> None:
    export(Registry().variant("nope-retrieval-tiny"), tmp_path / "plain", LENGTH)
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rope_parameters"]["rope_type"] == "llama3"
    assert config["longctx_bench_export"]["temperature"] == 1.65
    before = load_file(checkpoint_folder(Registry().variant("nope-tiny").source) / "model.safetensors")
    after = load_file(tmp_path / "plain/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(8)}
    export(Registry().variant("drope-tiny"), tmp_path / "normed", LENGTH)
    config = json.loads((tmp_path / "normed/config.json").read_text())
    assert (config["model_type"], config["attention_type"]) == ("llama_drope", "qk_norm_nope")
    before = load_file(checkpoint_folder(Registry().variant("drope-tiny").source) / "model.safetensors")
    after = load_file(tmp_path / "normed/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {f"model.layers.{layer}.self_attn.q_norm.weight" for layer in range(8)}


@pytest.mark.slow
def test_a_drope_checkpoint_without_norms_becomes_a_stock_llama(tmp_path: Path, plain_tokenizer: Any) -> None:
    tokenizer = plain_tokenizer
    torch.manual_seed(0)
    config = LlamaDropeConfig(
        attention_type="nope", softmax_scale=0.4, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, vocab_size=len(tokenizer),
        initializer_range=0.2, eos_token_id=1, bos_token_id=0, attention_bias=True,
    )  # fmt: skip
    LlamaDropeForCausalLM(config).save_pretrained(tmp_path / "sakana")
    tokenizer.save_pretrained(tmp_path / "sakana")
    variant = Registry().variant(str(tmp_path / "sakana"))
    assert variant.method_name == "drope"
    export(variant, tmp_path / "stock", 1024)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(plain).__name__ == "LlamaForCausalLM"
    ids = [token % 500 + 10 for token in IDS]
    assert greedy(str(tmp_path / "stock"), 1024, ids) == greedy(str(tmp_path / "sakana"), 1024, ids)


def test_what_a_checkpoint_cannot_say_is_refused_with_a_reason(call: Any, tmp_path: Path) -> None:
    for method, reason in (
        ("dynamic-ntk", "follows each prompt's own length"),
        ("crop", "changes the prompts, not the model"),
        ("alibi", "has its own attention code"),
    ):
        code, out, err = call("export", f"{method}-tiny", tmp_path / "x", "--scale", "4x")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert reason in err
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_and_never_writes_over_a_folder(
    call: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    code, out, err = call("export", f"yarn:{tiny_folder}", tmp_path / "x", "--length", "1k")
    assert code == 0, err
    assert f"wrote {tmp_path / 'x'}: yarn-tiny for 1024 tokens, weights in float32" in out
    assert "the likeliest token is the same at 64 of 64" in out
    code, _, err = call("export", f"yarn:{tiny_folder}", tmp_path / "x", "--length", "1k")
    assert (code, err) == (2, f"longctx-bench: {tmp_path / 'x'}: exists already; name a new folder\n")
    code, _, err = call("export", f"yarn:{tiny_folder}", tmp_path / "y", "--length", "1k", "--scale", "2x")
    assert (code, "for one length" in err) == (2, True)


def test_a_checkpoint_that_does_not_reproduce_the_method_is_not_left_behind(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longctx_bench.engines.hf import export as export_module

    monkeypatch.setattr(export_module, "_fold_method", lambda model, *_: model)
    with pytest.raises(UserError, match="does not reproduce yarn-tiny"):
        export(Registry().variant(f"yarn:{tiny_folder}"), tmp_path / "x", 1024)
    assert not list(tmp_path.iterdir())


def test_temperatures_by_head_are_written_into_the_queries(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(checkpoint_folder(Registry().variant("drope-tiny").source), folder)
    rows = [" ".join(f"{0.6 + 0.1 * (layer + head):.2f}" for head in range(5)) for layer in range(8)]
    (folder / "calibration.json").write_text(json.dumps({"temperature": {"heads": {"table": {"2": rows}}}}))
    written = export(Registry().variant(f"drope:{folder}"), tmp_path / "out", 1024)
    # Exporting compares the logits of both; in bfloat16 the products would be rounded.
    assert written.dtype == "float32"
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert 1.0 < written.mark.temperature < 1.2
    name = "model.layers.3.self_attn.q_norm.weight"
    ratio = (after[name] / before[name].float()).reshape(5, -1).mean(dim=1)
    torch.testing.assert_close(ratio, torch.tensor([0.9, 1.0, 1.1, 1.2, 1.3]), rtol=1e-3, atol=1e-3)
