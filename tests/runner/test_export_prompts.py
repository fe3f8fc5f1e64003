"""Examples as lines: the same whoever writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from longctx_bench.benchmarks.base import IndexedBenchmark
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.core.types import Example
from longctx_bench.registry import Registry
from longctx_bench.runner import export_prompts
from longctx_bench.runner.export_prompts import ExportJob, export_lines

FOLDER = shipped_checkpoint_folder("rope-tiny")


def jobs(tasks: str, n: int = 9, length: int = 1024) -> list[ExportJob]:
    registry = Registry()
    return [
        ExportJob(spec.name, registry.benchmark(spec), length, spec.max_new_tokens, n, 42)
        for spec in registry.select_tasks(tasks)
    ]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two processes for however little, and a part for every two examples."""
    with monkeypatch.context() as patched:
        patched.setattr(export_prompts, "usable_cores", lambda: 2)
        patched.setattr(export_prompts, "_MIN_TOKENS_PER_PROCESS", 1)
        patched.setattr(export_prompts, "_PART_TOKENS", 2048)
        yield


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What one process writes of three tasks."""
    return list(export_lines(jobs("niah_single_1,vt,qa_1"), FOLDER))


def test_a_line_is_an_example(alone: list[str]) -> None:
    written = [json.loads(line) for line in alone]
    assert [(row["task"], row["id"]) for row in written] == [
        (task, f"{index:06d}") for task in ("niah_single_1", "vt", "qa_1") for index in range(9)
    ]
    assert all(row["references"] and row["n_tokens"] + row["max_new_tokens"] <= 1024 for row in written)


def test_two_processes_write_the_same_bytes(several: None, alone: list[str]) -> None:
    assert list(export_lines(jobs("niah_single_1,vt,qa_1"), FOLDER)) == alone


@pytest.mark.slow
def test_the_other_process_writes_too(several: None, monkeypatch: pytest.MonkeyPatch, alone: list[str]) -> None:
    own: list[int] = []
    write = export_prompts._Writer.lines

    def waiting(self: export_prompts._Writer, job: ExportJob) -> Iterator[str]:
        own.append(job.first)
        if len(own) == 1:
            # The other begins with the last part, which is here soon after.
            [scratch] = made
            while not (scratch / "10.jsonl").exists():
                pass
        yield from write(self, job)

    made: list[Path] = []
    claim = export_prompts._claim
    monkeypatch.setattr(
        export_prompts, "_claim", lambda path: (made.append(path.parent) if not made else None) or claim(path)
    )
    monkeypatch.setattr(export_prompts._Writer, "lines", waiting)
    assert list(export_lines(jobs("niah_single_1,vt,qa_1"), FOLDER)) == alone
    assert 0 < len(own) < 11
    assert not made[0].exists()


def test_a_process_that_dies_costs_nothing_but_time(
    several: None, monkeypatch: pytest.MonkeyPatch, alone: list[str]
) -> None:
    """It takes all parts and writes none."""
    monkeypatch.setattr(export_prompts, "_run_helper", taking_all)
    assert list(export_lines(jobs("niah_single_1,vt,qa_1"), FOLDER)) == alone


def taking_all(parts: dict[int, ExportJob], folder: Path, scratch: Path) -> None:
    for number in parts:
        export_prompts._claim(scratch / f"{number}.jsonl")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_behind_what_could_be_written(
    several: None, monkeypatch: pytest.MonkeyPatch, alone: list[str], processes: int
) -> None:
    monkeypatch.setattr(export_prompts, "usable_cores", lambda: processes)
    wanted = jobs("niah_single_1,vt")
    written = export_lines([wanted[0], replace(wanted[1], length=100), wanted[0]], FOLDER)
    assert [next(written) for _ in range(9)] == alone[:9]
    with pytest.raises(UserError, match="vt at 100"):
        next(written)


class Mine(IndexedBenchmark):
    """Not to be imported by another process."""

    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        return Example(f"{index}", "mine", "", ("a",), (), 1, max_new_tokens)


def test_a_users_own_benchmark_stays_in_this_process(several: None) -> None:
    written = list(export_lines([ExportJob("mine", Mine(), 1024, 8, 30, 42), *jobs("vt", 2)], FOLDER))
    assert [json.loads(line)["prompt"] for line in written[:30]] == ["mine"] * 30
    assert len(written) == 32
