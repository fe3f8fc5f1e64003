"""What a machine that loses power may leave of a folder, after each step of what was done there.

As ALICE does (Pillai et al., OSDI 2014): the calls that change a folder are recorded with what its files held at the
time. A crash keeps what was synced. Of all else, bytes that were written and not synced may be there, be cut or be
missing, and a file that was made, renamed or removed in a folder that was not synced since may be so or not; a rename
is done whole or not at all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_CALLS = ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")
Entry = tuple[int, str]
"""A name in a folder, which is known by its number."""
Change = dict[Entry, int | None]
"""What stands behind names from now on; None where nothing does."""


@dataclass
class Operation:
    """A change of names that happens whole or not at all."""

    change: Change
    unsynced: set[int]
    """Folders whose sync is still to come; the change is durable when there is none left."""


@dataclass
class Moment:
    """What is known of the folder at one moment."""

    durable: Change
    pending: list[Change]
    synced: dict[int, bytes]
    current: dict[int, bytes]
    notes: tuple[Any, ...]
    """What was noted up to then, see :meth:`Recorder.note`."""


@dataclass(frozen=True)
class State:
    """What a crash leaves: the content of files, and None for folders, by relative path."""

    tree: tuple[tuple[str, bytes | None], ...]
    notes: tuple[Any, ...]

    def write(self, folder: Path) -> Path:
        """Write it into a new folder."""
        folder.mkdir()
        for name, content in self.tree:
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
        return folder


@dataclass
class Recorder:
    """Follows a folder, which exists and is durable at the beginning."""

    folder: Path
    moments: list[Moment] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_CALLS, 0))

    def __post_init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._next = 0
        self._root = self._number(self.folder.stat().st_ino)
        self._durable: Change = {}
        self._pending: list[Operation] = []
        self._names, self._current = self._scanned()
        self._durable = dict(self._names)
        self._synced = dict(self._current)
        self._notes: list[Any] = []

    def note(self, value: Any) -> None:
        """Note that something is done: whatever crashes from now on, it must not be lost."""
        self._look()
        self._notes.append(value)
        self._remember()

    def called(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a call, and look at the folder before and after it."""
        self._look()
        self._remember()
        result = call(*arguments, **options)
        self.calls[name] += 1
        if name == "fsync":
            self._sync(os.fstat(arguments[0]).st_ino)
        self._look(together=name in ("replace", "rename"))
        self._remember()
        return result

    def _number(self, inode: int) -> int:
        """Return the number of a file or folder; an inode that is used again is another one."""
        if inode not in self._numbers:
            self._numbers[inode] = self._next
            self._next += 1
        return self._numbers[inode]

    def _scanned(self) -> tuple[Change, dict[int, bytes]]:
        names: Change = {}
        contents: dict[int, bytes] = {}
        inodes = {self.folder.stat().st_ino}
        left = [(self.folder, self._root)]
        while left:
            folder, number = left.pop()
            for entry in os.scandir(folder):
                inodes.add(entry.inode())
                own = names[number, entry.name] = self._number(entry.inode())
                if entry.is_dir(follow_symlinks=False):
                    left.append((Path(entry.path), own))
                else:
                    contents[own] = Path(entry.path).read_bytes()
        self._numbers = {inode: number for inode, number in self._numbers.items() if inode in inodes}
        return names, contents

    def _look(self, together: bool = False) -> None:
        names, self._current = self._scanned()
        changed = {entry for entry in names.keys() | self._names.keys() if names.get(entry) != self._names.get(entry)}
        change = {entry: names.get(entry) for entry in sorted(changed)}
        for part in [change] if together else [{entry: number} for entry, number in change.items()]:
            if part:
                self._pending.append(Operation(part, {folder for folder, _ in part}))
        self._names = names

    def _sync(self, inode: int) -> None:
        number = self._numbers.get(inode)
        if number is None:
            return  # of another folder
        if number in self._current:
            self._synced[number] = self._current[number]
        for operation in self._pending:
            operation.unsynced.discard(number)
            if not operation.unsynced:
                self._durable |= operation.change
        self._pending = [operation for operation in self._pending if operation.unsynced]

    def _remember(self) -> None:
        pending = [operation.change for operation in self._pending]
        self.moments.append(
            Moment(dict(self._durable), pending, dict(self._synced), dict(self._current), tuple(self._notes))
        )

    def states(self) -> list[State]:
        """Return all different states that a crash at any of the moments may leave, in the order of the moments."""
        found: dict[State, None] = {}
        for moment in self.moments:
            for names, data in _chosen(moment):
                found[State(self._tree(names, moment, data), moment.notes)] = None
        return list(found)

    def _tree(self, names: Change, moment: Moment, data: str) -> tuple[tuple[str, bytes | None], ...]:
        inside: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), number in names.items():
            if number is not None:
                inside.setdefault(folder, []).append((name, number))
        tree: list[tuple[str, bytes | None]] = []
        left = [("", self._root)]
        while left:
            path, folder = left.pop()
            for name, number in sorted(inside.get(folder, ())):
                place = f"{path}{name}"
                if number in moment.current or number in moment.synced or number in self._files:
                    tree.append((place, _content(moment, number, data)))
                else:
                    tree.append((place, None))
                    left.append((f"{place}/", number))
        return tuple(tree)

    @functools.cached_property
    def _files(self) -> set[int]:
        return {number for moment in self.moments for number in moment.current}


def _content(moment: Moment, number: int, data: str) -> bytes:
    synced = moment.synced.get(number, b"")
    # A name that was removed and comes back has what was synced.
    current = moment.current.get(number, synced)
    if data == "synced":
        return synced
    if data == "cut":
        whole = len(synced) if current.startswith(synced) else 0
        return current[: whole + (len(current) - whole) // 2]
    return current


def _chosen(moment: Moment) -> Iterator[tuple[Change, str]]:
    """Yield which changes of names a crash leaves, and whether bytes are those of the last sync, cut, or all there."""

    def after(*changes: Change) -> Change:
        names = dict(moment.durable)
        for change in changes:
            names |= change
        return names

    every = moment.pending
    for data in ("synced", "cut", "current"):
        yield after(*every), data
    for data in ("synced", "current"):
        yield after(), data
    for place in range(len(every)):
        yield after(every[place]), "synced"
        yield after(*every[:place], *every[place + 1 :]), "synced"
        yield after(*every[:place]), "current"


@contextmanager
def recorded(folder: Path) -> Iterator[Recorder]:
    """Record what is done in a folder."""
    recorder = Recorder(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, functools.partial(recorder.called, name, getattr(os, name)))
        yield recorder
