"""What an executor is: parts of cells that were opened in, the results of their batches out, on whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from longctx_bench.core.types import NATURAL, Example, Request, SampleRecord
from longctx_bench.engines.base import EngineInfo
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.runner.plan import PlannedCell

Note = Callable[[str], None]
"""Takes a line that is worth showing."""


@dataclass(frozen=True)
class HarnessSettings:
    """What lm-eval is told of a task that it runs whole."""

    limit: int | None
    """Documents; all when None."""
    seed: int
    chat_template: bool


@dataclass(eq=False)
class OpenCell:
    """A cell that is open: what all parts of it have in common. The runner alone changes it."""

    planned: PlannedCell
    folder: Path
    """Of the checkpoint, on this machine."""
    contestant: ModelUnderTest
    virtual_length: float | None = None
    """See :class:`~longctx_bench.store.schema.CellResult`."""
    have: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the examples that are measured already, by id."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What the method puts into the config, for the record."""
    examples: int = 0
    """In the parts that were opened."""
    longest: int = 0
    """Tokens of the longest prompt and answer in them."""
    left: int = 0
    """Examples still to be run."""
    running: int = 0
    """Parts that were opened and are not stored."""
    complete: bool = False
    """Whether all parts were opened."""
    peak: int | None = None
    """The most bytes that any of the cell's batches held, where an engine can say."""
    closed: bool = False
    """Set when nothing more of this cell is wanted, because it failed."""


@dataclass(eq=False)
class Work:
    """A part of an open cell, all of it unless it has very many examples: their prompts are written."""

    cell: OpenCell
    requests: Sequence[Request] = ()
    """All of the part's, those that are measured already among them: batches are made of all."""
    examples: Mapping[str, Example] = field(default_factory=dict)
    """By id."""
    harness: HarnessSettings | None = None
    """Set where lm-eval runs the task whole; there are no requests then."""
    left: int = 0
    """Examples of it that were not measured when it was opened."""

    @property
    def planned(self) -> PlannedCell:
        """The cell as it was planned."""
        return self.cell.planned

    @property
    def folder(self) -> Path:
        """Of the checkpoint, on this machine."""
        return self.cell.folder

    @property
    def contestant(self) -> ModelUnderTest:
        """Base, method and length."""
        return self.cell.contestant

    @property
    def closed(self) -> bool:
        """Whether nothing more of its cell is wanted."""
        return self.cell.closed

    def release(self) -> None:
        """Let go of the prompts, whoever still refers to the part: it is stored, and the next one needs the room."""
        self.requests, self.examples = (), {}

    @property
    def per_prompt(self) -> bool:
        """Whether prompts of different lengths must not share a batch."""
        natural = self.planned.cell.length == NATURAL
        return self.contestant.method.per_prompt or natural or self.planned.kind == "loss"

    def unfinished(self, batches: Iterable[Sequence[Request]]) -> list[Sequence[Request]]:
        """Return the batches that hold anything not measured yet, each whole.

        A batch is the unit of resuming: batches are the same ones in every run, and so are their sums.
        """
        return [batch for batch in batches if any(request.example_id not in self.cell.have for request in batch)]


@dataclass(frozen=True)
class Whole:
    """What lm-eval made of a task."""

    metric: str
    score: float
    details: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What an engine did with one batch, or lm-eval with a whole task."""

    finished: Sequence[SampleRecord]
    """In the batch's order."""
    peak: int | None
    """Bytes held at most, where the engine can say."""
    engine: dict[str, Any]
    """The engine's settings, as :meth:`~longctx_bench.engines.base.EngineInfo.settings` gives them."""
    whole: Whole | None = None


@dataclass(frozen=True)
class Result:
    """One batch of a part that has been run, or why it could not be."""

    work: Work
    answer: Answer | None = None
    last: bool = False
    """True when the part has no other batch that is still to come."""
    error: Exception | None = None
    """In place of an answer; whether it is the user's to put right, the runner decides."""


class RemoteError(Exception):
    """What code raised in another process: the name of its class and its text; its traceback is a note."""


class Executor(Protocol):
    """Runs batches. Close it, or use it in a ``with`` block."""

    name: str

    @property
    def engine(self) -> EngineInfo:
        """What is known of the engines, all alike, that run the batches."""

    def results(self, works: Iterator[Work], note: Note) -> Iterator[Result]:
        """Run parts of cells, taken one after the other as there is room for them, and give batches as they are done.

        A cell has one part unless it is very large; the next one is written when it is taken. An error ends its cell
        and no other. A cell that the caller closes gets no further batches.

        Raises:
            UserError: nothing is left that could run a batch.
        """

    def describe(self) -> dict[str, Any] | None:
        """Return what a record should say of the executor; None where there is nothing to say."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
