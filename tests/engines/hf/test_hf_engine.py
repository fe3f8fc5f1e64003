"""The transformers engine against ``model.generate``, and its behaviour when memory runs short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Generation, Request
from longctx_bench.engines import memory
from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import DynamicNTK, RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest


def never(example_id: str, text: str) -> bool:
    return False


def requests(count: int = 6, new: int = 12) -> list[Request]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for index in range(count):
        size = 40 + 17 * index
        ids = torch.randint(2, 500, (size,), generator=generator).tolist()
        made.append(Request(f"{index:06d}", tuple(ids), new))
    return made


def engine(folder: Path, **settings: Any) -> HFEngine:
    made = HFEngine(device="cpu", dtype="float32", **settings)
    made.load(folder)
    return made


def contestant(folder: Path, method: Method, length: int = 512) -> ModelUnderTest:
    return ModelUnderTest(BaseModelInfo("tiny", 256, json.loads((folder / "config.json").read_text())), method, length)


def generate(made: HFEngine, asked: list[Request], who: ModelUnderTest) -> dict[str, Generation]:
    batches = made.batches(asked, who.method.per_prompt)
    return {item.example_id: item for batch in batches for item in made.generate(batch, who, never)}


@pytest.mark.slow
@pytest.mark.parametrize("method", [RoPE(), YaRN(), NoPE()], ids=lambda method: type(method).__name__)
def test_greedy_tokens_equal_generate(tiny_folder: Path, method: Method) -> None:
    asked = requests()
    who = contestant(tiny_folder, method)
    found = generate(engine(tiny_folder), asked, who)
    model = load_model(tiny_folder, "float32", "cpu")
    tokenizer = engine(tiny_folder).core.tokenizer
    with apply_method(model, who, 512):
        for request in asked:
            ids = torch.tensor([request.input_ids])
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request.max_new_tokens
            )[0, len(request.input_ids) :]
            assert found[request.example_id].text == tokenizer.decode(whole, skip_special_tokens=True)
            assert found[request.example_id].new_tokens == len(whole)


@pytest.mark.slow
def test_batch_size_and_chunks_do_not_change_tokens(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, who = requests(), contestant(tiny_folder, YaRN())
    alone = generate(engine(tiny_folder, batch_tokens=1), asked, who)
    together = generate(engine(tiny_folder, batch_tokens=100_000), asked, who)
    padded_engine = engine(tiny_folder, batch_tokens=100_000)
    config = padded_engine.core.config
    config.max_prefill_tokens, config.max_finished_share = 10_000, 0.5
    padded = generate(padded_engine, asked, who)
    monkeypatch.setattr(memory, "prefill_token_budget", lambda *_: 33)
    chunked = generate(engine(tiny_folder, batch_tokens=100_000), asked, who)
    assert [alone[r.example_id].text for r in asked] == [padded[r.example_id].text for r in asked]
    assert [alone[r.example_id].text for r in asked] == [together[r.example_id].text for r in asked]
    assert [alone[r.example_id].text for r in asked] == [chunked[r.example_id].text for r in asked]


@pytest.mark.slow
def test_decoding_stops_when_the_score_is_settled(tiny_folder: Path) -> None:
    who = contestant(tiny_folder, RoPE())
    made = engine(tiny_folder)
    asked = requests(3)
    full = generate(made, asked, who)
    stops = {name: item.text[:4] for name, item in full.items()}

    def settled(example_id: str, text: str) -> bool:
        return stops[example_id] in text

    [batch] = made.batches(asked, False)
    for item in made.generate(batch, who, settled):
        assert item.finish_reason == "settled"
        assert item.new_tokens < full[item.example_id].new_tokens
        assert full[item.example_id].text.startswith(item.text)


@pytest.mark.slow
def test_end_token_ends_an_example(tiny_folder: Path) -> None:
    made = engine(tiny_folder)
    who = contestant(tiny_folder, RoPE())
    made.core.runner.eos_token_ids = frozenset(range(1000))
    ended = generate(made, requests(1), who)["000000"]
    assert (ended.finish_reason, ended.new_tokens) == ("eos", 1)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, who, asked = engine(tiny_folder), contestant(tiny_folder, RoPE()), requests()
    expected = generate(made, asked, who)
    core_generate = made.core.generate
    sizes = []

    def small_only(batch: list[Request], *rest: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return core_generate(batch, *rest)

    monkeypatch.setattr(made.core, "generate", small_only)
    halved = generate(made, asked, who)
    assert sizes[:3] == [6, 3, 1]
    assert {k: v.text for k, v in halved.items()} == {k: v.text for k, v in expected.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        # oneDNN in bfloat16, when the system refused its scratch memory.
        RuntimeError("could not create a primitive"),
    ],
    ids=["python", "torch", "onednn"],
)
def test_one_prompt_too_large_for_memory_is_one_line(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    made, who = engine(tiny_folder), contestant(tiny_folder, RoPE())

    def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(made.core, "generate", full)
    with pytest.raises(UserError, match="a prompt of 40 tokens does not fit in the memory of cpu"):
        generate(made, requests(1), who)


@pytest.mark.slow
def test_dynamic_ntk_is_pinned_to_each_prompt(tiny_folder: Path) -> None:
    made, who, asked = engine(tiny_folder), contestant(tiny_folder, DynamicNTK(), 2048), requests(4, new=250)
    together = generate(made, asked, who)
    for request in reversed(asked):
        assert generate(made, [request], who)[request.example_id].text == together[request.example_id].text
    assert all(len({len(r.input_ids) for r in batch}) == 1 for batch in made.batches(asked, per_prompt=True))


def test_a_truncated_file_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_model(broken, "float32", "cpu")


@pytest.mark.slow
def test_batches_respect_the_budget(tiny_folder: Path) -> None:
    made = engine(tiny_folder, batch_tokens=300)
    for batch in made.batches(requests(9), per_prompt=False):
        longest = max(len(r.input_ids) + r.max_new_tokens for r in batch)
        assert len(batch) == 1 or longest * len(batch) <= 300


@pytest.mark.slow
def test_on_a_gpu_more_is_batched_than_is_decoded_at_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(tiny_folder)
    monkeypatch.setattr(memory, "batch_tokens", lambda *_: 1000)
    asked = [Request(str(place), (place, *range(2, 190)), 11) for place in range(40)]
    assert [len(batch) for batch in made.batches(asked, False)] == [5] * 8
    made.device = "cuda:1"
    assert [len(batch) for batch in made.batches(asked, False)] == [20] * 2
    scored = [Request(str(place), (place, *range(2, 201)), 0, scored=3) for place in range(10)]
    assert [len(batch) for batch in made.batches(scored, False)] == [5, 5]
    chosen = engine(tiny_folder, batch_tokens=1000)
    chosen.device = "cuda:1"
    assert [len(batch) for batch in chosen.batches(asked, False)] == [5] * 8
