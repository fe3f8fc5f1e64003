"""Examples as JSON lines, written on all cores where there are enough of them."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeGuard

from longctx_bench.benchmarks.base import Benchmark, IndexedBenchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.provenance import usable_cores
from longctx_bench.core.temp_dirs import ScratchFolder
from longctx_bench.core.types import Example
from longctx_bench.models.checkpoint import prompt_tokenizer
from longctx_bench.models.fast_tokenizer import LightTokenizer

_WORTH = 4_000_000
"""Tokens to write for each process, without which starting one more takes longer than it saves."""
_PART = 500_000
"""Tokens that a process writes before it looks for more: some tenths of a second."""
_POLL = 0.01
"""Seconds between looks for a part that another process writes."""


@dataclass(frozen=True)
class Order:
    """Examples of a task: what :meth:`Benchmark.examples` is to give, or its examples ``first`` to ``n - 1``."""

    task: str
    benchmark: Benchmark
    length: int
    max_new_tokens: int
    n: int
    seed: int
    chat_template: bool = False
    first: int = 0


def lines(orders: Sequence[Order], folder: Path) -> Iterator[str]:
    """Yield a line for each example, the same ones in the same order however many processes write them.

    Args:
        orders: what to write, one task after another.
        folder: holds the tokenizer.

    Raises:
        UserError: as :meth:`Benchmark.examples`, behind the lines of the examples before; or there is no tokenizer.
    """
    writer = _Writer(folder)
    parts = [part for order in orders for part in _parts(order)]
    helpers = min(usable_cores(), sum(order.n * order.length for order in orders) // _WORTH) - 1
    if helpers < 1 or any(order.chat_template for order in orders) or not writer.is_light:
        for part in parts:
            yield from writer.lines(part)
        return
    # Spawned, because a forked copy of a process with a tokenizer's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ScratchFolder("longctx-bench-") as scratch:
        shared = {number: part for number, part in enumerate(parts) if _travels(part.benchmark)}
        processes: list[BaseProcess] = []
        try:
            for _ in range(helpers):
                helper = context.Process(target=_help, args=(shared, folder, scratch), daemon=True)
                helper.start()
                processes.append(helper)
            for number, part in enumerate(parts):
                written = scratch / f"{number}.jsonl"
                if _claim(written) or not _awaited(written, processes):
                    yield from writer.lines(part)
                else:
                    with written.open(encoding="utf-8", newline="\n") as file:
                        yield from file
                    written.unlink()
        finally:
            for process in processes:
                process.terminate()
                process.join()


class _Writer:
    """Writes in this process."""

    def __init__(self, folder: Path) -> None:
        tokenizer = prompt_tokenizer(folder)
        self.is_light = isinstance(tokenizer, LightTokenizer)
        # One for all tasks: it remembers the texts that they share.
        self._encoders = {False: PromptEncoder(tokenizer)}

    def lines(self, order: Order) -> Iterator[str]:
        if order.chat_template not in self._encoders:
            self._encoders[True] = PromptEncoder(self._encoders[False].tokenizer, chat_template=True)
        encoder, benchmark = self._encoders[order.chat_template], order.benchmark
        arguments = (encoder, order.length, order.max_new_tokens)
        if _divisible(benchmark):
            for index in range(order.first, order.n):
                yield _line(order.task, benchmark.example(*arguments, order.seed, index))
            return
        for example in benchmark.examples(*arguments, order.n, order.seed):
            yield _line(order.task, example)


def _line(task: str, example: Example) -> str:
    fields = {
        "task": task,
        "id": example.id,
        "hash": example.hash,
        "prompt": example.prompt,
        "answer_prefix": example.answer_prefix,
        "references": list(example.references),
        **({"classes": list(example.classes)} if example.classes else {}),
        "depths": list(example.depths),
        "n_tokens": example.n_tokens,
        "max_new_tokens": example.max_new_tokens,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _divisible(benchmark: Benchmark) -> TypeGuard[IndexedBenchmark]:
    return isinstance(benchmark, IndexedBenchmark) and type(benchmark).examples is IndexedBenchmark.examples


def _travels(benchmark: Benchmark) -> bool:
    """Tell whether another process can import the benchmark's class: a user's file is known to this one alone."""
    return type(benchmark).__module__.partition(".")[0] == __name__.partition(".")[0]


def _parts(order: Order) -> Iterator[Order]:
    step = max(1, _PART // max(1, order.length)) if _divisible(order.benchmark) else order.n
    for first in range(0, order.n, step):
        yield replace(order, first=first, n=min(order.n, first + step))


def _claim(written: Path) -> bool:
    """Take a part for this process, unless another has it."""
    try:
        written.with_suffix(".taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _awaited(written: Path, processes: Sequence[BaseProcess]) -> bool:
    """Wait for a part that another process has taken, and tell whether it came: a process may fail or be killed."""
    while True:
        alive = any(process.is_alive() for process in processes)
        if written.exists():
            return True
        if not alive:
            return False
        time.sleep(_POLL)


def _help(parts: dict[int, Order], folder: Path, scratch: Path) -> None:
    """Write the last parts that nobody has taken: the caller begins with the first."""
    # Ctrl-C is the caller's to report.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    writer, caller = _Writer(folder), multiprocessing.parent_process()
    for number, part in reversed(parts.items()):
        written = scratch / f"{number}.jsonl"
        if caller is None or not caller.is_alive():
            return
        if not _claim(written):
            continue
        unfinished = written.with_suffix(".part")
        try:
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(writer.lines(part))
            unfinished.replace(written)
        except Exception:  # noqa: BLE001 - the caller, who writes what is missing, meets the same error in its place
            return
