"""Export examples as JSON lines, on all cores for large exports."""

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

_MIN_TOKENS_PER_PROCESS = 4_000_000
"""Below this, starting another process takes longer than it saves."""
_PART_TOKENS = 500_000
"""Tokens per part that a process claims at a time: some tenths of a second."""
_POLL_SECONDS = 0.01
"""Interval for checking on a part that another process writes."""


@dataclass(frozen=True)
class ExportJob:
    """Examples ``first`` to ``n - 1`` of a task; arguments as for :meth:`Benchmark.examples`."""

    task: str
    benchmark: Benchmark
    length: int
    max_new_tokens: int
    n: int
    seed: int
    chat_template: bool = False
    first: int = 0


def export_lines(jobs: Sequence[ExportJob], folder: Path) -> Iterator[str]:
    """Yield one line per example; independent of the number of processes.

    Args:
        jobs: the tasks to export, in order.
        folder: the checkpoint with the tokenizer.

    Raises:
        UserError: as :meth:`Benchmark.examples`, after the lines of earlier examples; or there is no tokenizer.
    """
    writer = _Writer(folder)
    parts = [part for job in jobs for part in _parts(job)]
    helpers = min(usable_cores(), sum(job.n * job.length for job in jobs) // _MIN_TOKENS_PER_PROCESS) - 1
    if helpers < 1 or any(job.chat_template for job in jobs) or not writer.is_light:
        for part in parts:
            yield from writer.lines(part)
        return
    # Spawned, because a forked copy of a process with a tokenizer's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ScratchFolder("longctx-bench-") as scratch:
        shared = {number: part for number, part in enumerate(parts) if _is_importable(part.benchmark)}
        processes: list[BaseProcess] = []
        try:
            for _ in range(helpers):
                helper = context.Process(target=_run_helper, args=(shared, folder, scratch), daemon=True)
                helper.start()
                processes.append(helper)
            for number, part in enumerate(parts):
                written = scratch / f"{number}.jsonl"
                if _claim(written) or not _wait_for(written, processes):
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
    """Generates lines in this process."""

    def __init__(self, folder: Path) -> None:
        tokenizer = prompt_tokenizer(folder)
        self.is_light = isinstance(tokenizer, LightTokenizer)
        # Shared by all tasks: it caches the texts that they have in common.
        self._encoders = {False: PromptEncoder(tokenizer)}

    def lines(self, job: ExportJob) -> Iterator[str]:
        if job.chat_template not in self._encoders:
            self._encoders[True] = PromptEncoder(self._encoders[False].tokenizer, chat_template=True)
        encoder, benchmark = self._encoders[job.chat_template], job.benchmark
        arguments = (encoder, job.length, job.max_new_tokens)
        if _is_indexed(benchmark):
            for index in range(job.first, job.n):
                yield _line(job.task, benchmark.example(*arguments, job.seed, index))
            return
        for example in benchmark.examples(*arguments, job.n, job.seed):
            yield _line(job.task, example)


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


def _is_indexed(benchmark: Benchmark) -> TypeGuard[IndexedBenchmark]:
    return isinstance(benchmark, IndexedBenchmark) and type(benchmark).examples is IndexedBenchmark.examples


def _is_importable(benchmark: Benchmark) -> bool:
    """Whether another process can import the benchmark's class: plug-in files are loaded in this one only."""
    return type(benchmark).__module__.partition(".")[0] == __name__.partition(".")[0]


def _parts(job: ExportJob) -> Iterator[ExportJob]:
    step = max(1, _PART_TOKENS // max(1, job.length)) if _is_indexed(job.benchmark) else job.n
    for first in range(0, job.n, step):
        yield replace(job, first=first, n=min(job.n, first + step))


def _claim(written: Path) -> bool:
    """Claim a part for this process; False if another process has it."""
    try:
        written.with_suffix(".taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait_for(written: Path, processes: Sequence[BaseProcess]) -> bool:
    """Wait for a part claimed by another process; False if no process is left to write it."""
    while True:
        alive = any(process.is_alive() for process in processes)
        if written.exists():
            return True
        if not alive:
            return False
        time.sleep(_POLL_SECONDS)


def _run_helper(parts: dict[int, ExportJob], folder: Path, scratch: Path) -> None:
    """Write unclaimed parts from the last one: the caller starts with the first."""
    # The caller reports Ctrl-C.
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
        except Exception:  # noqa: BLE001 (the caller writes the missing part and raises the same error)
            return
