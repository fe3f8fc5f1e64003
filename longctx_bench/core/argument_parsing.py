"""Lengths, scales and names as users give them: text on the command line, text, numbers and lists in Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL, length_name

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""With commas, or a list."""
Scales = float | str | Sequence[float | str] | None
"""Multiples of the training context."""
Lengths = int | str | Sequence[int | str] | None
"""In tokens."""


def split_commas(text: str | None) -> list[str]:
    """Return what stands between the commas of an option."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def parse_scales(value: Any, where: str = "--scale") -> tuple[float, ...]:
    """Turn ``1x,2x,0.5x``, 2, or a list of either into numbers.

    Args:
        value: None is no scale.
        where: names the option or argument in an error.

    Raises:
        UserError: a scale is no positive number.
    """
    scales = []
    for part in _items(value, where, "2x"):
        try:
            scale = float(part.lower().removesuffix("x")) if isinstance(part, str) else float(part)
        except ValueError as error:
            raise UserError(f"{where} {part}: expected a number with x, such as 2x") from error
        if not 0 < scale < float("inf"):
            raise UserError(f"{where} {part}: must be above 0, such as 2x")
        scales.append(scale)
    return tuple(scales)


def parse_lengths(value: Any, where: str = "--length") -> tuple[int, ...]:
    """Turn ``4096,8k,natural``, 4096, or a list of either into tokens; k is 1024, ``natural`` keeps documents whole.

    Args:
        value: None is no length.
        where: names the option or argument in an error.

    Raises:
        UserError: a length is no positive whole number.
    """
    lengths = []
    for part in _items(value, where, "4096 or '4k'"):
        text = part.lower() if isinstance(part, str) else f"{part:.0f}" if part == part // 1 else str(part)
        if text == length_name(NATURAL) or part == NATURAL:
            lengths.append(NATURAL)
            continue
        try:
            length = int(text.removesuffix("k")) * (1024 if text.endswith("k") else 1)
        except ValueError as error:
            raise UserError(f"{where} {part}: expected a number of tokens, such as 4096 or 4k, or natural") from error
        if length < 1:
            raise UserError(f"{where} {part}: must be above 0")
        lengths.append(length)
    return tuple(lengths)


def join_names(value: Any, where: str) -> str:
    """Return names with commas between them: of text, a path, or a list of either; empty for None.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else [value]
    if not all(isinstance(item, str | os.PathLike) for item in items):
        raise UserError(f"{where}: expected a name or a list of names (got {value!r:.60})")
    return ",".join(map(os.fspath, items))


def parse_int(value: Any, where: str, least: int = 1) -> int | None:
    """Return a whole number of at least ``least``, or None for None.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return None
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else least - 1.0
    if not number.is_integer() or number < least:
        raise UserError(f"{where}: expected a whole number of at least {least} (got {value!r:.60})")
    return int(value)


def parse_seed(value: Any) -> int:
    """Return a seed.

    Raises:
        UserError: it is no whole number of at least 0.
    """
    seed = parse_int(value, "seed", least=0)
    if seed is None:
        raise UserError("seed: expected a whole number (got None)")
    return seed


def parse_path(value: Any, where: str) -> Path:
    """Return a path.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{where}: expected a path (got {value!r:.60})")
    return Path(value)


def dtype_name(value: Any) -> str:
    """Return a precision's name; torch's own dtype is one too.

    Raises:
        UserError: no engine computes in it.
    """
    name = str(value).removeprefix("torch.")
    if name not in ("auto", "float32", "bfloat16"):
        raise UserError(f"dtype: expected auto, float32 or bfloat16 (got {name:.60})")
    return name


def _items(value: Any, where: str, example: str) -> Iterator[Any]:
    """Yield texts and numbers, from lists of them too."""
    if value is None:
        return
    if isinstance(value, str):
        yield from split_commas(value)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, bytes | dict):
        for item in value:
            if isinstance(item, Iterable) and not isinstance(item, str):
                raise UserError(f"{where}: expected {example}, or a list of such (got {value!r:.60})")
            yield from _items(item if item is not None else object(), where, example)
    else:
        raise UserError(f"{where}: expected {example}, or a list of such (got {value!r:.60})")
