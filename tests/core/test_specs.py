"""Every shipped YAML is valid, and what it names exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.metrics import METRICS
from longctx_bench.registry import Registry

REGISTRY = Registry()


@pytest.mark.parametrize("name", REGISTRY.tasks)
def test_shipped_tasks(name: str) -> None:
    spec = REGISTRY.tasks[name]
    assert spec.metric in METRICS
    assert spec.description
    REGISTRY.benchmark(spec)


@pytest.mark.parametrize("name", REGISTRY.groups)
def test_shipped_groups(name: str) -> None:
    assert len(REGISTRY.select_tasks(name)) == len(REGISTRY.groups[name])


@pytest.mark.parametrize("name", REGISTRY.methods)
def test_shipped_methods(name: str) -> None:
    spec = REGISTRY.methods[name]
    assert spec.description
    assert spec.paper.startswith("https://")
    if name in ("alibi", "rnope-swa") or spec.checkpoint:
        with pytest.raises(UserError, match=f"smollm-360m has no {spec.checkpoint or name} checkpoint"):
            REGISTRY.variant(f"{name}-smollm-360m")
        return
    needed = {"drope-uniform": "retrieval"}.get(name, name.rpartition("-")[2])
    if needed in ("retrieval", "perplexity", "heads"):
        with pytest.raises(UserError, match=f"{name}-smollm-360m: .*no {needed} calibration"):
            REGISTRY.variant(f"{name}-smollm-360m")
        return
    method = REGISTRY.variant(f"{name}-smollm-360m").method
    config = {"model_type": "llama", "rope_theta": 10000.0, "hidden_size": 64, "num_attention_heads": 4}
    base = BaseModelInfo("x", 128, config)
    if name == "longrope":
        with pytest.raises(UserError, match="longrope needs 'short_factor'"):
            method.model_overrides(base, 512)
        return
    assert name in ("rope", "crop") or method.model_overrides(base, 512)["max_position_embeddings"] == 512


@pytest.mark.parametrize("name", REGISTRY.models)
def test_shipped_models(name: str) -> None:
    assert REGISTRY.variant(name).model.name == name
    assert REGISTRY.models[name].licence != "unknown"


def test_the_forms_of_a_model_name() -> None:
    assert REGISTRY.variant("dynamic-ntk-smollm2-135m").method_name == "dynamic-ntk"
    assert REGISTRY.variant("yarn:smollm2-135m").name == "yarn-smollm2-135m"
    assert REGISTRY.variant("smollm2-135m").name == "rope-smollm2-135m"
    assert REGISTRY.variant("drope-smollm-360m").source.hub == "SakanaAI/SmolLM-360M-DroPE"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("entry", "wrong", "right"),
    [
        ("sourec: {embedded: rope-tiny}\n  original_length: 512", "sourec", "source"),
        ("source: {embedded: rope-tiny}\n  original_lenght: 512", "original_lenght", "original_length"),
        ("source: {hub: a/b, revison: main}\n  original_length: 512", "source.revison", "revision"),
        ("source: {path: a, alais: b}\n  original_length: 512", "source.alais", "alias"),
        ("source: {embedded: rope-tiny}\n  original_length: 512\n  checkpoints: {drope: {source: {path: a}, parms: 1}}",
         "checkpoints.drope.parms", "params"),
    ],
)  # fmt: skip
def test_a_misspelt_key_gets_a_suggestion_at_any_depth(entry: str, wrong: str, right: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(f"mine:\n  {entry}\n")
    with pytest.raises(UserError, match=f"unknown key '{wrong}'; did you mean '{right}'"):
        Registry([tmp_path])
