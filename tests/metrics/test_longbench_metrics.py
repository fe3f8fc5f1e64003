"""LongBench's scores equal what its own eval.py gave (data/README.md says how), and tell when they are final."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.metrics import METRICS, get_metric
from longctx_bench.metrics.longbench import _jieba
from longctx_bench.metrics.rouge import MAX_STEPS, _google_scorer, rouge_l

ORACLE = json.loads((Path(__file__).parent.parent / "data" / "longbench_scores.json").read_text(encoding="utf-8"))
METRIC_OF = {
    "narrativeqa": "longbench_qa_f1",
    "qasper": "longbench_qa_f1",
    "multifieldqa_en": "longbench_qa_f1",
    "multifieldqa_zh": "longbench_qa_f1_zh",
    "hotpotqa": "longbench_qa_f1",
    "2wikimqa": "longbench_qa_f1",
    "musique": "longbench_qa_f1",
    "dureader": "longbench_rouge_l_zh",
    "gov_report": "longbench_rouge_l",
    "qmsum": "longbench_rouge_l",
    "multi_news": "longbench_rouge_l",
    "vcsum": "longbench_rouge_l_zh",
    "trec": "longbench_classification",
    "triviaqa": "longbench_qa_f1_first_line",
    "samsum": "longbench_rouge_l_first_line",
    "lsht": "longbench_classification",
    "passage_retrieval_en": "longbench_retrieval",
    "passage_count": "longbench_count",
    "passage_retrieval_zh": "longbench_retrieval_zh",
    "lcc": "longbench_code_sim",
    "repobench-p": "longbench_code_sim",
}
CONTINUATIONS = ("", "\n", " more", "\n\nmore 7", "x = 1\n", "# x\n", "`", "。经济", "City\n")


def expanded(text: Any) -> str:
    """Return the text that the oracle's file abbreviates."""
    if isinstance(text, str):
        return text
    if isinstance(text, dict):
        unit, times = text["repeat"]
        return str(unit) * int(times)
    return "".join(map(expanded, text))


def score(name: str, case: dict[str, Any], prediction: str) -> float:
    return METRICS[name].score(prediction, [expanded(answer) for answer in case["answers"]], case["all_classes"] or ())


def test_the_oracle_has_all_tasks() -> None:
    assert set(ORACLE["tasks"]) == set(METRIC_OF)
    assert all(len(cases) >= 12 for cases in ORACLE["tasks"].values())


@pytest.mark.slow
@pytest.mark.parametrize("task", METRIC_OF)
def test_scores_are_upstreams(task: str) -> None:
    for case in ORACLE["tasks"][task]:
        value = score(METRIC_OF[task], case, expanded(case["prediction"]))
        assert 0 <= value <= 1
        assert value == pytest.approx(case["score"], abs=1e-9), case


@pytest.mark.parametrize("task", ["triviaqa", "samsum", "trec", "lsht", "lcc", "passage_count", "narrativeqa"])
def test_nothing_changes_a_final_score(task: str) -> None:
    measure = METRICS[METRIC_OF[task]]
    seen = 0
    for case in ORACLE["tasks"][task]:
        prediction = case["prediction"]
        if not isinstance(prediction, str):
            continue
        starts = [prediction[:end] for end in range(min(len(prediction), 60) + 1)]
        for text in [*starts, *(prediction + more for more in CONTINUATIONS)]:
            if measure.is_final(text, case["answers"]):
                seen += 1
                value = score(measure.name, case, text)
                for more in CONTINUATIONS:
                    assert score(measure.name, case, text + more) == value, (text, more)
    assert bool(seen) == (task not in ("passage_count", "narrativeqa"))


@pytest.mark.parametrize(
    ("name", "text", "is_final"),
    [
        ("qa_f1_first_line", "\n\n", False),
        ("qa_f1_first_line", "\n\nanswer", False),
        ("rouge_l_first_line", "\n\nanswer\n", True),
        ("classification", "City\n", True),
        ("code_sim", "\n\n", False),
        ("code_sim", "return x", False),
        ("code_sim", "return x\n", True),
        ("code_sim", "# why\n// how\n```python\n", False),
        ("code_sim", "# why\n\n", True),
        ("qa_f1", "answer\n", False),
        ("rouge_l", "answer\n", False),
    ],
)
def test_is_final(name: str, text: str, is_final: bool) -> None:
    assert METRICS[f"longbench_{name}"].is_final(text, ["answer"]) is is_final


def test_the_callers_stack_does_not_change_rouge() -> None:
    words = " ".join(["word"] * (MAX_STEPS - 1))

    def from_below(frames: int) -> float:
        return from_below(frames - 1) if frames else rouge_l(words, words)

    assert from_below(600) == rouge_l(words, words) > 0.99
    assert rouge_l(f"{words} word", f"{words} word") == 0.0


@pytest.mark.parametrize(
    ("text", "references"),
    [
        ("The river bends twice.", ["the river, it bends", "A stone."]),
        ("", ["one"]),
        ("one two three two one", ["two one two three"]),
        ("Walks walked walking", ["walk walked"]),
        ("nothing", []),
    ],
)
def test_google_rouge_l_is_rouge_scores(text: str, references: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    expected = max((scorer.score(item, text)["rougeL"].fmeasure for item in references), default=0.0)
    assert METRICS["google_rouge_l"].score(text, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("longbench_qa_f1_zh", "jieba", "jieba"),
        ("longbench_rouge_l_zh", "jieba", "jieba"),
        ("google_rouge_l", "rouge_score.rouge_scorer", "rouge-score"),
    ],
)
def test_a_missing_package_is_one_line(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    _jieba.cache_clear()
    _google_scorer.cache_clear()
    with pytest.raises(UserError, match=rf"need.* the package '{package}': pip install 'longctx-bench\[longbench\]'$"):
        METRICS[name].score("text", ["text"])


@pytest.mark.slow
def test_metrics_are_cheap_to_import_and_jieba_is_silent() -> None:
    program = (
        "import sys; from longctx_bench.metrics import METRICS\n"
        "assert not {'jieba', 'numpy', 'rouge_score', 'nltk'} & set(sys.modules)\n"
        "assert METRICS['longbench_qa_f1_zh'].score('北京', ['北京']) == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_metric_cannot_score_is_one_line() -> None:
    with pytest.raises(UserError, match="needs the names of all classes"):
        METRICS["longbench_classification"].score("City", ["City"])
    for name in ("longbench_retrieval", "longbench_retrieval_zh"):
        with pytest.raises(UserError, match="holds no .* with a number after it"):
            METRICS[name].score("7", ["seven"])


def test_an_unknown_metric_is_named_with_a_near_miss() -> None:
    assert get_metric("longbench_count") is METRICS["longbench_count"]
    with pytest.raises(UserError, match="unknown metric 'longbench_qa_f1_en'; did you mean 'longbench_qa_f1"):
        get_metric("longbench_qa_f1_en")
