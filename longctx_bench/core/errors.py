"""User errors, which the command line prints as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from longctx_bench.core.deprecation import renamed_attributes


class UserError(Exception):
    """An error that the user can fix: the command line prints it as one line and exits with code 2.

    The message says what is wrong, where, and what to do. Any other exception is a bug of this project and keeps its
    traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ContextTooShort(UserError):
    """The cell's length is too short for the task or the method: the cell is skipped and the run continues."""


class DiskFull(UserError):
    """The disk is full or read-only, so that no cell can be written: the run stops and keeps what it has stored."""


_MAX_LISTED = 24
"""Known names that fit into a one-line message."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or list the known names when none is close.

    More than 24 names (every method on every base model) are not listed.
    """
    candidates = sorted(set(known))
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.55)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(candidates)}" if 0 < len(candidates) <= _MAX_LISTED else ""


_OF_EXTRA_HF = (
    "gguf",
    "httpx2",
    "huggingface_hub",
    "psutil",
    "safetensors",
    "tenacity",
    "tokenizers",
    "torch",
    "transformers",
)


def missing_extra(error: BaseException) -> str | None:
    """Return what to install, if an import failed for a package that an installation for reading results lacks."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in _OF_EXTRA_HF:
        return None
    return f"this needs the package '{package}': pip install 'longctx-bench[hf]'"


__getattr__ = renamed_attributes(__name__, {"DoesNotFit": "ContextTooShort", "near_miss": "did_you_mean"}, globals())
