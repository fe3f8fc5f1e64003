"""The executor protocol: jobs (cells or parts of them) in, results of their batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from longctx_bench.core.types import NATURAL, Example, Request
from longctx_bench.engines.base import EngineInfo
from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.runner.plan import PlannedCell
from longctx_bench.runner.strategies import BatchResult

Note = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(eq=False)
class OpenCell:
    """A cell in progress: the state that its jobs share. Only the runner changes it."""

    planned: PlannedCell
    folder: Path
    """The checkpoint, on this machine."""
    model: ModelUnderTest
    virtual_length: float | None = None
    """See :class:`~longctx_bench.store.schema.CellResult`."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Prompt hashes of the examples already measured, by id."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """The config entries that the method sets, for the record."""
    num_examples: int = 0
    """In the jobs created so far."""
    max_tokens: int = 0
    """The longest prompt and answer in them, in tokens."""
    num_remaining: int = 0
    """Examples still to run."""
    num_running_jobs: int = 0
    """Jobs whose results are not all stored."""
    all_jobs_created: bool = False
    peak_memory: int | None = None
    """Peak bytes over the cell's batches, where the engine reports it."""
    closed: bool = False
    """Set when the cell failed: its remaining batches are dropped."""


@dataclass(eq=False)
class CellJob:
    """A cell to run, or consecutive examples of a large one (``request_builder.PART`` of them at most)."""

    cell: OpenCell
    requests: Sequence[Request] = ()
    """All of the job's, including measured ones, because batches are formed from all; none for a task that an
    external harness runs."""
    examples: Mapping[str, Example] = field(default_factory=dict)
    """By id."""
    num_missing: int = 0
    """Examples not yet measured when the job was created."""

    @property
    def planned(self) -> PlannedCell:
        """The planned cell."""
        return self.cell.planned

    @property
    def folder(self) -> Path:
        """The checkpoint, on this machine."""
        return self.cell.folder

    @property
    def model(self) -> ModelUnderTest:
        """Base model, method and length."""
        return self.cell.model

    @property
    def closed(self) -> bool:
        """Whether the cell failed, so that its remaining batches are dropped."""
        return self.cell.closed

    def release(self) -> None:
        """Free the prompts of a stored job, although it may still be referenced."""
        self.requests, self.examples = (), {}

    @property
    def per_prompt(self) -> bool:
        """Whether prompts of different lengths must not share a batch."""
        if self.planned.cell.length == NATURAL or self.planned.strategy.equal_lengths:
            return True
        return self.model.method.needs_equal_lengths(self.model.base, map(num_total_tokens, self.requests))

    def unfinished(self, batches: Iterable[Sequence[Request]]) -> list[Sequence[Request]]:
        """Return the batches with any unmeasured example, whole.

        Runs resume by batch: batches are the same in every run, and so are floating-point sums.
        """
        if self.planned.strategy.external:
            return list(batches)
        return [batch for batch in batches if any(request.example_id not in self.cell.stored for request in batch)]


@dataclass(frozen=True)
class JobResult:
    """The result of one batch of a job, or the error that ended it."""

    job: CellJob
    batch: BatchResult | None = None
    last: bool = False
    """True for the job's last batch."""
    error: Exception | None = None
    """Set instead of ``batch``; the runner decides whether it is a user error."""


class RemoteError(Exception):
    """An exception of another process: class name and message, with the traceback as a note."""


class Executor(Protocol):
    """Runs batches; a context manager."""

    name: str

    @property
    def engine(self) -> EngineInfo:
        """The engine, or the common facts of all engines."""

    def results(self, jobs: Iterator[CellJob], note: Note) -> Iterator[JobResult]:
        """Run jobs lazily and yield batch results as they complete.

        The next job is taken, and its prompts are written, when there is capacity for it. An error ends its own cell
        only. Cells that the caller closes get no further batches.

        Raises:
            UserError: no engine is left to run a batch.
        """

    def describe(self) -> dict[str, Any] | None:
        """Return the executor's entry in a cell's record; None if it has none."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
