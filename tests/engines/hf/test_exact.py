"""Exact mode is plain ``generate``; every other way of decoding, with any switch off, gives its tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Generation, Request
from longctx_bench.engines import make_engine
from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.engines.hf.model_runner import DecodeStep, PrefillStep
from longctx_bench.engines.hf.scheduler import Scheduler
from longctx_bench.engines.request_state import RequestState, RequestStatus
from longctx_bench.methods.alibi import ALiBi
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.jet_long import JetLong
from longctx_bench.methods.rope_scaling import DynamicNTK, YaRN
from longctx_bench.models.variant import ModelUnderTest

SWITCHES = ("reference_drafts", "prompt_lookup", "prefix_sharing", "cuda_graph", "kernels")
NEW = 16


def never(example_id: str, text: str) -> bool:
    return False


def engine(folder: Path, **options: Any) -> HFEngine:
    made = HFEngine("cpu", "float32", **options)
    made.load(folder)
    return made


def under_test(folder: Path, method: Method) -> ModelUnderTest:
    return ModelUnderTest(BaseModelInfo("tiny", 256, json.loads((folder / "config.json").read_text())), method, 512)


def requests() -> list[Request]:
    """Prompts with a common prefix, of which some repeat themselves."""
    generator = torch.Generator().manual_seed(11)
    prefix = torch.randint(2, 500, (70,), generator=generator).tolist()
    prompts = [[*prefix, *torch.randint(2, 500, (9 + 4 * i,), generator=generator).tolist()] for i in range(4)]
    prompts += [[7, 8, 9, 10] * 12, torch.randint(2, 500, (31,), generator=generator).tolist()]
    return [Request(f"{i:06d}", tuple(ids), NEW) for i, ids in enumerate(prompts)]


def generate(made: HFEngine, asked: list[Request], model: ModelUnderTest, should_stop: Any = never) -> list[Generation]:
    found = [
        replace(item, seconds=0.0)
        for batch in made.batches(asked, model.method.per_prompt)
        for item in made.generate(batch, model, should_stop)
    ]
    return sorted(found, key=lambda item: item.example_id)


def generated_tokens(folder: Path, model: ModelUnderTest) -> list[list[int]]:
    """Return what ``generate`` itself gives, token by token."""
    loaded = load_model(folder, "float32", "cpu")
    with apply_method(loaded, model, 512), torch.inference_mode():
        prompts = [torch.tensor([request.input_ids]) for request in requests()]
        rows = [loaded.generate(ids, do_sample=False, max_new_tokens=NEW)[0, ids.shape[1] :] for ids in prompts]  # type: ignore[operator]
    return [row.tolist() for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("method", [YaRN(), ALiBi(), DynamicNTK()], ids=lambda method: type(method).__name__)
def test_every_switch_gives_the_tokens_of_exact_mode(tiny_folder: Path, method: Method) -> None:
    model = under_test(tiny_folder, method)
    exact = generate(engine(tiny_folder, exact=True), requests(), model)
    drafted = [
        replace(request, drafts=(tuple(tokens[: 3 + i]),))
        for i, (request, tokens) in enumerate(zip(requests(), generated_tokens(tiny_folder, model), strict=True))
    ]
    for off in ((), *((name,) for name in SWITCHES), SWITCHES):
        made = engine(tiny_folder, batch_tokens=4096, **dict.fromkeys(off, False))
        assert generate(made, drafted, model) == exact, off


@pytest.mark.slow
def test_prompts_for_which_jet_long_is_the_same_share_a_batch(tiny_folder: Path) -> None:
    model = under_test(tiny_folder, JetLong())
    asked = [replace(request, input_ids=request.input_ids * 5) for request in requests()[:4]]
    lengths = {num_total_tokens(request) for request in asked}
    assert len(lengths) == 4
    assert not model.method.needs_equal_lengths(model.base, lengths)
    made = engine(tiny_folder, batch_tokens=4096)
    [batch] = made.batches(asked, per_prompt=False)
    together = sorted(made.generate(batch, model, never), key=lambda item: item.example_id)
    expected = generate(engine(tiny_folder, exact=True), asked, model)
    assert [item.text for item in together] == [item.text for item in expected]


@pytest.mark.slow
def test_all_ends_of_a_request_are_those_of_exact_mode(tiny_folder: Path) -> None:
    model, exact, ours = under_test(tiny_folder, YaRN()), engine(tiny_folder, exact=True), engine(tiny_folder)
    plain = generate(exact, requests(), model)
    ids = generated_tokens(tiny_folder, model)[0]
    needles = {item.example_id: item.text[:5] for item in plain}
    ends: list[dict[str, Any]] = [
        {"stop_ids": frozenset(ids[2:4])},
        {"stop_ids": frozenset(ids), "min_new_tokens": 5},
        {"max_new_tokens": 1},
    ]
    reasons = set()
    for end in ends:
        for eos in (frozenset({1}), frozenset(ids[1:3])):
            for should_stop in (never, lambda name, text: needles[name] in text):
                exact.core.runner.eos_token_ids = ours.core.runner.eos_token_ids = eos
                asked = [replace(request, **end) for request in requests()]
                expected = generate(exact, asked, model, should_stop)
                reasons |= {item.finish_reason for item in expected}
                assert generate(ours, asked, model, should_stop) == expected
    assert reasons == {"eos", "stop", "settled", "length"}


def test_exact_mode_calls_generate_once_for_each_prompt(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[tuple[int, ...]] = []
    plain = LlamaForCausalLM.generate

    def counted(self: Any, ids: torch.Tensor, **options: Any) -> Any:
        prompts.append(tuple(ids.shape))
        return plain(self, ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", counted)
    made = engine(tiny_folder, exact=True)
    monkeypatch.setattr(made.core, "generate", None)
    generate(made, requests(), under_test(tiny_folder, YaRN()))
    assert sorted(prompts) == sorted((1, len(request.input_ids)) for request in requests())


def test_a_checkpoints_generation_config_is_no_part_of_greedy_decoding(tiny_folder: Path) -> None:
    model, made = under_test(tiny_folder, YaRN()), engine(tiny_folder, exact=True)
    expected = generate(made, requests(), model)
    generation_config = made.model.generation_config
    assert generation_config is not None
    generation_config.repetition_penalty, generation_config.no_repeat_ngram_size = 5.0, 2
    generation_config.do_sample, generation_config.temperature = True, 3.0
    assert generate(made, requests(), model) == expected


@pytest.mark.slow
def test_exact_mode_is_an_engine_argument_that_results_name(tmp_path: Path, call: Any) -> None:
    made = make_engine("hf", {"exact": "true"}, device="cpu", dtype="float32")
    assert made.settings()["exact"] is True
    assert "exact" not in make_engine("hf", device="cpu").settings()
    off = make_engine("hf", {"prefix_sharing": "false", "kernels": "false"}, device="cpu").settings()
    assert off["switched_off"] == ["kernels", "prefix_sharing"]
    with pytest.raises(UserError, match="exact=true.*--compile"):
        make_engine("hf", {"exact": "true"}, compiled=True)
    command = ("run", "--model", "drope-tiny", "--tasks", "niah", "--length", "512", "--limit", "3")
    command += ("--device", "cpu", "--dtype", "float32", "--out")
    assert call(*command, tmp_path / "plain")[0] == 0
    assert call(*command, tmp_path / "exact", "--engine-arg", "exact=true")[0] == 0
    [ours], [exact] = (list((tmp_path / name).rglob("records.jsonl")) for name in ("plain", "exact"))
    assert ours.read_bytes() == exact.read_bytes()


@torch.inference_mode()
def test_the_life_of_a_request(tiny_folder: Path) -> None:
    """The loop by hand: schedule, execute, update."""
    core = engine(tiny_folder).core
    states = [RequestState(request) for request in requests()[4:]]
    scheduler = Scheduler(states, core.runner, core.tokenizer, core.config, never, 10**6)
    lives: list[list[RequestStatus]] = [[state.status] for state in states]
    kinds = []
    while scheduler.has_unfinished():
        step = scheduler.schedule()
        assert step is not None, "nothing is in flight"
        kinds.append(type(step))
        for when in ("scheduled", "updated"):
            if when == "updated":
                scheduler.update(step, core.runner.execute(step))
            for state, life in zip(states, lives, strict=True):
                if state.status is not life[-1]:
                    life.append(state.status)
    assert lives == [list(RequestStatus)] * 2, "waiting, prefilling, running, finished"
    assert kinds[:2] == [PrefillStep] * 2
    assert set(kinds[2:]) == {DecodeStep}
    assert [state.text for state in core.generate(requests()[4:], never, 10**6)] == [state.text for state in states]
