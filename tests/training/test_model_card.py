from __future__ import annotations

from typing import Any

import yaml

from longctx_bench.training.model_card import model_card
from longctx_bench.training.recipe import read_recipe


def header(name: str) -> dict[str, Any]:
    found = yaml.safe_load(model_card(read_recipe(name), {"parameters": "1"}).split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_a_card_names_what_the_model_is_derived_from() -> None:
    recalibrated = read_recipe("drope-smollm-360m")
    said = header("drope-smollm-360m")
    assert said["base_model"] == recalibrated.base
    assert said.get("datasets", []) == sorted({source.hub for source in recalibrated.data if source.hub})
    assert "base_model" not in header("rope-tiny")
    assert said["tags"] == ["longctx-bench", "long-context", "drope"]
