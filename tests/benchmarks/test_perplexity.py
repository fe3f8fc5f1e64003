"""Loss of long text: exact windows of single documents, losses of a plain forward pass, the cropped baseline."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import longctx_bench
from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.perplexity import Perplexity
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler.word_lists import all_words
from longctx_bench.core.errors import UserError
from longctx_bench.registry import Registry


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Three documents of about 900, 60 and 1,500 words, told apart by their first letters."""
    rng, words = random.Random(1), all_words()
    path = tmp_path / "books.txt"
    sizes = {"A": 900, "B": 60, "C": 1500}
    documents = (
        " ".join([letter] * 3 + [rng.choice(words) for _ in range(size)]) + "." for letter, size in sizes.items()
    )
    path.write_text("\0".join(documents))
    return path


def windows(task: str, encoder: PromptEncoder, length: int, n: int, text: Path) -> list[Any]:
    registry = Registry(local_data={"long-text": text})
    return list(registry.benchmark(registry.tasks[task]).examples(encoder, length, 0, n, 0))


def test_windows_are_exact_and_never_cross_documents(text: Path, tiny_encoder: PromptEncoder) -> None:
    whole = [
        tiny_encoder.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.read_text().split("\0")
    ]
    made = windows("perplexity", tiny_encoder, 400, 100, text)
    assert {len(example.ids) for example in made} == {400}
    assert len(made) == len(whole[0]) // 400 + len(whole[2]) // 400
    assert made[0].ids == tuple(whole[0][:400])
    assert made[1].ids == tuple(whole[2][:400])
    assert made[2].ids == tuple(whole[0][400:800])
    assert [example.scored for example in made[:2]] == [399, 399]
    assert made[0].hash != made[1].hash
    assert [e.ids for e in windows("perplexity", tiny_encoder, 400, 3, text)] == [e.ids for e in made[:3]]


def test_a_sliding_window_predicts_each_token_once(text: Path, tiny_encoder: PromptEncoder) -> None:
    made = windows("perplexity_sliding", tiny_encoder, 512, 100, text)
    assert len(made) < 100
    parts = text.read_text().split("\0")
    whole = [tiny_encoder.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    for ids in (whole[0], whole[2]):
        places = {tuple(ids[start : start + 512]): start for start in range(0, len(ids) - 511, 256)}
        own = [example for example in made if example.ids in places]
        assert [places[example.ids] for example in own] == [*range(0, len(ids) - 511, 256)]
        ends = [(places[e.ids] + 512 - e.scored, places[e.ids] + 512) for e in own]
        predicted = [place for start, end in ends for place in range(start, end)]
        assert predicted == [*range(1, ends[-1][1])]
    assert made[0].ids == tuple(whole[0][:512])
    assert made[1].ids == tuple(whole[0][256:768])


def test_bos_stands_before_every_window(text: Path, bos_tokenizer: Any) -> None:
    made = windows("perplexity", PromptEncoder(bos_tokenizer), 300, 4, text)
    assert {example.ids[0] for example in made} == {bos_tokenizer.bos_token_id}
    assert {len(example.ids) for example in made} == {300}


def test_what_is_too_long_does_not_fit(text: Path, tiny_encoder: PromptEncoder, tmp_path: Path) -> None:
    with pytest.raises(ContextTooShort, match="no document has that many tokens"):
        windows("perplexity", tiny_encoder, 100_000, 2, text)
    with pytest.raises(ContextTooShort, match="the last 256 tokens"):
        windows("perplexity_last", tiny_encoder, 256, 2, text)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text files there"):
        windows("perplexity", tiny_encoder, 256, 2, tmp_path / "empty")


@torch.inference_mode()
def plain_losses(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.slow
def test_a_run_gives_the_losses_of_a_plain_forward_pass(
    text: Path, tiny_folder: Path, tiny_encoder: PromptEncoder, tmp_path: Path
) -> None:
    registry = Registry(local_data={"long-text": text})
    frame = longctx_bench.run(
        f"{tiny_folder},crop:{tiny_folder}", "perplexity,perplexity_last", length=[512], limit=3, dtype="float32",
        device="cpu", out=tmp_path, registry=registry,
    )  # fmt: skip
    scores = {(row.method, row.task): row for row in frame.itertuples()}
    made = [example.ids for example in windows("perplexity", tiny_encoder, 512, 3, text)]
    losses = [plain_losses(tiny_folder, ids) for ids in made]
    assert scores["rope", "perplexity"].score == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    last = torch.stack([loss[-256:] for loss in losses]).mean()
    assert scores["rope", "perplexity_last"].score == pytest.approx(float(last), abs=1e-5)
    # The training context of this base is 256 tokens: the cropped model predicts what it can see.
    cropped = torch.stack([plain_losses(tiny_folder, ids[-256:]) for ids in made]).mean()
    assert scores["crop", "perplexity_last"].score == pytest.approx(float(cropped), abs=1e-5)
    row = scores["rope", "perplexity"]
    assert row.low < row.score < row.high
    lines = (tmp_path / "runs/tiny/rope/perplexity/512/records.jsonl").read_text().splitlines()
    curve = json.loads(lines[0])["curve"]
    assert [place for place, _ in curve][:3] == [0, 16, 32]
    assert curve[1][1] == pytest.approx(float(losses[0][15:31].mean()), abs=1e-4)


@pytest.mark.slow
def test_the_report_says_which_way_is_better(text: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from longctx_bench.reporting.formats import markdown
    from longctx_bench.reporting.results import read_cells
    from longctx_bench.reporting.tables.scores_by_length import length_tables

    longctx_bench.run(
        str(tiny_folder), "perplexity", length=[300], limit=2, dtype="float32", device="cpu", out=tmp_path,
        registry=Registry(local_data={"long-text": text}),
    )  # fmt: skip
    shown = markdown(length_tables(read_cells(tmp_path).finished))
    assert "token_loss in nats a token [95 % interval], lower is better, n = 2" in shown
    assert "%" not in shown.splitlines()[4]


def test_stride_and_last_must_be_positive() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Perplexity.model_validate({"data": {"path": "x"}, "last": 0})


def test_generation_with_crop_reads_only_the_end(tiny_folder: Path, essays: Path, tmp_path: Path) -> None:
    registry = Registry(local_data={"ruler-essays": essays})
    longctx_bench.run(
        f"crop:{tiny_folder}", "niah", length=[1024], limit=2, engine="echo", out=tmp_path, registry=registry
    )
    lines = (tmp_path / "runs/tiny/crop/niah/1024/records.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt_tokens"] for line in lines} == {256 - 32}


def test_a_prompt_that_cropping_leaves_nothing_of_is_skipped_without_a_trace(
    tiny_folder: Path, text: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    row = {"context": text.read_text()[:3000], "input": "", "answers": ["x"], "length": 9, "all_classes": None}
    (rows / "multi_news.jsonl").write_text(json.dumps(row))
    out = tmp_path / "out"
    # 512 new tokens are asked for, and the base was trained on 256.
    frame = longctx_bench.run(
        f"crop:{tiny_folder}", "multi_news", length=[1024], engine="echo", out=out,
        registry=Registry(local_data={"longbench": rows}),
    )  # fmt: skip
    assert re.search("512 new tokens leave 0 .*256", next(iter(frame.attrs["skipped"].values())))
    assert not list(out.rglob("started.json"))
