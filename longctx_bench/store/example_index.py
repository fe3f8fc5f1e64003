"""What is kept of each example of a cell by its id, in some bytes instead of some hundred: a cell may have millions."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, MutableMapping
from heapq import merge

_ABSENT = -1


class NumbersById(MutableMapping[str, int]):
    """Numbers from 0 by example id, in the order of ids: eight bytes each where ids are numbers of six digits.

    Ids of another form, which somebody else's files may have, take what they take in a dict.
    """

    def __init__(self) -> None:
        # A million at most, whatever ids a file claims to have.
        self._numbers = array("q")
        self._others: dict[str, int] = {}
        self._size = 0

    def __getitem__(self, name: str) -> int:
        place = _place(name)
        if place is None:
            return self._others[name]
        number = self._numbers[place] if place < len(self._numbers) else _ABSENT
        if number == _ABSENT:
            raise KeyError(name)
        return number

    def __setitem__(self, name: str, number: int) -> None:
        self._size += name not in self
        place = _place(name)
        if place is None:
            self._others[name] = number
            return
        if place >= len(self._numbers):
            self._numbers.extend(array("q", [_ABSENT]) * (place + 1 - len(self._numbers)))
        self._numbers[place] = number

    def __delitem__(self, name: str) -> None:
        place = _place(name)
        if place is None:
            del self._others[name]
        elif name in self:
            self._numbers[place] = _ABSENT
        else:
            raise KeyError(name)
        self._size -= 1

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        there = (f"{place:06d}" for place, number in enumerate(self._numbers) if number != _ABSENT)
        return merge(there, sorted(self._others))


class HashesById(MutableMapping[str, str]):
    """Hashes by example id, in the order of ids; 24 bytes each where they are what a run writes."""

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
    """Return the 16 bytes of an example's hash; None where it is not 32 small hexadecimal digits."""
    try:
        digest = bytes.fromhex(value)
    except ValueError:
        return None
    return digest if len(digest) == 16 and digest.hex() == value else None


def _place(name: str) -> int | None:
    """Return the number that an id is, where it is written as runs write it."""
    return int(name) if len(name) == 6 and name.isascii() and name.isdigit() else None
