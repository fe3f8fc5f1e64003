"""Scores sorted by the length of their documents."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longctx_bench.core.types import NATURAL
from longctx_bench.metrics.length_buckets import BY_CONTEXT, BY_WORDS, ScoredExample, buckets_of, scores_by_bucket


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (1, "0-2x"),
        (511, "0-2x"),
        (512, "2-4x"),
        (1023, "2-4x"),
        (1024, "4-8x"),
        (2047, "4-8x"),
        (2048, "8-16x"),
        (4095, "8-16x"),
        (4096, "16x+"),
        (10**7, "16x+"),
    ],
)
def test_multiples_of_the_context_begin_a_bucket(tokens: int, name: str) -> None:
    found = scores_by_bucket([ScoredExample(0.5, tokens, None)], BY_CONTEXT, 256)
    assert found == {bucket.name: [0.5] if bucket.name == name else [] for bucket in BY_CONTEXT}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (0, "0-4k words"),
        (3999, "0-4k words"),
        (4000, "4-8k words"),
        (7999, "4-8k words"),
        (8000, "8k+ words"),
        (10**6, "8k+ words"),
    ],
)
def test_word_counts_begin_a_bucket(words: int, name: str) -> None:
    found = scores_by_bucket([ScoredExample(0.5, 1, words)], BY_WORDS, 256)
    assert found == {bucket.name: [0.5] if bucket.name == name else [] for bucket in BY_WORDS}


def test_a_point_without_a_word_count_falls_into_no_bucket_of_words() -> None:
    points = [ScoredExample(1.0, 5000, None), ScoredExample(0.25, 5000, 1), ScoredExample(0.75, 5000, 2)]
    assert scores_by_bucket(points, BY_WORDS, 256) == {"0-4k words": [0.25, 0.75], "4-8k words": [], "8k+ words": []}


def test_buckets_touch_and_leave_nothing_out() -> None:
    for buckets in (BY_CONTEXT, BY_WORDS):
        assert (buckets[0].low, buckets[-1].high) == (0, float("inf"))
        assert all(left.high == right.low for left, right in pairwise(buckets))


def test_only_whole_documents_and_longbench_e_have_buckets() -> None:
    assert buckets_of("qasper_e", NATURAL) is buckets_of("qasper_e", 4096) is BY_WORDS
    assert buckets_of("qasper", NATURAL) is BY_CONTEXT
    assert buckets_of("qasper", 4096) == buckets_of("niah", 512) == ()
