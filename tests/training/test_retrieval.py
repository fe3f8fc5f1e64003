from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longctx_bench.errors import UserError
from longctx_bench.training import retrieval
from longctx_bench.training.packing import PackedText
from longctx_bench.training.recipe import TextSource
from longctx_bench.training.retrieval_pool import retrieval_pool
from longctx_bench.training.token_cache import token_arrays

Prose = Callable[[int, int], str]


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


@pytest.mark.parametrize("length", [160, 300])
def test_exercises_fit_and_hold_their_answers(length: int, prose: Prose) -> None:
    text = prose(5, 400)
    for index in range(60):
        made = retrieval.exercise(0, index, text, encode, length)
        assert made is not None
        assert length - 30 < len(encode(made.text)) + 1 <= length
        assert made == retrieval.exercise(0, index, text, encode, length)
        for value in made.values:
            assert f" is: {value}." in made.prompt
            assert value in made.answer
        assert ("A special" in made.prompt) == (len(made.values) == 1)


def test_a_limit_on_needles_leaves_out_the_harder_kinds(prose: Prose) -> None:
    text = prose(5, 400)
    counts = {
        most: {
            made.prompt.count(" is: ")
            for index in range(80)
            if (made := retrieval.exercise(0, index, text, encode, 600, most=most))
        }
        for most in (2, 4, 10)
    }
    assert counts[2] == {1, 2}
    assert counts[4] == {1, 2, 3, 4}
    assert max(counts[10]) == 10


def test_what_cannot_fit_is_none(prose: Prose) -> None:
    assert retrieval.exercise(0, 0, prose(1, 5), encode, 30) is None


def test_the_pool_is_cached_rows_of_exercises(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    arrays = token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path)
    text = PackedText(arrays, 600)
    pool = retrieval_pool(text, tokenizer, 6, 0, tmp_path)
    assert pool.shape == (6, 601)
    assert np.array_equal(pool, retrieval_pool(text, tokenizer, 6, 0, tmp_path))
    for row in pool:
        made = tokenizer.decode(row.tolist()).split(tokenizer.eos_token)[0]
        assert made.endswith(".")
        assert "quiz you" in made


def test_a_context_too_short_for_any_exercise_is_refused(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    arrays = token_arrays([TextSource(path="train.txt")], corpus, tokenizer, 0, tmp_path)
    with pytest.raises(UserError, match="too short for retrieval"):
        retrieval_pool(PackedText(arrays, 32), tokenizer, 2, 0, tmp_path)
