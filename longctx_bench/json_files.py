"""Reading JSON and JSON lines: what is damaged is named by file and line, and ends nothing but its own reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longctx_bench.errors import UserError


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None when there is no such file, or a file in place of its folder.

    Raises:
        UserError: the file cannot be read, is not JSON, or not an object.
    """
    advice = "delete its folder and run again"
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file; {advice}")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({_problem(error)}); {advice}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: is not a JSON object; {advice}")
    return loaded


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; nothing when there is no such file.

    Raises:
        UserError: a line is not JSON, with its number, or the file cannot be read.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path}: is not a regular file")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                loaded = parsed(line)
                if isinstance(loaded, str):
                    raise UserError(f"{path}: line {number} {loaded}")
                yield loaded
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def parsed(line: bytes) -> dict[str, Any] | str:
    """Return a line's object, or what is wrong with the line."""
    try:
        loaded = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON ({_problem(error)})"
    return loaded if isinstance(loaded, dict) else "is not a JSON object"


def _problem(error: Exception) -> str:
    """Say why JSON could not be read."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
