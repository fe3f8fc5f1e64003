"""Speculative decoding: fewer forward passes, and never another token than ``generate`` gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx_bench import run
from longctx_bench.core.types import Generation, Request
from longctx_bench.engines import memory
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.engines.hf.prompt_lookup import PromptLookupDrafter
from longctx_bench.methods.alibi import ALiBi
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.mrrope import MrRoPEPro
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import RoPE, YaRN
from longctx_bench.models.checkpoint import checkpoint_folder, load_tokenizer, read_config
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.runner.request_builder import RequestBuilder
from longctx_bench.store.run_store import ResultStore

NEW = 14


def engine(folder: Path, **settings: Any) -> HFEngine:
    made = HFEngine(device="cpu", dtype="float32", **{"batch_tokens": 100_000, **settings})
    made.load(folder)
    return made


def contestant(folder: Path, method: Method) -> ModelUnderTest:
    return ModelUnderTest(BaseModelInfo("tiny", 256, json.loads((folder / "config.json").read_text())), method, 512)


def plain(folder: Path, who: ModelUnderTest, sizes: Sequence[int]) -> list[tuple[Request, list[int]]]:
    """Return random prompts and what ``model.generate`` writes after each."""
    generator = torch.Generator().manual_seed(7)
    model = load_model(folder, "float32", "cpu")
    made = []
    with apply_method(model, who, 512):
        for place, size in enumerate(sizes):
            ids = torch.randint(2, 500, (1, size), generator=generator)
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
            made.append((Request(f"{place:06d}", tuple(ids[0].tolist()), NEW), whole[0, size:].tolist()))
    return made


def told(made: HFEngine, asked: Sequence[Request], who: ModelUnderTest, settled: Any = lambda *_: False) -> list[Any]:
    found: list[Generation] = []
    for batch in made.batches(asked, False):
        found += made.generate(batch, who, settled)
    return sorted((g.example_id, g.text, g.prompt_tokens, g.new_tokens, g.finish_reason) for g in found)


def passes(made: HFEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the tokens of each forward pass from here on."""
    widths: list[int] = []
    forward = made.core.runner.forward

    def counted(cache: Any, ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        widths.append(ids.shape[1])
        return forward(cache, ids, *rest, **more)

    monkeypatch.setattr(made.core.runner, "forward", counted)
    return widths


def drafts_of(right: list[int], place: int) -> tuple[int, ...]:
    """Return a draft that is right, right at first, wrong, too long or missing."""
    wrong = (right[4] + 1) % 500
    kinds = [right, [*right[:4], wrong, *right[5:]], [wrong, *right], [*right, 3, 4, 5], [], right[:1], right[:5]]
    return tuple(kinds[place % len(kinds)])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[40, 61, 90, 47, 52, 77, 90], [64] * 7], ids=["ragged", "equal"])
@pytest.mark.parametrize("method", [YaRN(), NoPE(), ALiBi()], ids=lambda method: type(method).__name__)
def test_no_draft_changes_a_token(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, method: Method, sizes: list[int]
) -> None:
    who = contestant(tiny_folder, method)
    cases = plain(tiny_folder, who, sizes)
    tokenizer = load_tokenizer(tiny_folder)
    expected = [
        (request.example_id, tokenizer.decode(right, skip_special_tokens=True), len(request.input_ids), len(right))
        for request, right in cases
    ]
    for shift in range(3):
        asked = [replace(request, drafts=(drafts_of(right, i + shift),)) for i, (request, right) in enumerate(cases)]
        alone, together, padded = (engine(tiny_folder) for _ in range(3))
        padded.core.config.max_prefill_tokens, padded.core.config.max_finished_share = 10_000, 0.5
        for made in (alone, together, padded):
            assert [row[:4] for row in told(made, asked, who)] == expected
    monkeypatch.setattr(memory, "prefill_token_budget", lambda *_: 33)
    assert [row[:4] for row in told(together, asked, who)] == expected


@pytest.mark.slow
def test_every_way_to_end_is_the_same_with_drafts(tiny_folder: Path) -> None:
    who = contestant(tiny_folder, YaRN())
    cases = plain(tiny_folder, who, [40, 61, 90, 47, 52, 77, 90])
    made = engine(tiny_folder)
    tokenizer = load_tokenizer(tiny_folder)
    ends = [
        {},
        {"stop_ids": frozenset(right[3] for _, right in cases)},
        {"stop_ids": frozenset(right[3] for _, right in cases), "min_new_tokens": 6},
        {"max_new_tokens": 1},
        {"max_new_tokens": 5},
    ]
    reasons = set()
    for end in ends:
        for eos in (frozenset({1}), frozenset(right[2] for _, right in cases[:3])):
            made.core.runner.eos_token_ids = eos
            for settles in (False, True):
                texts = {request.example_id: tokenizer.decode(right[:4]) for request, right in cases}

                def settled(name: str, text: str, at: bool = settles, texts: dict[str, str] = texts) -> bool:
                    return at and texts[name] in text

                bare = [replace(request, **end) for request, _ in cases]
                expected = told(made, bare, who, settled)
                reasons |= {row[4] for row in expected}
                for shift in range(2):
                    drafted = [
                        replace(request, drafts=(drafts_of(right, place + shift),))
                        for place, (request, (_, right)) in enumerate(zip(bare, cases, strict=True))
                    ]
                    assert told(made, drafted, who, settled) == expected
    assert reasons == {"eos", "stop", "settled", "length"}


@pytest.mark.slow
def test_a_right_draft_costs_one_pass(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = contestant(tiny_folder, YaRN())
    cases = plain(tiny_folder, who, [40, 61, 90])
    made = engine(tiny_folder)
    widths = passes(made, monkeypatch)
    told(made, [replace(request, drafts=(tuple(right),)) for request, right in cases], who)
    assert sorted(widths) == [size + NEW - 1 for size in (40, 61, 90)]


@pytest.mark.slow
def test_models_whose_cache_cannot_be_cut_decode_without_drafts(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    window = MistralConfig(**shape, num_key_value_heads=2, vocab_size=600, sliding_window=32, eos_token_id=1)
    MistralForCausalLM(window).save_pretrained(tmp_path)
    load_tokenizer(tiny_folder).save_pretrained(tmp_path)
    who = contestant(tmp_path, RoPE())
    made = engine(tmp_path, batch_tokens=1)
    cases = plain(tmp_path, who, [40, 90])
    widths = passes(made, monkeypatch)
    bare = told(made, [request for request, _ in cases], who)
    drafted = told(made, [replace(request, drafts=(tuple(right),)) for request, right in cases], who)
    assert drafted == bare
    assert max(widths) == 90


@pytest.mark.slow
@pytest.mark.parametrize("method", [RoPE(), MrRoPEPro()], ids=lambda method: type(method).__name__)
def test_frequencies_that_the_cells_length_decides_take_drafts(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    """A base with lists of its own, which transformers would switch at 96 tokens, and a method that is a list."""
    folder = tiny_folder
    if isinstance(method, RoPE):
        factors = {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "factor": 2.0}
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 96, **factors}
        folder = Path(shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    who = contestant(folder, method)
    made = engine(folder)
    cases = plain(folder, who, [40, 61, 90])
    widths = passes(made, monkeypatch)
    bare = told(made, [request for request, _ in cases], who)
    assert max(widths) == 90
    widths.clear()
    assert told(made, [replace(request, drafts=(tuple(right),)) for request, right in cases], who) == bare
    assert sorted(widths) == [size + NEW - 1 for size in (40, 61, 90)]
    tokenizer = load_tokenizer(folder)
    assert [row[1] for row in bare] == [tokenizer.decode(right, skip_special_tokens=True) for _, right in cases]


@pytest.mark.slow
def test_records_are_the_same_bytes_with_and_without_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"length": [512], "limit": 6, "dtype": "float32", "device": "cpu"}
    run("drope-tiny", "niah,niah_multikey_2", out=tmp_path / "with", **arguments)
    monkeypatch.setattr(RequestBuilder, "_drafts", lambda *_: ())
    run("drope-tiny", "niah,niah_multikey_2", out=tmp_path / "without", **arguments)
    names = sorted(path.relative_to(tmp_path / "with") for path in (tmp_path / "with").rglob("records.jsonl"))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_a_draft_is_the_answer_behind_the_prompt() -> None:
    registry = Registry()
    variant = registry.variant("tiny")
    spec = RunSpec((variant,), registry.select_tasks("vt,cwe,niah_multikey_2"), lengths=(1024,), limit=1)
    folder = checkpoint_folder(variant.source)
    tokenizer = load_tokenizer(folder)
    cache = RequestBuilder(registry, spec)
    for planned in plan(spec, EchoEngine(), ResultStore(Path("nowhere")), registry):
        [example] = cache.examples(planned, folder)
        [request] = cache.requests(planned, folder, variant.base(read_config(folder)))
        text = tokenizer.decode(request.drafts[0])
        assert text.startswith(" 1. " if planned.task.name == "cwe" else f" {example.references[0]}")
        assert all(reference in text for reference in example.references)
        ids = [*request.input_ids, *request.drafts[0]]
        whole = tokenizer.decode(ids)
        # The prompt of vt ends with a space of its own.
        assert planned.task.name == "vt" or tokenizer.encode(whole) == ids


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[40, 61, 90, 47], [64] * 4], ids=["ragged", "equal"])
def test_prompt_lookup_changes_no_token(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    who = contestant(tiny_folder, YaRN())
    cases = plain(tiny_folder, who, sizes)
    continuations = {request.input_ids: right for request, right in cases}
    asked = [request for request, _ in cases]
    made = engine(tiny_folder)
    expected = told(made, asked, who)
    widths = passes(made, monkeypatch)
    bare = len(widths)

    def propose(drafter: PromptLookupDrafter, most: int) -> list[int]:
        """Draft right, except now and then from the third token on, or not at all."""
        prompt = next(prompt for prompt in continuations if prompt == tuple(drafter.ids[: len(prompt)]))
        done = len(drafter.ids) - len(prompt)
        right = continuations[prompt][done : done + 5]
        kinds = [right, [*right[:2], 3, 4], [], right[:1], [3, *right]]
        return kinds[(done + len(prompt)) % len(kinds)][:most]

    monkeypatch.setattr(PromptLookupDrafter, "propose", propose)
    assert told(made, asked, who) == expected
    assert bare < len(widths) < len(asked) + NEW - 1
    for max_new, stop in ((5, frozenset[int]()), (NEW, frozenset(right[6] for _, right in cases))):
        ended = [replace(request, max_new_tokens=max_new, stop_ids=stop) for request in asked]
        monkeypatch.setattr(PromptLookupDrafter, "propose", lambda *_: [])
        expected = told(made, ended, who)
        monkeypatch.setattr(PromptLookupDrafter, "propose", propose)
        assert told(made, ended, who) == expected


@pytest.mark.slow
def test_attention_that_counts_slots_gets_no_drafts(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = contestant(tiny_folder, ALiBi())
    made = engine(tiny_folder)
    widths = passes(made, monkeypatch)
    told(made, [Request("000000", tuple([7, 8, 9] * 20), 20)], who)
    assert set(widths[1:]) == {1}
