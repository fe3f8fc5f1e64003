"""Prompt lookup: guesses out of the text itself."""

from __future__ import annotations

from longctx_bench.engines.hf.prompt_lookup import Lookup


def test_a_guess_is_what_followed_the_last_two_tokens() -> None:
    lookup = Lookup([5, 6, 7, 8, 9, 5, 6])
    assert lookup.guess(10) == [7, 8, 9, 5]
    assert lookup.guess(2) == [7, 8]
    assert lookup.guess(0) == []
    lookup.add([1])
    assert lookup.guess(10) == []
    lookup.add([5, 6])
    assert lookup.guess(10) == [1, 5, 6]


def test_a_pair_does_not_guess_from_itself() -> None:
    assert Lookup([1, 2]).guess(5) == []
    assert Lookup([]).guess(5) == []
    one = Lookup([4])
    one.add([4, 4])
    assert one.guess(5) == [4]


def test_guesses_grow_while_they_are_right_and_shrink_when_not() -> None:
    lookup = Lookup([*range(40), 0, 1])
    widths = []
    for right in (4, 8, 16, 16, 3, 0, 1):
        widths.append(len(lookup.guess(100)))
        lookup.judge(widths[-1], right)
    assert widths == [4, 8, 16, 16, 16, 3, 1]
