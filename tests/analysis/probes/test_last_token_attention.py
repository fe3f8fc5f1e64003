"""The attention of the last token against transformers' own, and the probe of it on the shipped models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longctx_bench.analysis.probes.last_token_attention import (
    BINS,
    NEAR,
    MeanAttention,
    Prompt,
    attention_by_length,
    choose_heads,
    mean_attention,
    needle_prompts,
    without_scaling,
)
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.engines.hf.attention_capture import last_token_attention
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.models.checkpoint import load_tokenizer, read_config
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

IDS = torch.randint(26, 5000, (300,), generator=torch.Generator().manual_seed(3)).tolist()


ROUNDING = 5e-5
"""Two ways to the same fp32 weights: with QK-norm, scores reach a hundred, and their last bits 1e-5. Those of one layer
of ``drope-tiny`` reach 7,000 with its temperatures for 2,048 tokens, where the last bits are too large: it is compared
at 1,024."""


def eager(model: Any, ids: list[int]) -> np.ndarray:
    """Return the last row of what transformers' eager attention gives with output_attentions."""
    model.config._attn_implementation = "eager"
    caught: list[torch.Tensor] = []
    # output_attentions looks for transformers' own layer classes: DroPE's layers return their weights all the same.
    hooks = [
        layer.self_attn.register_forward_hook(lambda *call: caught.append(call[2][1])) for layer in model.model.layers
    ]
    with torch.inference_mode():
        found = model(torch.tensor([ids]), output_attentions=True).attentions or caught
    for hook in hooks:
        hook.remove()
    model.config._attn_implementation = "sdpa"
    return torch.stack([layer[0, :, -1] for layer in found]).numpy()


@pytest.mark.parametrize("member", ["rope", "drope"])
def test_rows_equal_transformers_eager_attention(member: str) -> None:
    model = load_model(shipped_checkpoint_folder(f"{member}-tiny"), "float32", "cpu")
    ours = last_token_attention(model, IDS)
    assert ours.shape == (8, 5, 300)
    assert model.config._attn_implementation == "sdpa", "undone"
    np.testing.assert_allclose(ours, eager(model, IDS), atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "length"), [("yarn-tiny", 2048), ("drope-tiny", 1024), ("drope-plain-tiny", 2048), ("pi-tiny", 2048)]
)
def test_rows_follow_the_method_that_is_applied(name: str, length: int) -> None:
    variant = Registry().variant(name)
    folder = shipped_checkpoint_folder(name if name.startswith("drope") else "rope-tiny")
    base = variant.base(read_config(folder))
    model = load_model(folder, "float32", "cpu")
    with apply_method(model, ModelUnderTest(base, variant.method, length), length):
        changed = last_token_attention(model, IDS)
        np.testing.assert_allclose(changed, eager(model, IDS), atol=ROUNDING)
    assert np.abs(changed - last_token_attention(model, IDS)).max() > 0.01


def test_heads_that_share_keys_have_rows_of_their_own(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, "float32", "cpu")
    ids = [token % 500 for token in IDS]
    ours = last_token_attention(model, ids)
    np.testing.assert_allclose(ours, eager(model, ids), atol=ROUNDING)
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("member", ["rope", "drope"])
def test_rows_sum_to_one(member: str, length: int) -> None:
    model = load_model(shipped_checkpoint_folder(f"{member}-tiny"), "float32", "cpu")
    rows = last_token_attention(model, (IDS * 4)[:length])
    assert rows.shape == (8, 5, length)
    np.testing.assert_allclose(rows.sum(axis=-1), 1.0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("alibi-tiny", "attends by 'longctx_bench_alibi', which its method brought"),
        ("rnope-swa-tiny", "has layers that attend to a window only"),
        ("crop-tiny", "crop-tiny: crop truncates the prompt"),
    ],
)
def test_other_attention_is_refused(call: Any, tmp_path: Path, essays: Path, name: str, line: str) -> None:
    code, _, error = call(
        "probe",
        "attention",
        name,
        "--scale",
        "2x",
        "--limit",
        "1",
        "--out",
        tmp_path,
        "--data",
        f"ruler-essays={essays}",
    )
    assert (code, line in error) == (2, True), error
    assert not (tmp_path / "probes").exists()


def test_prompts_mark_the_needles_key_and_value(essays: Path) -> None:
    registry = Registry(local_data={"ruler-essays": essays})
    encoder = PromptEncoder(load_tokenizer(shipped_checkpoint_folder("rope-tiny")))
    benchmark: Any = registry.benchmark(registry.tasks["niah"])
    [prompt, other] = needle_prompts(benchmark, encoder, 512, 2, 42, 30.0)
    example = next(e for e in (benchmark.example(encoder, 512, 32, 42, i) for i in range(11)) if e.depths == (30.0,))
    assert list(prompt.ids) == encoder.encode(example.prompt, example.answer_prefix)
    assert prompt.ids != other.ids
    marked = encoder.tokenizer.decode([prompt.ids[place] for place in prompt.needle])
    key = example.answer_prefix.partition(" for ")[2].partition(" mentioned")[0]
    assert marked.replace(" ", "") == f"{key}{example.references[0]}".replace(" ", "")
    assert 0.2 < prompt.needle[0] / len(prompt.ids) < 0.45
    with pytest.raises(UserError, match="--depth 33: not on the grid of niah; choose one of 0, 10, 20"):
        needle_prompts(benchmark, encoder, 512, 2, 42, 33.0)


def rows_of(needle: list[float], near: list[float]) -> Any:
    """Attention of one layer of heads over 128 tokens: so much on token 10, on the last one, the rest even."""
    rows = np.zeros((1, len(needle), 128), dtype=np.float32)
    for place, (on_needle, on_last) in enumerate(zip(needle, near, strict=True)):
        rows[0, place] = (1 - on_needle - on_last) / 128
        rows[0, place, 10] += on_needle
        rows[0, place, -1] += on_last
    return rows


def test_masses_and_profiles() -> None:
    prompt = Prompt(list(range(128)), [10])
    found = mean_attention(lambda *_: rows_of([0.5, 0.0], [0.25, 0.75]), None, 128, [prompt, prompt])  # type: ignore[arg-type]
    even = [0.25 / 128, 0.25 / 128]
    assert found.needle[0].tolist() == pytest.approx([0.5 + even[0], even[1]])
    assert found.near[0].tolist() == pytest.approx([0.25 + NEAR * even[0], 0.75 + NEAR * even[1]])
    assert found.profile.shape == (1, 2, BINS)
    assert found.profile.sum(axis=-1)[0].tolist() == pytest.approx([1.0, 1.0])
    assert found.profile[0, 0, 5] == pytest.approx(0.5 + 2 * even[0], rel=1e-5)


def test_heads_are_chosen_by_their_attention_at_the_training_context() -> None:
    needle = np.array([[0.1, 0.2], [0.7, 0.0]])
    near = np.array([[0.3, 0.5], [0.9, 0.4]])
    heads = choose_heads(MeanAttention(needle, near, np.zeros((2, 2, BINS))))
    assert heads == {"semantic": (1, 0), "positional": (0, 1)}, "the semantic head is not the positional one too"


def test_scaling_is_what_the_method_adds_with_length() -> None:
    registry = Registry()
    found = {}
    for name in ("rope", "yarn", "pi", "drope", "nope", "nope-retrieval"):
        variant = registry.variant(f"{name}-tiny")
        base = variant.base(read_config(shipped_checkpoint_folder("rope-tiny")))
        plain = without_scaling(variant.method, base, 2048)
        found[name] = None if plain is None else type(plain).__name__
        if name == "drope":
            assert plain is not None
            assert plain.applied_scalar(base, 2048).value == pytest.approx(1.0)  # type: ignore[union-attr]
    assert found == {
        "rope": None,
        "yarn": "RoPE",
        "pi": "RoPE",
        "drope": "DroPE",
        "nope": None,
        "nope-retrieval": "NoPE",
    }


def test_with_and_without_are_measured_at_every_length() -> None:
    variant = Registry().variant("yarn-tiny")
    base = variant.base(read_config(shipped_checkpoint_folder("rope-tiny")))
    seen = []

    def rows(method: Any, length: int, ids: Any) -> Any:
        seen.append((type(method).__name__, length))
        return rows_of([0.5, 0.1], [0.1, 0.6] if type(method).__name__ == "YaRN" else [0.6, 0.1])

    prompt = Prompt(list(range(128)), [10])
    found = attention_by_length(rows, base, variant.method, {1024: [prompt], 512: [prompt]})
    assert found["heads"] == {"positional": [0, 1], "semantic": [0, 0]}
    assert found["scaling"] == "rotary scaling"
    assert [entry["scale"] for entry in found["lengths"]] == [1.0, 2.0]
    assert seen[1:] == [("YaRN", 512), ("RoPE", 512), ("YaRN", 1024), ("RoPE", 1024)]
    last = found["lengths"][1]
    assert last["with"]["positional"]["near"] == pytest.approx(0.6 + 4 * 0.3 / 128)
    assert last["without"]["positional"]["near"] == pytest.approx(0.1 + 4 * 0.8 / 128)


@pytest.mark.slow
def test_the_probe_of_a_shipped_model_ends_in_a_figure(call: Any, tmp_path: Path, essays: Path) -> None:
    code, shown, error = call(
        "probe", "attention", "drope-tiny", "--scale", "2x", "--limit", "2", "--dtype", "float32", "--device", "cpu",
        "--out", tmp_path, "--data", f"ruler-essays={essays}",
    )  # fmt: skip
    assert code == 0, error
    found = json.loads((tmp_path / "probes/attention/drope-tiny.json").read_text())
    assert [entry["length"] for entry in found["lengths"]] == [512, 1024], "1x is always measured"
    at_context, beyond = found["lengths"]
    assert at_context["with"] == at_context["without"], "at 1x the temperature is 1"
    assert beyond["with"] != beyond["without"]
    best = max(value for layer in at_context["with"]["needle_by_head"] for value in layer)
    assert at_context["with"]["semantic"]["needle"] == pytest.approx(best, rel=1e-3)
    assert sum(at_context["with"]["semantic"]["profile"]) == pytest.approx(1.0, abs=1e-2)
    assert found["settings"]["depth"] == 50.0
    code, shown, error = call("figures", tmp_path, "--kind", "attention", "--format", "png,pdf")
    assert (code, len(shown.splitlines())) == (0, 2), error
    assert (tmp_path / "figures/attention-drope-tiny.png").stat().st_size > 20_000


def test_scales_below_the_training_context_are_refused(call: Any, tmp_path: Path) -> None:
    code, _, error = call("probe", "attention", "drope-tiny", "--scale", "0.5x", "--out", tmp_path)
    assert (code, "expected multiples of at least 1x" in error) == (2, True)
