"""Prompt lookup: drafts out of the text itself."""

from __future__ import annotations

from longctx_bench.engines.hf.prompt_lookup import PromptLookupDrafter


def test_a_draft_is_what_followed_the_last_two_tokens() -> None:
    drafter = PromptLookupDrafter([5, 6, 7, 8, 9, 5, 6])
    assert drafter.propose(10) == [7, 8, 9, 5]
    assert drafter.propose(2) == [7, 8]
    assert drafter.propose(0) == []
    drafter.append([1])
    assert drafter.propose(10) == []
    drafter.append([5, 6])
    assert drafter.propose(10) == [1, 5, 6]


def test_a_bigram_is_no_draft_of_itself() -> None:
    assert PromptLookupDrafter([1, 2]).propose(5) == []
    assert PromptLookupDrafter([]).propose(5) == []
    one = PromptLookupDrafter([4])
    one.append([4, 4])
    assert one.propose(5) == [4]


def test_drafts_grow_while_they_are_accepted_and_shrink_when_not() -> None:
    drafter = PromptLookupDrafter([*range(40), 0, 1])
    widths = []
    for right in (4, 8, 16, 16, 3, 0, 1):
        widths.append(len(drafter.propose(100)))
        drafter.update_acceptance(widths[-1], right)
    assert widths == [4, 8, 16, 16, 16, 3, 1]
