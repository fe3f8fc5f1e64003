"""Prompts that begin alike: read once, in batches that depend on the requests alone, with the same tokens."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longctx_bench.core.types import Request
from longctx_bench.engines.batching import batch_by_tokens, num_total_tokens
from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.engines.hf.engine_core import EngineCore
from longctx_bench.engines.hf.model_runner import DecodeStep, Step
from longctx_bench.engines.hf.prefill_scheduler import MAX_LOGITS_PER_PASS, _fits
from longctx_bench.engines.prefix_groups import common_prefix_length, group_by_prefix
from longctx_bench.methods.alibi import ALiBi
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.rope_scaling import DynamicNTK, YaRN
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest

NEW = 10


def asked(stems: int, ends: int, stem: int = 80, equal: bool = False) -> list[Request]:
    """Return requests in a shuffled order: ``ends`` endings on each of ``stems`` beginnings."""
    rng = random.Random(3)
    made = []
    for _ in range(stems):
        beginning = [rng.randrange(2, 500) for _ in range(stem)]
        for end in range(ends):
            tail = [rng.randrange(2, 500) for _ in range(9 if equal else 4 + 3 * end)]
            made.append((*beginning, *tail))
    rng.shuffle(made)
    return [Request(f"{place:06d}", ids, NEW) for place, ids in enumerate(made)]


def test_groups_are_what_begins_alike() -> None:
    requests = asked(4, 3)
    groups = group_by_prefix(requests)
    assert sorted(place for group in groups for place in group) == list(range(12))
    assert sorted(map(len, groups)) == [3, 3, 3, 3]
    for group in groups:
        assert len({tuple(requests[place].input_ids[:80]) for place in group}) == 1
    assert common_prefix_length((1, 2, 3), (1, 2, 4)) == 2
    assert common_prefix_length((1, 2), (1, 2, 4)) == 2
    assert common_prefix_length((), (1,)) == 0


@pytest.mark.parametrize("equal_lengths", [False, True])
def test_batches_hold_each_request_once_within_the_budget(equal_lengths: bool) -> None:
    requests = asked(5, 4) + [replace(r, example_id=f"x{r.example_id}") for r in asked(9, 1, stem=50)]
    batches = batch_by_tokens(requests, 330, equal_lengths)
    assert sorted(r.example_id for batch in batches for r in batch) == sorted(r.example_id for r in requests)
    assert all(len(batch) == 1 or len(batch) * max(map(num_total_tokens, batch)) <= 330 for batch in batches)
    assert batches == batch_by_tokens(requests, 330, equal_lengths)
    if equal_lengths:
        assert all(len({num_total_tokens(r) for r in batch}) == 1 for batch in batches)
    else:
        together = sum(
            common_prefix_length(a.input_ids, b.input_ids) >= 80 for batch in batches for a, b in pairwise(batch)
        )
        assert together >= 9


def test_what_begins_alike_is_not_parted_by_the_budget() -> None:
    alone = [Request(f"x{r.example_id}", r.input_ids[::-1], NEW) for r in asked(3, 1, stem=50)]
    requests = asked(3, 4) + alone
    for budget in (150, 260):
        batches = batch_by_tokens(requests, budget, shared_prefix_budget=500)
        assert sorted(r.example_id for batch in batches for r in batch) == sorted(r.example_id for r in requests)
        stems = [{r.input_ids[:80] for r in batch if len(r.input_ids) > 80} for batch in batches]
        assert sum(map(len, stems)) == 3, "each beginning is in one batch"
        for batch in batches:
            held = len(batch) * max(map(num_total_tokens, batch))
            assert held <= budget or len(batch) == 1 or (held <= 500 and len({r.input_ids[:80] for r in batch}) == 1)
    narrow = batch_by_tokens(requests, 150, shared_prefix_budget=300)
    assert all(len(batch) * max(map(num_total_tokens, batch)) <= 300 for batch in narrow), "nor outgrows its own"
    assert batch_by_tokens(requests, 260) == batch_by_tokens(requests, 260, shared_prefix_budget=260)


def test_what_shares_nothing_is_batched_longest_first() -> None:
    requests = asked(9, 1, stem=50)
    sizes = [num_total_tokens(r) for batch in batch_by_tokens(requests, 150) for r in batch]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("method", [YaRN(), ALiBi(), DynamicNTK()], ids=lambda method: type(method).__name__)
def test_shared_beginnings_are_read_once_and_change_no_token(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, method: Method, equal: bool
) -> None:
    requests = asked(3, 4, equal=equal)
    base = BaseModelInfo("tiny", 256, json.loads((tiny_folder / "config.json").read_text()))
    who = ModelUnderTest(base, method, 512)
    model, tokenizer = load_model(tiny_folder, "float32", "cpu"), load_tokenizer(tiny_folder)
    expected, drafts = {}, {}
    for request in requests:
        ids = torch.tensor([request.input_ids])
        with apply_method(model, who, num_total_tokens(request) if method.per_prompt else 512):
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
        drafts[request.example_id] = tuple(whole[0, len(request.input_ids) :].tolist())
        expected[request.example_id] = tokenizer.decode(drafts[request.example_id], skip_special_tokens=True)
    made = HFEngine(device="cpu", dtype="float32", batch_tokens=100_000)
    made.load(tiny_folder)
    read: list[int] = []
    forward = made.core.runner.forward

    def counted(cache: Any, ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        read.append(ids.numel())
        return forward(cache, ids, *rest, **more)

    monkeypatch.setattr(made.core.runner, "forward", counted)
    half = [replace(r, drafts=(drafts[r.example_id][:5],)) if int(r.example_id) % 2 else r for r in requests]
    whole_drafts = [replace(r, drafts=(drafts[r.example_id],)) for r in requests]
    for variant in (requests, half, whole_drafts):
        read.clear()
        found = {}
        for batch in made.batches(variant, method.per_prompt):
            found |= {item.example_id: item.text for item in made.generate(batch, who, lambda *_: False)}
        assert found == expected
    tails = sum(len(r.input_ids) - 80 + NEW - 1 for r in requests)
    alone = 3 if equal or not method.per_prompt else 12
    assert sum(read) == alone * 80 + tails


def loaded(folder: Path, max_prefill_tokens: int, max_finished_share: float = 0.0) -> tuple[HFEngine, EngineCore]:
    """Return an engine that schedules its batches as on a GPU."""
    made = HFEngine(device="cpu", dtype="float32", batch_tokens=100_000)
    made.load(folder)
    config = made.core.config
    config.max_prefill_tokens, config.max_finished_share = max_prefill_tokens, max_finished_share
    return made, made.core


def test_ragged_prompts_are_read_together_without_a_mask(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [replace(r, input_ids=r.input_ids[place:]) for place, r in enumerate(asked(7, 1, stem=20))]
    base = BaseModelInfo("tiny", 256, json.loads((tiny_folder / "config.json").read_text()))
    who = ModelUnderTest(base, YaRN(), 512)
    texts, shapes = [], []
    for at_once in (1, 10_000):
        made, core = loaded(tiny_folder, at_once)
        seen: list[tuple[int, bool]] = []
        forward = core.runner.forward

        def noted(
            cache: Any,
            ids: torch.Tensor,
            attention_mask: torch.Tensor | None,
            logits_to_keep: int,
            forward: Any = forward,
            seen: list[tuple[int, bool]] = seen,
        ) -> torch.Tensor:
            seen.append((len(ids), attention_mask is None))
            result: torch.Tensor = forward(cache, ids, attention_mask, logits_to_keep)
            return result

        monkeypatch.setattr(core.runner, "forward", noted)
        [batch] = made.batches(requests, False)
        texts.append([item.text for item in made.generate(batch, who, lambda *_: False)])
        shapes.append(seen)
    assert shapes[0][:7] == [(1, True)] * 7
    assert shapes[1][0] == (7, True), "one pass for all prompts, with nothing masked"
    assert texts[0] == texts[1]


def test_finished_rows_stay_until_they_are_many(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [replace(r, max_new_tokens=3 + 2 * place) for place, r in enumerate(asked(4, 1, stem=20))]
    base = BaseModelInfo("tiny", 256, json.loads((tiny_folder / "config.json").read_text()))
    who = ModelUnderTest(base, YaRN(), 512)
    texts, rows = [], []
    for idle in (0.0, 0.5):
        made, core = loaded(tiny_folder, 10_000, idle)
        held: list[int] = []
        execute = core.runner.execute

        def noted(step: Step, execute: Any = execute, held: list[int] = held) -> Any:
            if isinstance(step, DecodeStep):
                held.append(len(step.batch.states))
            return execute(step)

        monkeypatch.setattr(core.runner, "execute", noted)
        [batch] = made.batches(requests, False)
        texts.append([(item.text, item.new_tokens) for item in made.generate(batch, who, lambda *_: False)])
        rows.append(held)
    assert texts[0] == texts[1]
    assert set(rows[0]) == {4, 3, 2, 1}
    assert set(rows[1]) == {4, 1}, "copied without the finished ones when those are three of four"


@pytest.mark.parametrize(("vocab_size", "fits"), [(2**26, True), (2**26 + 1, False)])
def test_prompts_may_use_the_last_logit_of_a_pass(vocab_size: int, fits: bool) -> None:
    states: list[Any] = [SimpleNamespace(request=Request(name, (3, 4, 5), 4), remaining_tokens=4) for name in "ab"]
    assert MAX_LOGITS_PER_PASS == 2**27
    assert _fits(states, 6, vocab_size) is fits
    assert not _fits(states, 5, 10)
