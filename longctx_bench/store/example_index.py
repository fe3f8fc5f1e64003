"""Compact maps from example id to number or hash: a few bytes per example, as a cell may have millions."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, MutableMapping
from heapq import merge

_ABSENT = -1


class NumbersById(MutableMapping[str, int]):
    """Non-negative integers by example id, iterated in id order: 8 bytes each where ids are six-digit numbers.

    Other ids, which foreign files may have, go into a dict.
    """

    def __init__(self) -> None:
        # Six digits: at most a million entries, whatever ids a file has.
        self._numbers = array("q")
        self._others: dict[str, int] = {}
        self._size = 0

    def __getitem__(self, name: str) -> int:
        index = _index(name)
        if index is None:
            return self._others[name]
        number = self._numbers[index] if index < len(self._numbers) else _ABSENT
        if number == _ABSENT:
            raise KeyError(name)
        return number

    def __setitem__(self, name: str, number: int) -> None:
        self._size += name not in self
        index = _index(name)
        if index is None:
            self._others[name] = number
            return
        if index >= len(self._numbers):
            self._numbers.extend(array("q", [_ABSENT]) * (index + 1 - len(self._numbers)))
        self._numbers[index] = number

    def __delitem__(self, name: str) -> None:
        index = _index(name)
        if index is None:
            del self._others[name]
        elif name in self:
            self._numbers[index] = _ABSENT
        else:
            raise KeyError(name)
        self._size -= 1

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        numeric = (f"{index:06d}" for index, number in enumerate(self._numbers) if number != _ABSENT)
        return merge(numeric, sorted(self._others))


class HashesById(MutableMapping[str, str]):
    """Hashes by example id, iterated in id order: 24 bytes each where they have the form that a run writes."""

    def __init__(self) -> None:
        self._rows = NumbersById()
        self._digests = bytearray()
        self._others: dict[int, str] = {}

    def __getitem__(self, name: str) -> str:
        row = self._rows[name]
        return self._others[row] if row in self._others else self._digests[16 * row : 16 * row + 16].hex()

    def __setitem__(self, name: str, value: str) -> None:
        row = self._rows.setdefault(name, len(self._digests) // 16)
        digest = hash_to_digest(value)
        self._digests[16 * row : 16 * row + 16] = digest or bytes(16)
        self._others.pop(row, None)
        if digest is None:
            self._others[row] = value

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)


def hash_to_digest(value: str) -> bytes | None:
    """Return an example's hash as 16 bytes; None where it is not 32 lowercase hexadecimal digits."""
    try:
        digest = bytes.fromhex(value)
    except ValueError:
        return None
    return digest if len(digest) == 16 and digest.hex() == value else None


def _index(name: str) -> int | None:
    """Return an id of six digits as a number; None for other ids."""
    return int(name) if len(name) == 6 and name.isascii() and name.isdigit() else None
