"""Cells of more examples than are in memory at a time: run in parts, the same results, no more held than a part."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_bench import run
from longctx_bench.benchmarks.base import IndexedBenchmark
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL, Example, Request
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import RunSpec
from longctx_bench.runner.request_builder import RequestBuilder
from longctx_bench.runner.run import NoProgress
from longctx_bench.store.example_index import HashesById, NumbersById
from longctx_bench.store.prompt_excerpts import PromptExcerpt, add_excerpts, read_excerpts
from longctx_bench.store.run_store import ResultStore

RECORDS = "runs/tiny/rope/niah/512/records.jsonl"

OWN = """
from longctx_bench.benchmarks.base import Benchmark, ContextTooShort, example_id
from longctx_bench.core.types import Example

class Rows(Benchmark):
    natural = True
    rows: int = 6
    bad: int = -1

    def examples(self, encoder, length, max_new_tokens, n, seed):
        for index in range(min(n, self.rows)):
            if index == self.bad:
                raise ContextTooShort("row too long")
            prompt = "word " * (400 + 100 * index)
            yield Example(example_id(index), prompt, "", ("1",), (), encoder.count(prompt, ""), max_new_tokens)
"""


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many examples a part has."""
    return lambda size: monkeypatch.setattr("longctx_bench.runner.request_builder.PART", size)


@pytest.fixture
def echo(tiny_folder: Path, essays: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run ten examples, each in a batch of its own."""

    def made(out: str, models: str = "{}", tasks: str = "niah", **more: Any) -> Any:
        registry = Registry(local_data={"ruler-essays": essays})
        arguments: dict[str, Any] = {
            "length": [512], "limit": 10, "engine": "echo", "batch_tokens": 1, "registry": registry, **more
        }  # fmt: skip
        return run(models.replace("{}", str(tiny_folder)), tasks, out=tmp_path / out, **arguments)

    return made


def own(folder: Path, **params: int) -> Registry:
    folder.mkdir()
    (folder / "mine.py").write_text(OWN)
    task = {"use": "./mine.py:Rows", "metric": "string_match_all", "max_new_tokens": 4, "samples": 100}
    (folder / "mine.yaml").write_text(json.dumps({"rows": task | {"params": params}}))
    return Registry(include_paths=[folder])


def contents(out: Path) -> dict[str, Any]:
    """What a run left, but for times."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.jsonl")):
        if path.name != "timings.jsonl":
            found[str(path.relative_to(out))] = path.read_bytes()
    for path in sorted(out.rglob("cell.json")):
        cell = json.loads(path.read_text())
        found[str(path.relative_to(out))] = {key: cell[key] for key in cell.keys() - {"finished", "seconds"}}
    return found


def broken_at(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, asked: list[str]) -> None:
    """Let the engine fail at an example; note which ones it was asked for."""
    generate = EchoEngine.generate

    def failing(self: EchoEngine, batch: list[Request], *rest: Any) -> Any:
        asked.extend(request.example_id for request in batch)
        if any(request.example_id == name for request in batch):
            raise error
        return generate(self, batch, *rest)

    monkeypatch.setattr(EchoEngine, "generate", failing)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
def test_parts_make_the_same_cell(echo: Any, part: Any, tmp_path: Path, size: int) -> None:
    models, tasks = "{},yarn:{}", "niah,niah_single_1"
    echo("whole", models, tasks)
    part(size)
    echo("parts", models, tasks)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "parts").rglob("cell.json"))) == 4
    written = [json.loads(line)["id"] for line in (tmp_path / "parts" / RECORDS).read_text().splitlines()]
    assert written == [f"{index:06d}" for index in range(10)]


def test_each_part_is_stored_before_the_next_is_written(
    echo: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(4)
    stored: list[int] = []
    keep = ResultStore.save_excerpts

    def noted(self: ResultStore, cell: Any, examples: Any) -> None:
        records = self.path(cell) / "records.jsonl"
        stored.append(len(records.read_text().splitlines()) if records.exists() else 0)
        keep(self, cell, examples)

    monkeypatch.setattr(ResultStore, "save_excerpts", noted)
    echo("out")
    assert stored == [0, 4, 8]


@pytest.mark.slow
def test_no_more_than_a_part_is_held(echo: Any, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part(8)
    monkeypatch.setattr("longctx_bench.runner.request_builder._PREFETCH", 1)
    monkeypatch.setattr("longctx_bench.runner.request_builder.usable_cores", lambda: 1)
    held: list[tuple[int, int]] = []
    requests_of = RequestBuilder.requests_of

    def count() -> tuple[int, int]:
        gc.collect()
        made = [type(item) for item in gc.get_objects() if type(item) in {Example, Request}]
        return made.count(Example), made.count(Request)

    def pluralize(*arguments: Any) -> Any:
        found = requests_of(*arguments)
        held.append(count())
        return found

    before = count()
    monkeypatch.setattr(RequestBuilder, "requests_of", pluralize)
    echo("out", limit=48)
    assert len(held) == 6
    # One more is written to see whether there is another part, and one by the thread that writes ahead.
    assert max(examples for examples, _ in held) - before[0] <= 8 + 3
    assert max(requests for _, requests in held) - before[1] <= 8 + 1


def test_nobody_waits_for_examples_behind_one_that_is_no_longer_wanted(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longctx_bench.runner.request_builder.usable_cores", lambda: 1)
    registry = own(tmp_path / "tasks")
    [task] = registry.select_tasks("rows")
    written: list[int] = []
    wanted = Event()

    class Slow(IndexedBenchmark):
        def example(self, encoder: Any, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
            written.append(index)
            if index > 1:
                wanted.wait(60)
            return Example(f"{index:06d}", "a", "", ("b",), (), 1, 4)

    monkeypatch.setattr(registry, "benchmark", lambda _: Slow())
    spec = RunSpec(registry.variants(str(tiny_folder)), (task,), (), (256,), 99, 42, False, False)
    examples = RequestBuilder(registry, spec)._write(task, tiny_folder, 256, 99)
    assert [next(examples)[0].id, next(examples)[0].id] == ["000000", "000001"]
    examples.close()  # type: ignore[attr-defined]
    wanted.set()
    sleep(0.5)
    assert max(written) <= 3, "nine were asked for ahead"


def test_resumed_in_the_middle_of_a_part(echo: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part(4)
    echo("whole")
    asked: list[str] = []
    with monkeypatch.context() as patched:
        broken_at(patched, "000006", KeyboardInterrupt(), asked)
        with pytest.raises(KeyboardInterrupt):
            echo("killed")
    assert len((tmp_path / "killed" / RECORDS).read_text().splitlines()) in range(4, 8)
    first, asked = set(asked) - {"000006"}, []
    broken_at(monkeypatch, "none", ValueError(), asked)
    echo("killed")
    assert len(asked) == len(set(asked)) == 10 - len(first)
    assert first.isdisjoint(asked), "what is measured is not measured again"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("size", [2, 4, 7])
def test_killed_between_parts_and_resumed_with_parts_of_another_size(
    echo: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    echo("whole")
    part(4)
    keep, calls = ResultStore.save_excerpts, []

    def killed(self: ResultStore, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        keep(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "save_excerpts", killed)
        with pytest.raises(KeyboardInterrupt):
            echo("killed")
    assert len((tmp_path / "killed" / RECORDS).read_text().splitlines()) == 8
    assert not list((tmp_path / "killed").rglob("cell.json"))
    part(size)
    asked: list[str] = []
    broken_at(monkeypatch, "none", ValueError(), asked)
    echo("killed")
    assert sorted(asked) == ["000008", "000009"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_all_parts_stored_and_the_cell_not_finished(
    echo: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(4)
    echo("whole")
    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            echo("killed")
    monkeypatch.setattr(EchoEngine, "generate", lambda *_: pytest.fail("must not generate"))
    echo("killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_part_that_fails_ends_its_cell_once(
    echo: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(4)
    asked: list[str] = []
    with monkeypatch.context() as patched:
        broken_at(patched, "000005", UserError("broken"), asked)
        with pytest.raises(UserError, match=r"1 cell failed: .*/512: broken"):
            echo("out", length=[512], tasks="niah")
    assert not {"000008", "000009"} & set(asked), "no part behind it is run"
    started = json.loads(next(tmp_path.rglob("started.json")).read_text())
    assert started["failed"] == "broken"
    assert list(echo("out")["n"]) == [10]


def test_what_another_prompt_gave_is_refused_in_any_part(echo: Any, part: Any, tmp_path: Path) -> None:
    echo("out")
    path = tmp_path / "out" / RECORDS
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[9])
    lines[9] = json.dumps(record | {"hash": "0" * 32}) + "\n"
    path.write_text("".join(lines))
    part(4)
    with pytest.raises(UserError, match="stored example 000009 has another prompt"):
        echo("out", limit=12)


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_data_that_end_in_any_part(
    echo: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    registry = own(tmp_path / "mine")
    asked: dict[str, Any] = {"length": [NATURAL], "limit": None, "registry": registry}
    echo("whole", "{},yarn:{}", "rows", **asked)
    part(size)
    echo("parts", "{},yarn:{}", "rows", **asked)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    for path in (tmp_path / "parts").rglob("cell.json"):
        cell = json.loads(path.read_text())
        assert (cell["n"], cell["exhausted"]) == (6, True)
        assert cell["factor"] > 1.5, "the longest document of all parts decides"
    monkeypatch.setattr(EchoEngine, "generate", lambda *_: pytest.fail("must not generate"))
    assert list(echo("parts", "{},yarn:{}", "rows", **asked)["n"]) == [6, 6]


def test_an_example_that_does_not_fit_in_a_later_part_skips_the_cell(echo: Any, part: Any, tmp_path: Path) -> None:
    part(2)
    frame = echo("out", "{}", "rows", length=[NATURAL], registry=own(tmp_path / "mine", bad=4))
    assert list(frame.attrs["skipped"].values()) == ["row too long"]
    assert not list((tmp_path / "out").rglob("cell.json"))


def test_what_progress_is_told(part: Any, echo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(NoProgress, "cell", lambda self, planned, examples: told.append(("cell", examples)))
    monkeypatch.setattr(NoProgress, "advance", lambda self, examples: told.append(("advance", examples)))
    monkeypatch.setattr(NoProgress, "end_cell", lambda self, planned, left: told.append(("end", left)))
    part(4)
    echo("out", limit=3)
    told.clear()
    echo("out")
    assert told == [("cell", 7), *[("advance", 1)] * 7, ("end", 0)]
    told.clear()
    echo("rows", "{}", "rows", length=[NATURAL], registry=own(tmp_path / "mine"))
    assert told == [("cell", 10), *[("advance", 1)] * 6, ("end", 4)], "what the data lack is not waited for"


def test_methods_share_the_prompts_of_a_cell_of_one_part(echo: Any, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = RequestBuilder._write

    def noted(self: RequestBuilder, task: Any, folder: Path, length: int, n: int) -> Any:
        written.append(n)
        return write(self, task, folder, length, n)

    monkeypatch.setattr(RequestBuilder, "_write", noted)
    for size, times in ((10, 1), (9, 2)):
        part(size)
        written.clear()
        echo(f"of {size}", "{},yarn:{}")
        assert len(written) == times


# -- excerpts ---------------------------------------------------------------------------------------------------------


def example(index: int) -> Example:
    return Example(f"{index:06d}", f"prompt {index}", "", ("1",), (), 3, 1)


def test_a_large_file_of_excerpts_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    for file in (path, other):
        add_excerpts(file, map(example, range(4)))
    inode = other.stat().st_ino
    add_excerpts(path, map(example, range(2, 7)))
    with monkeypatch.context() as patched:
        patched.setattr("longctx_bench.store.prompt_excerpts._MAX_REWRITE_BYTES", 0)
        add_excerpts(other, map(example, range(2, 7)))
        assert other.stat().st_ino == inode
        assert other.read_bytes() == path.read_bytes()
        add_excerpts(other, map(example, range(7)))
        assert other.read_bytes() == path.read_bytes()
        for cut in (1, 30):
            other.write_bytes(path.read_bytes()[:-cut])
            add_excerpts(other, map(example, range(9)))
            assert len(other.read_bytes().splitlines()) == len(read_excerpts(other)) == 9
            found: list[PromptExcerpt] = list(read_excerpts(other).values())
            assert sorted(one.begin for one in found) == [f"prompt {index}" for index in range(9)]


# -- what is kept by example ------------------------------------------------------------------------------------------

_NAMES = st.one_of(
    st.integers(0, 30).map(lambda place: f"{place:06d}"),
    st.sampled_from(["", "0", "00000", "0000001", "000009a", "999999", "\u0661" * 6, "-00001", " 00001", "0_0001"]),
)
_HASHES = st.one_of(
    st.binary(min_size=16, max_size=16).map(bytes.hex), st.sampled_from(["", "x", "0" * 32, "A" * 32, "0" * 31 + " "])
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "values"), [(NumbersById, st.integers(0, 2**62)), (HashesById, _HASHES)])
def test_maps_by_example_are_dicts_in_order(kind: Any, values: Any) -> None:
    @given(st.lists(st.tuples(st.booleans(), _NAMES, values)))
    def as_a_dict(changes: list[tuple[bool, str, Any]]) -> None:
        known: dict[str, Any] = {}
        kept = kind()
        for added, name, value in changes:
            if added:
                known[name] = kept[name] = value
            else:
                assert kept.pop(name, None) == known.pop(name, None)
            assert len(kept) == len(known)
        assert list(kept.items()) == [(name, known[name]) for name in sorted(known)]
        for name in ("000000", "000031", "999999", "x"):
            assert (name in kept) == (name in known)
            if name not in known:
                with pytest.raises(KeyError):
                    del kept[name]

    as_a_dict()
