"""What an executor is: cells that were opened in, the results of their batches out, on whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from longctx_bench.engines.base import Contestant, EngineFacts
from longctx_bench.plan import PlannedCell
from longctx_bench.records import NATURAL, Example, Finished, Request

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
class Work:
    """A cell that is open: its prompts are written, and what earlier runs measured of it is known."""

    planned: PlannedCell
    folder: Path
    """Of the checkpoint, on this machine."""
    contestant: Contestant
    requests: Sequence[Request] = ()
    """All of the cell's, those that are measured already among them: batches are made of all."""
    examples: Mapping[str, Example] = field(default_factory=dict)
    """By id."""
    have: AbstractSet[str] = frozenset()
    """Ids that are measured already."""
    harness: HarnessSettings | None = None
    """Set where lm-eval runs the task whole; there are no requests then."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What the method puts into the config, for the record."""
    left: int = 0
    """Examples still to be run; the runner counts."""
    peak: int | None = None
    """The most bytes that any of the cell's batches held, where an engine can say."""
    closed: bool = False
    """Set by the runner when nothing more of this cell is wanted, because it failed."""

    @property
    def per_prompt(self) -> bool:
        """Whether prompts of different lengths must not share a batch."""
        natural = self.planned.cell.length == NATURAL
        return self.contestant.method.per_prompt or natural or self.planned.kind == "loss"

    def unfinished(self, batches: Iterable[Sequence[Request]]) -> list[Sequence[Request]]:
        """Return the batches that hold anything not measured yet, each whole.

        A batch is the unit of resuming: batches are the same ones in every run, and so are their sums.
        """
        return [batch for batch in batches if any(request.example_id not in self.have for request in batch)]


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

    finished: Sequence[Finished]
    """In the batch's order."""
    peak: int | None
    """Bytes held at most, where the engine can say."""
    engine: dict[str, Any]
    """The engine's settings, as :meth:`~longctx_bench.engines.base.EngineFacts.describe` gives them."""
    whole: Whole | None = None


@dataclass(frozen=True)
class Result:
    """One batch of a cell that has been run, or why it could not be."""

    work: Work
    answer: Answer | None = None
    last: bool = False
    """True when the cell has no other batch that is still to come."""
    error: Exception | None = None
    """In place of an answer; whether it is the user's to put right, the runner decides."""


class RemoteError(Exception):
    """What code raised in another process: the name of its class and its text; its traceback is a note."""


class Executor(Protocol):
    """Runs batches. Close it, or use it in a ``with`` block."""

    name: str

    @property
    def engine(self) -> EngineFacts:
        """What is known of the engines, all alike, that run the batches."""

    def results(self, works: Iterator[Work], note: Note) -> Iterator[Result]:
        """Run cells, taken one after the other as there is room for them, and give batches as they are done.

        An error ends its cell and no other. A cell that the caller closes gets no further batches.

        Raises:
            UserError: nothing is left that could run a batch.
        """

    def describe(self) -> dict[str, Any] | None:
        """Return what a record should say of the executor; None where there is nothing to say."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
