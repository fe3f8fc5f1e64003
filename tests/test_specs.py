"""Every shipped YAML is valid, and what it names exists."""

from __future__ import annotations

import pytest

from longctx_bench.methods.base import Base
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
    bases = [base for base in REGISTRY.models.values() if name in base.checkpoints]
    variant = (
        REGISTRY.variant(f"{name}-{bases[0].name if bases else 'smollm2-135m'}") if bases or name != "drope" else None
    )
    if variant is not None and name != "longrope":
        config = {"rope_theta": 10000.0, "hidden_size": 64, "num_attention_heads": 4}
        variant.method.model_overrides(Base("x", 128, config), 512)


@pytest.mark.parametrize("name", REGISTRY.models)
def test_shipped_models(name: str) -> None:
    assert REGISTRY.variant(name).model.name == name
    assert REGISTRY.models[name].licence != "unknown"


def test_the_forms_of_a_model_name() -> None:
    assert REGISTRY.variant("dynamic-ntk-smollm2-135m").method_name == "dynamic-ntk"
    assert REGISTRY.variant("yarn:smollm2-135m").name == "yarn-smollm2-135m"
    assert REGISTRY.variant("smollm2-135m").name == "rope-smollm2-135m"
    assert REGISTRY.variant("drope-smollm-360m").source.hub == "SakanaAI/SmolLM-360M-DroPE"  # type: ignore[union-attr]
