"""Prompt lookup decoding: draft tokens are what followed the last bigram where it stood before (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence

_INITIAL_DRAFT_TOKENS = 4
_MAX_DRAFT_TOKENS = 16
"""A forward pass that verifies so few tokens costs little more than one that decodes a token."""


class PromptLookupDrafter:
    """Drafts the continuation of a text from the text itself.

    Drafts are verified, so that they change no token and only save forward passes. The length of a draft follows the
    acceptance of those before it.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        """Index the bigrams of a prompt by their latest position."""
        self._ids = list(ids)
        self._next_index = {pair: index + 2 for index, pair in enumerate(zip(self._ids, self._ids[1:-1], strict=False))}
        self._draft_tokens = _INITIAL_DRAFT_TOKENS

    @property
    def ids(self) -> Sequence[int]:
        """Return the text so far: prompt and generated tokens."""
        return self._ids

    def append(self, tokens: Sequence[int]) -> None:
        """Append generated tokens to the text."""
        for token in tokens:
            if len(self._ids) >= 2:
                self._next_index[self._ids[-2], self._ids[-1]] = len(self._ids)
            self._ids.append(token)

    def propose(self, max_tokens: int) -> list[int]:
        """Return up to ``max_tokens`` draft tokens; none where the last bigram is new."""
        index = self._next_index.get((self._ids[-2], self._ids[-1])) if len(self._ids) >= 2 else None
        if index is None:
            return []
        return self._ids[index : index + max(0, min(max_tokens, self._draft_tokens))]

    def update_acceptance(self, proposed: int, accepted: int) -> None:
        """Adapt the draft length to how many of the proposed tokens were accepted."""
        if proposed:
            doubled = min(_MAX_DRAFT_TOKENS, 2 * self._draft_tokens)
            self._draft_tokens = doubled if accepted == proposed else max(1, accepted)
