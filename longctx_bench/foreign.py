"""Reading JSON that somebody else wrote: a regular file, of limited size and depth, of the type that is expected."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from longctx_bench.errors import UserError

MOST = 16 << 20
"""Bytes of a model's JSON files; the largest known configs, which list a class for each token, take a tenth."""
_DEEPEST = 64


def json_object(path: Path, advice: str, most: int = MOST) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: of the file; never waited for where it is a pipe.
        advice: what to do if it cannot be read.
        most: bytes.

    Raises:
        UserError: it is missing, no regular file, too large, no JSON object or one nested too deeply.
    """
    try:
        # A pipe that nobody writes to would be waited for without O_NONBLOCK.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"{path}: is no regular file; {advice}")
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    if len(content) > most:
        raise UserError(f"{path}: is larger than {most >> 20} MiB; {advice}")
    try:
        loaded = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply; {advice}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error!s:.100}); {advice}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: is not a JSON object; {advice}")
    if _too_deep(loaded):
        raise UserError(f"{path}: is nested too deeply; {advice}")
    return loaded


def _too_deep(value: Any) -> bool:
    """Tell whether containers lie in each other more than 64 times; without recursion, which is what this prevents."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for each in level
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True
