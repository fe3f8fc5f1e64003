from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.training.data import synthetic_retrieval, synthetic_retrieval_workers
from longctx_bench.training.data.sequence_packing import PackedText, RetrievalPool
from longctx_bench.training.data.synthetic_retrieval import Encoded
from longctx_bench.training.data.synthetic_retrieval_workers import retrieval_pool
from longctx_bench.training.data.token_cache import token_arrays
from longctx_bench.training.recipe import ExerciseMix, TextSource

Prose = Callable[[int, int], str]


def encode(text: str) -> Encoded:
    words = list(re.finditer(r"\S+", text))
    return Encoded([len(word.group()) for word in words], [word.span() for word in words])


@pytest.mark.parametrize("length", [160, 300])
def test_exercises_fit_and_hold_their_answers(length: int, prose: Prose) -> None:
    text = prose(5, 400)
    for index in range(60):
        made = synthetic_retrieval.exercise(0, index, text, encode, length)
        assert made is not None
        assert length - 30 < len(encode(made.text).ids) + 1 <= length
        assert made == synthetic_retrieval.exercise(0, index, text, encode, length)
        prompt, answer = made.text.split("?")[-2:]
        for value in made.values:
            assert f" is: {value}." in prompt
            assert value in answer
        assert ("A special" in prompt) == (len(made.values) == 1)


def test_a_limit_on_needles_leaves_out_the_harder_kinds(prose: Prose) -> None:
    text = prose(5, 400)
    counts = {
        max_needles: {
            made.text.count(" is: ")
            for index in range(80)
            if (made := synthetic_retrieval.exercise(0, index, text, encode, 600, max_needles=max_needles))
        }
        for max_needles in (2, 4, 10)
    }
    assert counts[2] == {1, 2}
    assert counts[4] == {1, 2, 3, 4}
    assert max(counts[10]) == 10


@pytest.mark.parametrize("length", [160, 300])
def test_mixed_exercises_ask_in_turn_and_keep_line_breaks(length: int, prose: Prose) -> None:
    text = prose(5, 400).replace(". ", ".\n\n", 200)
    asked = set()
    for index in range(60):
        made = synthetic_retrieval.exercise(0, index, text, encode, length, mix="mixed")
        assert made is not None
        assert length - 6 < len(encode(made.text).ids) + 1 <= length
        assert "\n\n" in made.text
        before, *questions = made.text.split("\nWhat ")
        asked.add(len(questions))
        for value in made.values:
            assert before.count(f" is: {value}.") == 1
        answers = "".join(question.split("?")[1] for question in questions)
        assert re.findall(r"\d{7}", answers) == list(made.values)
    assert asked == {1, 2}


def test_several_answers_are_a_third_and_in_the_order_of_their_needles(prose: Prose) -> None:
    text = prose(5, 400)
    made = [synthetic_retrieval.exercise(0, index, text, encode, 300, mix="several-answers") for index in range(240)]
    answers = [re.findall(r"\d{7}", exercise.text.split("?")[1]) for exercise in made if exercise]
    assert 0.25 < sum(len(answer) > 1 for answer in answers) / len(made) < 0.42
    several = 0
    for exercise, answer in zip(made, answers, strict=True):
        assert exercise is not None
        body, *_ = exercise.text.split("?")
        key_of = {value: key for key, value in re.findall(r"for ([^.]+) is: (\d{7})\.", body)}
        if len(answer) > 1 and len({key_of[value] for value in answer}) == 1:
            several += 1
            assert answer == sorted(answer, key=body.index)
    assert several > 15


@pytest.mark.parametrize("mix", ["one-question", "mixed", "several-answers"])
def test_the_haystack_is_what_is_neither_needle_nor_instruction_nor_question(mix: ExerciseMix, prose: Prose) -> None:
    text = prose(5, 400)
    for index in range(20):
        made = synthetic_retrieval.exercise(0, index, text, encode, 300, mix=mix)
        assert made is not None
        ids, spans = encode(made.text)
        flags = made.is_haystack(spans)
        assert len(flags) == len(ids)
        of_haystack = [made.text[slice(*span)] for span, flag in zip(spans, flags, strict=True) if flag]
        others = [made.text[slice(*span)] for span, flag in zip(spans, flags, strict=True) if not flag]
        assert " ".join(of_haystack) in " ".join(text.split())
        assert others[:3] in (["A", "special", "magic"], ["Some", "special", "magic"])
        assert others[-1].endswith(".")
        assert sum(word == "is:" for word in others) == made.text.count(" is: ")
        assert len(of_haystack) > 100


def test_what_cannot_fit_is_none(prose: Prose) -> None:
    assert synthetic_retrieval.exercise(0, 0, prose(1, 5), encode, 30) is None


def test_the_pool_is_cached_rows_of_exercises(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    arrays = token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path)
    text = PackedText(arrays, 600)
    pool = retrieval_pool(text, tokenizer, 6, 0, tmp_path)
    assert pool.rows.shape == pool.haystack.shape == (6, 601)
    again = retrieval_pool(text, tokenizer, 6, 0, tmp_path)
    assert np.array_equal(pool.rows, again.rows)
    assert np.array_equal(pool.haystack, again.haystack)
    for row in pool.rows:
        made = tokenizer.decode(row.tolist()).split(tokenizer.eos_token)[0]
        assert made.endswith(".")
        assert "quiz you" in made
    for row, haystack in zip(*pool, strict=True):
        text_of_haystack = tokenizer.decode(row[haystack].tolist())
        assert "special magic" not in text_of_haystack
        assert tokenizer.decode(row[~haystack].tolist()).count(" is:") == tokenizer.decode(row.tolist()).count(" is:")


class InlineExecutor(Executor):
    """Runs a pool's initializer and tasks at once, in this process."""

    initargs: tuple[Any, ...] = ()

    def __init__(self, workers: int, context: Any, initializer: Callable[..., None], initargs: tuple[Any, ...]) -> None:
        InlineExecutor.initargs = initargs
        initializer(*initargs)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


def _pools_of_workers_and_of_one_process(
    corpus: Path, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RetrievalPool, RetrievalPool]:
    monkeypatch.setattr(synthetic_retrieval_workers, "_ROWS_PER_TASK", 2)
    monkeypatch.setattr(synthetic_retrieval_workers, "usable_cores", lambda: 2)
    arrays = token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, folder)
    in_memory = PackedText([np.array(array) for array in arrays], 600)
    return (
        retrieval_pool(PackedText(arrays, 600), tokenizer, 5, 3, folder / "workers"),
        retrieval_pool(in_memory, tokenizer, 5, 3, folder / "one-process"),
    )


def test_what_a_worker_is_started_with_fits_into_a_pipe(
    corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = copy.deepcopy(tokenizer)
    large.add_tokens([f"<extra-{number}>" for number in range(2000)])
    assert len(large.backend_tokenizer.to_str()) > 1 << 16
    monkeypatch.setattr(synthetic_retrieval_workers, "ProcessPoolExecutor", InlineExecutor)
    for folder in ("workers", "one-process"):
        (tmp_path / folder).mkdir()
    by_workers, by_one = _pools_of_workers_and_of_one_process(corpus, large, tmp_path, monkeypatch)
    assert 0 < len(pickle.dumps(InlineExecutor.initargs)) < 1 << 16
    assert not Path(InlineExecutor.initargs[0]).exists()
    assert np.array_equal(by_workers.rows, by_one.rows)
    assert np.array_equal(by_workers.haystack, by_one.haystack)


@pytest.mark.slow
def test_worker_processes_generate_the_rows_of_one_process(
    corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("workers", "one-process"):
        (tmp_path / folder).mkdir()
    by_workers, by_one = _pools_of_workers_and_of_one_process(corpus, tokenizer, tmp_path, monkeypatch)
    assert np.array_equal(by_workers.rows, by_one.rows)
    assert np.array_equal(by_workers.haystack, by_one.haystack)


@pytest.mark.slow
def test_a_worker_and_the_command_start_without_torch() -> None:
    modules = ("longctx_bench.training.data.synthetic_retrieval_workers", "longctx_bench.training.__main__")
    code = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["rows", "haystack"])
def test_a_damaged_pool_is_made_again(corpus: Path, tokenizer: Any, tmp_path: Path, name: str) -> None:
    text = PackedText(token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path), 600)
    before = [np.array(array) for array in retrieval_pool(text, tokenizer, 3, 0, tmp_path)]
    [file] = tmp_path.glob(f"*.exercises/{name}.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = retrieval_pool(text, tokenizer, 3, 0, tmp_path)
    assert all(np.array_equal(one, other) for one, other in zip(before, again, strict=True))
    assert file.read_bytes() == content


def test_a_context_too_short_for_any_exercise_is_refused(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    arrays = token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path)
    with pytest.raises(UserError, match="too short for retrieval"):
        retrieval_pool(PackedText(arrays, 32), tokenizer, 2, 0, tmp_path)
