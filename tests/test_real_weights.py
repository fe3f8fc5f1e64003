"""SmolLM2-135M with its real weights on real text, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from longctx_bench import load, run

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("smollm2_folder")
def test_the_untouched_model_finds_the_needle(tmp_path: Path) -> None:
    """The 40 trials at 2,048 tokens are in results/reference/smollm2-135m; here eleven depths at 512."""
    frame = run("smollm2-135m", "niah", length=[512], limit=11, device="cpu", out=tmp_path)
    assert frame["score"][0] >= 0.9


@pytest.mark.usefixtures("smollm2_folder")
def test_load_gives_a_model_ready_for_any_loop() -> None:
    model, tokenizer = load("yarn-smollm2-135m", length=16384, dtype="float32", device="cpu")
    assert model.config.rope_parameters["factor"] == 2.0
    ids = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in text


@pytest.mark.usefixtures("smollm2_folder")
def test_the_shipped_difference_gives_a_model_without_positions_that_finds_the_needle(tmp_path: Path) -> None:
    """506 trials a length are in results/reference/smollm; here eleven depths at a quarter of the training context."""
    frame = run("drope-smollm", "niah", length=[512], limit=11, device="cpu", out=tmp_path)
    assert frame["score"][0] >= 0.9


@pytest.mark.usefixtures("smollm2_folder")
def test_its_control_keeps_rotary_positions_of_a_shorter_context() -> None:
    model, _ = load("pi-smollm", length=4096, dtype="float32", device="cpu")
    assert model.config.rope_parameters == {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
