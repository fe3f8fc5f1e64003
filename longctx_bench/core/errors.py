"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: the command line prints it as one line and exits with code 2.

    The message says what is wrong, where, and what to do. Everything else that is raised is a bug of
    this project and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DoesNotFit(UserError):
    """A cell whose length the task or the method cannot be run at: it is skipped and the run goes on."""


class DiskFull(UserError):
    """Nothing can be written any more, whichever cell it belongs to: a run ends there and keeps what it has."""


_MOST_NAMED = 24
"""Known names that one line can list."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or the known names when none is close.

    Of very many names (every method on every base) none is listed.
    """
    candidates = sorted(set(known))
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.55)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(candidates)}" if 0 < len(candidates) <= _MOST_NAMED else ""
