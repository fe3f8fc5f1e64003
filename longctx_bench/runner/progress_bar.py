"""Progress bar of a run: examples of all cells with an ETA, and the current cell."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longctx_bench.core.sanitize import single_line

if TYPE_CHECKING:
    from longctx_bench.runner.plan import PlannedCell


def is_interactive() -> bool:
    """Whether somebody watches: standard error is a terminal, or this is a notebook."""
    console = Console(file=sys.stderr)
    return console.is_terminal or console.is_jupyter


def _can_redraw(console: Console) -> bool:
    # Without ipywidgets, rich would warn in place of each step of the bar.
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class ProgressBar:
    """Shows a run on standard error or in a notebook: a moving bar or, in a pipe and without ipywidgets, lines."""

    def __init__(self) -> None:
        # Bound now: sys.stderr is redirected while lm-eval runs, to hide its own progress bars.
        self._console = Console(file=sys.stderr)
        self._moving = _can_redraw(self._console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._moving,
        )
        self._examples = self._progress.add_task("examples", total=0)
        self._cells = 0
        self._num_started = 0
        self.printed: set[str] = set()
        """The lines ``failed: CELL: reason`` printed so far, which the summary does not repeat."""

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In a notebook, stopping does not draw the last state.
        self._progress.refresh()
        self._progress.stop()

    def begin(self, cells: int, examples: int) -> None:
        """Set the totals."""
        self._cells = cells
        self._progress.update(self._examples, total=examples)

    def cell(self, planned: PlannedCell, examples: int) -> None:
        """Show the current cell."""
        self._num_started += 1
        # Examples stored by an earlier run count as done.
        self._progress.advance(self._examples, planned.n - examples)
        self._progress.update(self._examples, description=escape(single_line(str(planned.cell))))
        if not self._moving:
            count = planned.strategy.count(examples)
            self._console.print(single_line(f"{planned.cell}: {count} to run"), markup=False, soft_wrap=True)

    def advance(self, examples: int) -> None:
        """Move the bar."""
        self._progress.advance(self._examples, examples)

    def note(self, message: str) -> None:
        """Print a line above the bar, reworded as ``failed: CELL: reason`` if it reports a failed or skipped cell."""
        for what in ("failed", "skipped"):
            cell, separator, reason = message.partition(f": {what}: ")
            if separator:
                message = f"{what}: {cell}: {reason}"
                self.printed.add(message)
                break
        self._progress.console.print(single_line(message), markup=False, soft_wrap=True)

    def end_cell(self, planned: PlannedCell, left: int) -> None:
        """Advance past the examples that were not run."""
        self._progress.advance(self._examples, left)
