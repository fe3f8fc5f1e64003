"""Memory plans follow what is free when a batch starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from longctx_bench.core.types import Request
from longctx_bench.engines import memory
from longctx_bench.engines.base import MemoryEstimate
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rope_scaling import RoPE
from longctx_bench.models.checkpoint import read_config
from longctx_bench.models.variant import ModelUnderTest

ESTIMATE = MemoryEstimate(
    weights=0, per_token=10, per_prefill_token=10, available=0, flops_per_token=1.0, flops_per_pair=1.0
)


@pytest.mark.parametrize(
    ("free", "cached", "prefill"),
    [
        (10_000_000, 100_000, 749_824),
        (1_300_000, 100_000, 10_496),
        # Others took memory: fewer tokens in the cache, and passes stay as long as a prompt.
        (800_000, 63_000, 4_864),
        (80_000, 5_000, 1_792),
        (1_000, 5_000, 256),
    ],
)
def test_memory_that_others_took_makes_batches_smaller_before_passes_become_short(
    monkeypatch: pytest.MonkeyPatch, free: int, cached: int, prefill: int
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    found = min(100_000, memory.cache_token_budget(ESTIMATE, 5_000, "cuda"))
    assert found == cached
    assert memory.prefill_token_budget(ESTIMATE, found, "cuda") == prefill


@pytest.mark.slow
def test_with_little_free_memory_fewer_prompts_are_decoded_at_a_time(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HFEngine("cpu", "float32", batch_tokens=10_000)
    engine.load(tiny_folder)
    who = ModelUnderTest(BaseModelInfo("tiny", 256, read_config(tiny_folder)), RoPE(), 256)
    requests = [Request(str(index), tuple(range(2, 60 + index)), 8) for index in range(6)]
    limits: list[int | None] = []
    generate = engine.core.generate

    def noted(batch: list[Request], should_stop: object, budget: int, max_batch_tokens: int | None = None) -> object:
        limits.append(max_batch_tokens)
        return generate(batch, should_stop, budget, max_batch_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.core, "generate", noted)
    texts = [[item.text for item in engine.generate(requests, who, lambda *_: False)]]
    estimate = engine.estimate_memory(tiny_folder)
    room = (150 * estimate.per_token + 70 * estimate.per_prefill_token) / 0.85
    monkeypatch.setattr(memory, "free_memory", lambda device: int(room))
    texts.append([item.text for item in engine.generate(requests, who, lambda *_: False)])
    assert texts[0] == texts[1]
    assert limits[0] == 10_000
    assert limits[1] is not None
    assert 140 < limits[1] < 170
