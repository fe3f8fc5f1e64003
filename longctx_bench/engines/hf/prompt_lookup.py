"""What probably comes next: what followed the last two tokens when they stood together before."""

from __future__ import annotations

from collections.abc import Sequence

_FIRST = 4
_MOST = 16
"""Tokens of a guess: as many at first, and at most. A pass that reads so few costs little more than one for a token."""


class Lookup:
    """Guesses the continuation of a text from the text itself (prompt lookup, Saxena 2023).

    A guess changes no token, it only saves passes. Its length follows how good the guesses were.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        """Remember where each pair of a prompt's neighbouring tokens stood last."""
        self._ids = list(ids)
        self._behind = {pair: place + 2 for place, pair in enumerate(zip(self._ids, self._ids[1:-1], strict=False))}
        self._width = _FIRST

    def add(self, tokens: Sequence[int]) -> None:
        """Go on with tokens that are certain."""
        for token in tokens:
            if len(self._ids) >= 2:
                self._behind[self._ids[-2], self._ids[-1]] = len(self._ids)
            self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Return what followed the last two tokens before, at most ``most`` tokens; empty where they are new."""
        place = self._behind.get((self._ids[-2], self._ids[-1])) if len(self._ids) >= 2 else None
        if place is None:
            return []
        return self._ids[place : place + max(0, min(most, self._width))]

    def judge(self, guessed: int, right: int) -> None:
        """Learn how many tokens of a guess were right."""
        if guessed:
            self._width = min(_MOST, 2 * self._width) if right == guessed else max(1, right)
