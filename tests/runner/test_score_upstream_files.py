"""Prediction files of LongBench's and RULER's own scripts, scored from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

CASES = json.loads((Path(__file__).parents[1] / "data" / "longbench_scores.json").read_text(encoding="utf-8"))["tasks"]
SCORED = ("narrativeqa", "trec", "lcc")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(call: Call) -> Call:
    """Run ``score``; return (exit code, standard output, standard error)."""
    return lambda *arguments: call("score", *arguments)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def refused(call: Call, folder: Path, form: str) -> str:
    code, shown, error = call(folder, "--format", form)
    assert (code, shown, len(error.strip().splitlines())) == (2, "", 1), error
    return error


def cases(task: str) -> list[dict[str, Any]]:
    """Return the oracle's cases that are written out and have an answer."""
    return [
        case
        for case in CASES[task]
        if case["answers"] and all(isinstance(text, str) for text in (case["prediction"], *case["answers"]))
    ]


def predictions(task: str) -> list[dict[str, Any]]:
    """Return lines as LongBench's pred.py writes them."""
    return [
        {"pred": case["prediction"], "answers": case["answers"], "all_classes": case["all_classes"], "length": 3000}
        for case in cases(task)
    ]


def upstreams(task: str) -> float:
    """Return what LongBench's eval.py gives those lines together: the mean of what it gives each."""
    return 100 * fmean(case["score"] for case in cases(task))


def line(prediction: str, *answers: str, length: int = 0, classes: list[str] | None = None) -> dict[str, Any]:
    return {"pred": prediction, "answers": list(answers), "all_classes": classes, "length": length}


def test_a_folder_of_longbench_gets_its_own_scores(call: Call, tmp_path: Path) -> None:
    for task in SCORED:
        write(tmp_path / f"{task}.jsonl", predictions(task))
        assert len(predictions(task)) >= 10
    (tmp_path / "result.json").write_text("{}")
    code, shown, error = call(tmp_path, "--format", "longbench", "--json")
    assert code == 0, error
    found = json.loads(shown)
    assert list(found) == sorted(SCORED)
    for task in SCORED:
        assert found[task] == pytest.approx(upstreams(task), abs=1e-9)
    code, shown, _ = call(tmp_path, "--format", "longbench")
    n = len(predictions("lcc"))
    assert f"lcc: {upstreams('lcc'):.2f} % (n = {n})" in shown.splitlines()


def test_scores_by_hand(call: Call, tmp_path: Path) -> None:
    # Three words, two of them right: precision 2/3, recall 1, F1 0.8. Articles and punctuation do not count.
    write(tmp_path / "hotpotqa.jsonl", [line("the red barn door!", "Red barn"), line("blue", "red", "Blue.")])
    # Only the first line that is not empty is scored.
    write(tmp_path / "triviaqa.jsonl", [line("\n\nOslo\nQuestion: where?", "Oslo"), line("Rome\nOslo", "Oslo")])
    # One of three numbers is the paragraph's.
    write(tmp_path / "passage_retrieval_en.jsonl", [line("Paragraph 4, not 14 or 5", "Paragraph 4")])
    code, shown, error = call(tmp_path, "--format", "longbench", "--json")
    assert code == 0, error
    assert json.loads(shown) == {
        "hotpotqa": pytest.approx(100 * (0.8 + 1) / 2, abs=1e-12),
        "passage_retrieval_en": 100 * (1 / 3),
        "triviaqa": 50.0,
    }


def test_longbench_e_is_sorted_by_its_word_counts(call: Call, tmp_path: Path) -> None:
    lengths = (0, 3999, 4000, 7999, 8000, 50000)
    lines = [line("yes" if place != 1 else "no", "yes", length=length) for place, length in enumerate(lengths)]
    write(tmp_path / "qasper.jsonl", lines)
    code, shown, error = call(tmp_path, "--format", "longbench-e", "--json")
    assert code == 0, error
    assert json.loads(shown) == {"qasper 0-4k": 50.0, "qasper 4-8k": 100.0, "qasper 8k+": 100.0}
    code, shown, _ = call(tmp_path, "--format", "longbench-e")
    assert shown.splitlines()[0] == "qasper 0-4k: 50.00 % (n = 2)"
    write(tmp_path / "qasper.jsonl", lines[:2])
    code, shown, _ = call(tmp_path, "--format", "longbench-e", "--json")
    assert json.loads(shown) == {"qasper 0-4k": 50.0}


def test_ruler_joins_chunks_and_cleans_predictions(call: Call, tmp_path: Path) -> None:
    def ruler(prediction: str, *outputs: str) -> dict[str, Any]:
        return {"index": 0, "pred": prediction, "outputs": list(outputs), "input": "...", "others": {"id": 0}}

    write(tmp_path / "niah_multivalue.jsonl", [ruler("\x0012\x00 and 34.", "12", "34", "56", "78")])
    # A control character becomes a newline, so that it neither joins nor hides a word.
    write(tmp_path / "vt-0.jsonl", [ruler("ABCDE\x01FGHIJ\x1f", "ABCDE", "FGHIJ"), ruler("", "ABCDE")])
    write(tmp_path / "vt-1.jsonl", [ruler("AB\x02CDE", "ABCDE")])
    write(tmp_path / "qa_1.jsonl", [ruler("In oslo\x07", "Rome", "OSLO"), ruler("Paris", "Rome", "OSLO")])
    code, shown, error = call(tmp_path, "--format", "ruler", "--json")
    assert code == 0, error
    assert json.loads(shown) == {"niah_multivalue": 50.0, "qa_1": 50.0, "vt": 100 * (1 / 3)}
    code, shown, _ = call(tmp_path, "--format", "ruler")
    assert "vt: 33.33 % (n = 3)" in shown.splitlines()


def test_a_folder_of_models_is_scored_by_model(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "one" / "hotpotqa.jsonl", [line("red", "red")])
    write(tmp_path / "two" / "hotpotqa.jsonl", [line("red", "blue"), line("red", "red")])
    write(tmp_path / "two" / "musique.jsonl", [line("red", "red", length=9000)])
    code, shown, error = call(tmp_path, "--format", "longbench", "--json")
    assert code == 0, error
    assert json.loads(shown) == {"one/hotpotqa": 100.0, "two/hotpotqa": 50.0, "two/musique": 100.0}
    code, shown, _ = call(tmp_path, "--format", "longbench-e", "--json")
    assert list(json.loads(shown)) == ["one/hotpotqa 0-4k", "two/hotpotqa 0-4k", "two/musique 8k+"]


def test_what_is_no_folder_of_predictions_is_one_line(call: Call, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: no such folder" in refused(call, tmp_path / "none", "longbench")
    assert f"{tmp_path}: holds no .jsonl files" in refused(call, tmp_path, "ruler")
    write(tmp_path / "hotpotqaa.jsonl", [line("red", "red")])
    assert "'hotpotqaa' is no task of longbench; did you mean 'hotpotqa'?" in refused(call, tmp_path, "longbench")
    assert "'hotpotqaa' is no task of ruler" in refused(call, tmp_path, "ruler")
    # A chunk is RULER's way of writing; LongBench has none.
    (tmp_path / "hotpotqaa.jsonl").rename(tmp_path / "hotpotqa-0.jsonl")
    assert "'hotpotqa-0' is no task of longbench; did you mean 'hotpotqa'?" in refused(call, tmp_path, "longbench")


GOOD = json.dumps(line("red", "red", classes=["red", "blue"]))
BROKEN = [
    ("longbench", "hotpotqa", "{", "is not valid JSON"),
    ("longbench", "hotpotqa", "[1]", "is not a JSON object"),
    ("longbench", "hotpotqa", '{"answers": ["red"]}', "'pred' is missing or not text"),
    ("longbench", "hotpotqa", '{"pred": 5, "answers": ["red"]}', "'pred' is missing or not text"),
    ("longbench", "hotpotqa", '{"pred": "red"}', "'answers' is missing or not a list of texts"),
    ("longbench", "hotpotqa", '{"pred": "red", "answers": []}', "'answers' is missing or not a list of texts"),
    ("longbench", "hotpotqa", '{"pred": "red", "answers": "red"}', "'answers' is missing or not a list of texts"),
    ("longbench", "trec", '{"pred": "red", "answers": ["red"], "all_classes": 5}', "'all_classes' is missing or not"),
    ("longbench", "trec", '{"pred": "red", "answers": ["red"]}', "needs the names of all classes"),
    ("longbench", "passage_retrieval_en", '{"pred": "1", "answers": ["red"]}', "with a number after it"),
    ("longbench-e", "hotpotqa", '{"pred": "red", "answers": ["red"]}', "'length' is missing or not a whole number"),
    ("ruler", "vt", '{"pred": "red"}', "'outputs' is missing or not a list of texts"),
]


@pytest.mark.parametrize(("form", "task", "text", "message"), BROKEN)
def test_a_broken_line_is_named_by_its_number(
    form: str, task: str, text: str, message: str, call: Call, tmp_path: Path
) -> None:
    good = GOOD.replace("answers", "outputs") if form == "ruler" else GOOD
    if task == "passage_retrieval_en":
        good = json.dumps(line("1", "Paragraph 1"))
    file = tmp_path / f"{task}.jsonl"
    file.write_text(f"{good}\n{good}\n{text}\n")
    error = refused(call, tmp_path, form)
    assert f"{file}: line 3" in error
    assert message in error
