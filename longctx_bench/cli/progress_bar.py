"""The progress bar of a run: examples of all cells with an ETA, and the cell at work."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longctx_bench.core.sanitize import pluralize, single_line

if TYPE_CHECKING:
    from longctx_bench.runner.plan import PlannedCell


class Bars:
    """Shows a run on standard error; on a pipe, one line a cell instead of a moving bar."""

    def __init__(self) -> None:
        # This stream and no later one: while lm-eval runs, standard error is taken from its own bars.
        self._console = Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._examples = self._progress.add_task("examples", total=0)
        self._cells = 0
        self._begun = 0
        self.said: set[str] = set()
        """Lines ``failed: CELL: why`` that were printed: the end of a run need not repeat them."""

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, cells: int, examples: int) -> None:
        """Set the totals."""
        self._cells = cells
        self._progress.update(self._examples, total=examples)

    def cell(self, planned: PlannedCell, examples: int) -> None:
        """Name the cell at work."""
        self._begun += 1
        # Examples that an earlier run stored are not waited for.
        self._progress.advance(self._examples, planned.n - examples)
        self._progress.update(self._examples, description=escape(single_line(str(planned.cell))))
        if not self._console.is_terminal:
            count = pluralize(examples, "example") if planned.kind != "lm_eval" else "lm-eval's documents"
            self._console.print(single_line(f"{planned.cell}: {count} to run"), markup=False, soft_wrap=True)

    def advance(self, examples: int) -> None:
        """Move the bar."""
        self._progress.advance(self._examples, examples)

    def note(self, message: str) -> None:
        """Print a line above the bar; that a cell failed or was skipped as :attr:`said` has it."""
        for what in ("failed", "skipped"):
            cell, found, reason = message.partition(f": {what}: ")
            if found:
                message = f"{what}: {cell}: {reason}"
                self.said.add(message)
                break
        self._progress.console.print(single_line(message), markup=False, soft_wrap=True)

    def end_cell(self, planned: PlannedCell, left: int) -> None:
        """Account for examples that were not run."""
        self._progress.advance(self._examples, left)
