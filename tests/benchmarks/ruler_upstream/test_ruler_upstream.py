"""``ruler@paper`` against what the original NVIDIA/RULER scripts wrote.

The oracle, tests/data/ruler_oracle.json, is remade by the commands of tests/data/README.md.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longctx_bench.benchmarks import haystack
from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import word_lists
from longctx_bench.benchmarks.ruler_upstream.aggregation_and_qa import UpstreamCommonWords
from longctx_bench.benchmarks.ruler_upstream.base import UpstreamError
from longctx_bench.benchmarks.ruler_upstream.niah_and_tracking import (
    UpstreamNeedleInAHaystack,
    UpstreamVariableTracking,
    _Pairs,
    _value,
)
from longctx_bench.core.sources import fetch
from longctx_bench.core.types import Example
from longctx_bench.metrics import METRICS
from longctx_bench.registry import Registry

ORACLE = json.loads((Path(__file__).parents[2] / "data" / "ruler_oracle.json").read_text(encoding="utf-8"))
CELLS = [(task, length) for task, lengths in ORACLE["samples"].items() for length in lengths]
SEED = 42


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def examples(registry: Registry, encoder: PromptEncoder, task: str, length: int, n: int) -> list[Example]:
    spec = registry.tasks[f"{task}@paper"]
    return list(registry.benchmark(spec).examples(encoder, length, spec.max_new_tokens, n, SEED))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_sentences_are_split_as_when_the_oracle_was_made(registry: Registry) -> None:
    text = json.loads(fetch(registry.sources["ruler-essays"].source).read_text(encoding="utf-8"))["text"]
    pieces = haystack.split_sentences(" ".join(text.split()))
    assert digest("\n".join(pieces)) == ORACLE["sentences"], "haystack.sentences changed: remake the oracle"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "length"), CELLS)
def test_samples_are_upstreams_byte_for_byte(
    task: str, length: str, registry: Registry, smollm2_encoder: PromptEncoder
) -> None:
    written = ORACLE["samples"][task][length]
    made = examples(registry, smollm2_encoder, task, int(length), len(written))
    found = [
        [
            digest(example.prompt + "\0" + example.answer_prefix),
            list(example.references),
            smollm2_encoder.size(example.prompt + example.answer_prefix) + example.max_new_tokens,
        ]
        for example in made
    ]
    assert found == written
    for example in made:
        assert example.n_tokens == smollm2_encoder.count(example.prompt, example.answer_prefix)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "length"), [("niah_single_2", 512), ("vt", 512)])
def test_where_upstream_hangs_the_cell_does_not_fit(
    task: str, length: int, registry: Registry, smollm2_encoder: PromptEncoder
) -> None:
    assert f"{task} at {length}" in ORACLE["hangs"]
    with pytest.raises(ContextTooShort, match=f"at {length}: RULER's own generator tries for ever .* at example 0"):
        examples(registry, smollm2_encoder, task, length, 1)


def test_a_cell_in_which_upstream_hangs_later_says_how_many_examples_there_are(
    registry: Registry, smollm2_encoder: PromptEncoder
) -> None:
    possible = len(ORACLE["samples"]["qa_2"]["2048"])
    with pytest.raises(ContextTooShort, match=f"or at most {possible} examples"):
        examples(registry, smollm2_encoder, "qa_2", 2048, possible + 1)


def test_an_example_does_not_depend_on_how_many_are_asked_for(
    registry: Registry, smollm2_encoder: PromptEncoder
) -> None:
    for task in ("vt", "fwe"):
        assert (
            examples(registry, smollm2_encoder, task, 1024, 2) == examples(registry, smollm2_encoder, task, 1024, 4)[:2]
        )


def test_depths_are_where_the_needles_are(registry: Registry, smollm2_encoder: PromptEncoder) -> None:
    for example in examples(registry, smollm2_encoder, "niah_multiquery", 1024, 3):
        context = example.prompt.split("\n", 1)[1].rsplit("\n", 1)[0]
        for depth in example.depths:
            start = depth / 100 * len(context)
            assert "One of the special magic numbers" in context[max(0, round(start) - 2) : round(start) + 40]
        assert len(example.depths) == 4
        assert list(example.depths) == sorted(example.depths)


def test_depths_of_questions_are_those_of_the_gold_documents(
    registry: Registry, smollm2_encoder: PromptEncoder
) -> None:
    for task, gold in (("qa_1", 1), ("qa_2", 2)):
        [example] = examples(registry, smollm2_encoder, task, 4096, 1)
        context = example.prompt.split("\n\n", 2)[2].rsplit("\n\n", 2)[0]
        starts = [round(depth / 100 * len(context)) for depth in example.depths]
        assert len(starts) == gold
        assert all("Document " in context[max(0, start - 2) : start + 11] for start in starts)
        if task == "qa_1":
            assert example.references[0] in context[starts[0] :].split("\n\n", 1)[0]


def test_pairs_are_upstreams_sorted_list_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    adjectives = ("wide-eyed", "blue", "blue-eyed", "blues", "odd", "wide", "odd")
    nouns = ("cat", "ant", "eyed-cat", "zoo", "eye")
    monkeypatch.setattr(word_lists, "adjectives", lambda: adjectives)
    monkeypatch.setattr(word_lists, "nouns", lambda: nouns)
    pairs = _Pairs()
    expected = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    assert [pairs.at(index) for index in range(pairs.total)] == expected


class CoarseEncoder(PromptEncoder):
    """Counts 150 characters as one token, so that short lengths need long texts."""

    def __init__(self) -> None:
        super().__init__(tokenizer=None)

    def count(self, prompt: str, answer_prefix: str = "") -> int:
        return self.size(prompt + answer_prefix)

    def size(self, text: str) -> int:
        return len(text) // 150


@pytest.mark.slow
def test_more_words_than_wonderwords_come_from_a_file_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ContextTooShort, match=r"english_words\.json \(Git LFS\)"):
        list(UpstreamCommonWords().examples(CoarseEncoder(), 4096, 120, 1, SEED))
    file = tmp_path / "english_words.json"
    file.write_text(json.dumps({str(number): f"word{number}" for number in range(40_000)}), encoding="utf-8")
    task = UpstreamCommonWords.model_validate({"english_words": {"path": str(file)}})
    [example] = islice(task.examples(CoarseEncoder(), 4096, 120, 1, SEED), 1)
    assert all(reference.startswith("word") for reference in example.references)


def test_upstreams_failures_are_one_line() -> None:
    with pytest.raises(ContextTooShort, match="gave two variables one name"):
        list(UpstreamVariableTracking(chains=400, hops=9).examples(CoarseEncoder(), 4096, 30, 1, SEED))
    with pytest.raises(ContextTooShort, match="cannot draw 6 of 5"):
        list(UpstreamNeedleInAHaystack(haystack="noise", keys=6).examples(CoarseEncoder(), 512, 128, 1, SEED))


@pytest.mark.parametrize("params", [{"keys": 1, "queries": 2, "haystack": "noise"}, {"haystack": "essay"}])
def test_parameters_that_contradict_each_other_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="queries|essays"):
        UpstreamNeedleInAHaystack.model_validate(params)


def test_the_tasks_are_upstreams(registry: Registry) -> None:
    tasks = registry.select_tasks("ruler", "ruler@paper")
    assert [task.name.removesuffix("@paper") for task in tasks] == registry.groups["ruler"]
    budgets = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
    for task in tasks:
        kind = task.name.removesuffix("@paper").partition("_")[0]
        assert (task.max_new_tokens, task.samples) == (budgets[kind], 500)
        assert task.metric == ("string_match_part" if kind == "qa" else "string_match_all")


@pytest.mark.parametrize("case", ORACLE["metrics"], ids=lambda case: repr(case["prediction"])[:24])
@pytest.mark.parametrize("name", ["string_match_all", "string_match_part"])
def test_metrics_are_upstreams(name: str, case: dict[str, Any]) -> None:
    # Upstream gives percent, rounded. It also turns a prediction's control characters into newlines and strips
    # it, which no reference of RULER's can tell: none holds a control character or begins or ends in space.
    value = METRICS[name].score(case["prediction"], case["references"])
    assert 0 <= value <= 1
    assert round(100 * value, 2) == pytest.approx(case[name], abs=1e-9)


def test_the_mean_of_scores_is_upstreams_score() -> None:
    for name, percent in ORACLE["metrics of all"].items():
        scores = [METRICS[name].score(case["prediction"], case["references"]) for case in ORACLE["metrics"]]
        assert round(100 * sum(scores) / len(scores), 2) == pytest.approx(percent, abs=1e-9)


def test_numbers_are_drawn_from_upstreams_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []

    def randint(low: int, high: int) -> int:
        drawn.append((low, high))
        return low

    source: Any = SimpleNamespace(randint=randint)
    assert _value("numbers", source) == "1000000"
    # A name that comes up twice: upstream draws for one more chain, then fails.
    names = iter(["A", "A", "B"])
    monkeypatch.setattr("longctx_bench.benchmarks.ruler_upstream.niah_and_tracking._letters", lambda *_: next(names))
    tracking = UpstreamVariableTracking(chains=1, hops=1)
    with pytest.raises(UpstreamError, match="one name"):
        tracking._chains(SimpleNamespace(rng=None, numpy=source), worked=False)  # type: ignore[arg-type]
    assert drawn == [(1_000_000, 9_999_999), (10_000, 99_999), (10_000, 99_999)]
