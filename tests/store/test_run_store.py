"""Result store: damaged lines, unique cell paths, symbolic links, write order, kills at any byte."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.result_stores import result_of, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import append, atomic_write, plain_name, safe_name, truncate_partial_line, write_text
from longctx_bench.core.types import Cell, Example, SampleRecord
from longctx_bench.core.untrusted_files import read_object, read_objects
from longctx_bench.registry import Registry
from longctx_bench.store.cell_folders import cell_path_parts, is_cell_path, legacy_cell_path_parts
from longctx_bench.store.run_store import ResultStore, count_before_gap
from longctx_bench.store.schema import to_builtins

CELL = Cell("m", "rope", "niah", 512)
SPEC = spec_of(CELL, {"seed": 1})
OTHER = spec_of(CELL, {"seed": 2})


def record(index: int, **other: Any) -> dict[str, Any]:
    """One sound record."""
    return {
        "id": f"{index:06d}", "hash": f"{index:032x}", "score": index / 7, "prompt_tokens": 5, "new_tokens": 1, **other
    }  # fmt: skip


def finished(*indices: int) -> list[SampleRecord]:
    return [SampleRecord(record(index), 0.5) for index in indices]


def opened(folder: Path, *indices: int) -> tuple[ResultStore, Path]:
    """A cell that is not finished, and its folder."""
    store = ResultStore(folder)
    store.start(CELL, SPEC)
    store.append(CELL, finished(*indices))
    return store, store.path(CELL)


def unfinish(folder: Path) -> None:
    """Make a finished cell one that was killed before its end."""
    cell = json.loads((folder / "cell.json").read_text())
    (folder / "started.json").write_text(
        json.dumps({key: cell[key] for key in ("schema_version", "spec_hash", "spec")})
    )
    (folder / "cell.json").unlink()


@pytest.fixture
def echo(tiny_folder: Path, essays: Path) -> Callable[..., Any]:
    """Run two tasks of one model without weights."""

    def made(out: Path, limit: int = 8, tasks: str = "niah", **more: Any) -> Any:
        registry = more.pop("registry", None) or Registry(local_data={"ruler-essays": essays})
        return run(
            str(tiny_folder), tasks, length=[512], limit=limit, engine="echo", out=out, registry=registry, **more
        )

    return made


def lines_of(folder: Path, name: str = "records.jsonl") -> list[bytes]:
    return (folder / name).read_bytes().splitlines(keepends=True)


# -- damaged lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 3, 8])
def test_a_doubled_line_does_not_close_a_cell_short(echo: Callable[..., Any], tmp_path: Path, place: int) -> None:
    echo(tmp_path / "whole", 16)
    echo(tmp_path / "run", 8)
    folder = tmp_path / "run/runs/tiny/rope/niah/512"
    unfinish(folder)
    lines = lines_of(folder)
    (folder / "records.jsonl").write_bytes(b"".join([*lines[:place], lines[1], *lines[place:]]))
    frame = echo(tmp_path / "run", 8)
    assert list(frame["n"]) == [8]
    assert json.loads((folder / "cell.json").read_text())["exhausted"] is False
    assert list(echo(tmp_path / "run", 16)["n"]) == [16]
    assert lines_of(folder) == lines_of(tmp_path / "whole/runs/tiny/rope/niah/512")


DEEP = b'{"id": "000002", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DAMAGED = {
    "no id": json.dumps({key: value for key, value in record(2).items() if key != "id"}).encode(),
    "no hash": json.dumps({key: value for key, value in record(2).items() if key != "hash"}).encode(),
    "no score": json.dumps({key: value for key, value in record(2).items() if key != "score"}).encode(),
    "an id that is a number": json.dumps(record(2, id=2)).encode(),
    "a score that is a text": json.dumps(record(2, score="1.0")).encode(),
    "tokens that are a list": json.dumps(record(2, prompt_tokens=[5])).encode(),
    "no token scored": json.dumps(record(2, scored=0)).encode(),
    "deep": DEEP,
    "deep and open": b"[" * 100_000,
    "a number": b"5",
    "null": b"null",
    "no JSON": b'{"id": ',
    "zeros": b"\0" * 300,
    "no UTF-8": b'{"id": "\xff\xfe"}',
    "empty": b"",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_named_put_aside_and_measured_again(tmp_path: Path, line: bytes) -> None:
    store, folder = opened(tmp_path, 0, 1, 2, 3)
    lines = lines_of(folder)
    (folder / "records.jsonl").write_bytes(b"".join([*lines[:2], line + b"\n", lines[3]]))
    (folder / "timings.jsonl").write_bytes(line + b"\n" + b"".join(lines_of(folder, "timings.jsonl")))
    notes: list[str] = []
    have = store.start(CELL, SPEC, note=notes.append)
    assert list(have) == ["000000", "000001", "000003"]
    assert have["000003"] == f"{3:032x}"
    assert [str(folder / "records.jsonl") + ": line 3 " in note for note in notes].count(True) == 1
    assert lines_of(folder, "records.damaged.jsonl") == [line + b"\n"], "nothing is thrown away"
    store.append(CELL, finished(2))
    store.finish(CELL, result_of(CELL, SPEC))
    assert lines_of(folder) == lines
    assert store.total_seconds(CELL) == 2.0


def test_a_run_goes_on_after_damage(
    echo: Callable[..., Any], tmp_path: Path, call: Any, tiny_folder: Path, essays: Path
) -> None:
    out = tmp_path / "run"
    echo(out, 6, "niah,niah_single_1,niah_single_2")
    whole = {path: path.read_bytes() for path in out.rglob("records.jsonl")}
    one, other, third = (out / f"runs/tiny/rope/{task}/512" for task in ("niah", "niah_single_1", "niah_single_2"))
    unfinish(one)
    lines = lines_of(one)
    (one / "records.jsonl").write_bytes(b"".join([*lines[:2], DEEP, b"\n", *lines[3:5], b'{"id": "0000']))
    (other / "cell.json").write_bytes(b'{"n": ')
    (third / "cell.json").write_text(json.dumps(json.loads((third / "cell.json").read_text()) | {"n": "six"}))
    command = [
        "run", "--model", tiny_folder, "--tasks", "niah,niah_single_1,niah_single_2", "--length", "512", "--limit", "6",
        "--engine", "echo", "--data", f"ruler-essays={essays}", "--out", out,
    ]  # fmt: skip
    code, _, errors = call(*command)
    assert code == 2
    assert "Traceback" not in errors
    assert f"{one / 'records.jsonl'}: line 3 is not valid JSON" in errors.replace("\n", " ")
    [failed] = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert str(other / "cell.json") in failed
    assert {path: path.read_bytes() for path in out.rglob("records.jsonl")} == whole
    (other / "cell.json").unlink()
    assert call(*command)[0] == 0
    assert {path: path.read_bytes() for path in (out / "runs").rglob("records.jsonl")} == whole


def test_lines_that_contradict_each_other_are_not_believed(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0, 1, 2)
    append(folder / "records.jsonl", (json.dumps(record(1, score=0.0)) + "\n").encode())
    with pytest.raises(UserError, match=r"records.jsonl: line 4 .*example '000001'"):
        store.records(CELL)
    notes: list[str] = []
    assert list(store.start(CELL, SPEC, note=notes.append)) == ["000000", "000002"]
    assert len(notes) == 2
    assert len(lines_of(folder, "records.damaged.jsonl")) == 2
    assert [line["id"] for line in store.records(CELL)] == ["000000"], "what is behind the gap does not count yet"


def test_a_doubled_line_of_a_finished_cell_is_read_once(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0, 1, 2)
    store.finish(CELL, result_of(CELL, SPEC))
    lines = lines_of(folder)
    (folder / "records.jsonl").write_bytes(b"".join([*lines[:2], *lines[1:]]))
    assert list(store.records(CELL)) == [record(0), record(1), record(2)]


def test_what_a_line_holds_does_not_reach_the_terminal(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0)
    hostile = "\x1b]0;owned\x07" * 30
    lines = [record(1, id=hostile), record(2, id=hostile), {hostile: 1}, record(3, score=hostile)]
    append(folder / "records.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode() + b"\x1b[2J\n")
    with pytest.raises(UserError) as refused:
        store.records(CELL)
    notes: list[str] = [str(refused.value)]
    assert list(store.start(CELL, SPEC, note=notes.append)) == ["000000"]
    assert len(notes) == 6
    assert all(note.isprintable() and len(note) < 400 for note in notes)


def test_a_second_timing_of_an_example_is_no_damage(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0)
    append(folder / "timings.jsonl", b'{"id": "000000", "seconds": 0.25}\n')
    notes: list[str] = []
    store.start(CELL, SPEC, note=notes.append)
    assert not notes
    assert store.total_seconds(CELL) == 0.25
    assert not (folder / "timings.damaged.jsonl").exists()


def test_a_cut_line_of_either_file_is_dropped(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0, 1)
    for name, cut in (("records.jsonl", b'{"id": "000002", "ha'), ("timings.jsonl", b'{"id": "000002", "seco')):
        append(folder / name, cut)
    notes: list[str] = []
    assert list(store.start(CELL, SPEC, note=notes.append)) == ["000000", "000001"]
    assert not notes, "a kill is nothing out of the ordinary"
    assert [len(lines_of(folder, name)) for name in ("records.jsonl", "timings.jsonl")] == [2, 2]
    assert store.total_seconds(CELL) == 1.0


def test_a_long_line_without_an_end_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for whole in (b"", b"one\n", b"one\n" + b"x" * (1 << 16) + b"\n"):
        for cut in (b"", b"y", b"y" * ((1 << 16) - 1), b"y" * (1 << 17)):
            path.write_bytes(whole + cut)
            truncate_partial_line(path)
            assert path.read_bytes() == whole
    truncate_partial_line(tmp_path / "none")


def test_a_cell_that_was_closed_short_is_not_done(echo: Callable[..., Any], tmp_path: Path) -> None:
    echo(tmp_path, 8)
    folder = tmp_path / "runs/tiny/rope/niah/512"
    cell = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").write_text(json.dumps(cell | {"n": 2, "exhausted": True}))
    lines = lines_of(folder)
    (folder / "records.jsonl").write_bytes(b"".join([*lines, lines[2]]))
    assert list(echo(tmp_path, 8)["n"]) == [8]
    assert lines_of(folder) == lines


def test_done(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0, 1)
    assert not store.done(CELL, SPEC, 1), "there is no cell.json"
    for summary, n, done in (
        ({"n": 2}, 2, True),
        ({"n": 2}, 1, True),
        ({"n": 2}, 3, False),
        ({"n": 2, "exhausted": True}, 3, True),
        ({"n": 1, "exhausted": True}, 3, False),
        ({"n": 2, "exhausted": False}, 3, False),
        ({"n": "2", "exhausted": True}, 1, False),
        ({"n": None}, 1, False),
        ({"exhausted": True}, 1, False),
        ({"n": 2, "spec_hash": "other"}, 2, False),
        ({"n": 2, "spec_hash": ["other"]}, 2, False),
    ):
        (folder / "cell.json").write_text(json.dumps({"schema_version": 2, "spec_hash": SPEC.hash, **summary}))
        assert store.done(CELL, SPEC, n) is done, summary
    for content in (b"[]", b"{", b"[" * 100_000, b"\xff"):
        (folder / "cell.json").write_bytes(content)
        assert not store.done(CELL, SPEC, 1)
        with pytest.raises(UserError, match=r"cell.json: is not"):
            store.start(CELL, SPEC)


def test_a_task_whose_data_are_exhausted_is_done(echo: Callable[..., Any], tmp_path: Path, essays: Path) -> None:
    tasks = own_tasks(tmp_path / "mine", ["three"])
    registry = Registry(include_paths=[tasks], local_data={"ruler-essays": essays})
    for limit in (5, 2, 9, 3):
        frame = echo(tmp_path / "out", limit, "three", registry=registry)
        assert list(frame["n"]) == [3], "what is measured is never too much"
    cell = json.loads((tmp_path / "out/runs/tiny/rope/three/512/cell.json").read_text())
    assert cell["exhausted"] is True
    assert not (tmp_path / "out/superseded").exists()
    echo(tmp_path / "less", 3, "three", registry=registry)
    assert json.loads((tmp_path / "less/runs/tiny/rope/three/512/cell.json").read_text())["exhausted"] is False


def test_a_cell_with_records_of_no_example_is_not_finished(echo: Callable[..., Any], tmp_path: Path) -> None:
    echo(tmp_path, 4)
    folder = tmp_path / "runs/tiny/rope/niah/512"
    unfinish(folder)
    lines = lines_of(folder)
    stranger = json.loads(lines[0]) | {"id": "0"}
    (folder / "records.jsonl").write_bytes(b"".join([*lines, json.dumps(stranger).encode() + b"\n"]))
    with pytest.raises(UserError, match=r"records.jsonl holds 1 of 4 examples"):
        echo(tmp_path, 4)
    assert not (folder / "cell.json").exists()
    assert set(lines) <= set(lines_of(folder)), "and nothing is lost"


def test_reading_json(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    assert read_object(path) is None
    assert read_object(tmp_path / "cell.json" / "below") is None
    path.mkdir()
    with pytest.raises(UserError, match="not a regular file"):
        read_object(path)
    with pytest.raises(UserError, match="not a regular file"):
        list(read_objects(path))
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_object(path)
    path.unlink()
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n[3]\n')
    reader = read_objects(path)
    assert [next(reader), next(reader)] == [{"a": 1}, {"b": 2}]
    with pytest.raises(UserError, match="line 3 is not a JSON object"):
        next(reader)
    path.write_bytes(DEEP)
    with pytest.raises(UserError, match="nested deeper"):
        read_object(path)
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        list(read_objects(path))
    assert list(read_objects(tmp_path / "none")) == []


def test_gaps() -> None:
    assert count_before_gap([]) == 0
    assert count_before_gap(["000000", "000001", "000002"]) == 3
    assert count_before_gap(["000000", "000002"]) == 1
    assert count_before_gap(["000001"]) == 0
    assert count_before_gap(["a", "b"]) == 2


# -- names --------------------------------------------------------------------------------------------------------


NAMES = st.text(max_size=400) | st.text("ab -.~é中$/", max_size=12)


@given(NAMES, NAMES)
def test_two_names_are_never_one_folder(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) == (one == other)


@given(NAMES)
def test_a_name_is_safe(name: str) -> None:
    safe = safe_name(name)
    assert safe.isascii()
    assert safe.isprintable()
    assert 0 < len(safe) <= 200
    assert not set(safe) & set("/\\$ '\"")
    assert safe not in {".", ".."}
    assert not safe.startswith((".", "-", "~"))
    if plain_name(name) == name and len(name) <= 200:
        assert safe == name


def test_names_that_are_known() -> None:
    assert safe_name("drope-tiny") == "drope-tiny"
    assert safe_name("niah@paper") == "niah@paper"
    assert safe_name("x" * 200) == "x" * 200
    assert safe_name("a b") == "a-b~c8687a08"
    assert safe_name("lm_eval:arc") == "lm_eval-arc~d9df5e7f"
    assert safe_name("中").startswith("unnamed~")
    assert safe_name("\ud800").startswith("unnamed~")
    assert len(safe_name("x" * 201)) == 200


OWN = """
from longctx_bench.benchmarks.base import Benchmark, example_id
from longctx_bench.core.types import Example

class Three(Benchmark):
    word: str = "word"

    def examples(self, encoder, length, max_new_tokens, n, seed):
        for index in range(min(n, 3)):
            prompt = f"{self.word} {index} {seed}"
            count = encoder.count(prompt, "")
            yield Example(example_id(index), prompt, "", ("1",), (), count, max_new_tokens)
"""


def own_tasks(folder: Path, names: list[str]) -> Path:
    """A folder of tasks with code of its own."""
    folder.mkdir()
    (folder / "mine.py").write_text(OWN)
    task = {"use": "./mine.py:Three", "metric": "string_match_all", "max_new_tokens": 4, "samples": 3}
    described = {name: {**task, "params": {"word": f"word{place}"}} for place, name in enumerate(names)}
    (folder / "mine.yaml").write_text(json.dumps(described))
    return folder


TASKS = ["a b", "a-b", "针", "草", "x" * 300, "x" * 299 + "y", "$a$", "lm:a"]


def test_names_that_look_alike_are_cells_apart(echo: Callable[..., Any], tmp_path: Path) -> None:
    registry = Registry(include_paths=[own_tasks(tmp_path / "mine", TASKS)])
    for _ in range(2):
        echo(tmp_path / "out", 3, ",".join(TASKS), registry=registry)
        cells = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("cell.json")]
        assert sorted(cell["cell"]["task"] for cell in cells) == sorted(TASKS)
        assert not (tmp_path / "out/superseded").exists()
    hashes = {(cell["spec"]["task"]["name"], cell["spec"]["task"]["params"]["word"]) for cell in cells}
    assert hashes == {(name, f"word{place}") for place, name in enumerate(TASKS)}
    assert len(list((tmp_path / "out/prompts").rglob("512.jsonl"))) == len(TASKS)


def test_a_folder_of_before_is_still_the_cells(
    echo: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    registry = Registry(include_paths=[own_tasks(tmp_path / "mine", ["a b", "a c", "a-b", "a-c"])])
    echo(out, 3, "a b,a c", registry=registry)
    store = ResultStore(out)
    finished_cell, begun = Cell("tiny", "rope", "a b", 512), Cell("tiny", "rope", "a c", 512)
    unfinish(store.path(begun))
    for cell in (finished_cell, begun):
        for top in ("runs/tiny/rope", "prompts/tiny"):
            (out / top / safe_name(cell.task)).rename(out / top / plain_name(cell.task))
        assert store.path(cell) == out / "runs" / Path(*legacy_cell_path_parts(cell))
        assert is_cell_path(store.path(cell), cell)
        assert store.load_excerpts(cell)
    assert list(store.records(finished_cell))
    before = {path: path.read_bytes() for path in out.rglob("records.jsonl")}
    echo(out, 3, "a b", registry=registry)
    assert not (out / "superseded").exists()
    assert {path: path.read_bytes() for path in out.rglob("records.jsonl")} == before
    # The cells whose names these folders have are others, and take nothing away from those that are in them.
    for task in ("a-b", "a-c"):
        other = Cell("tiny", "rope", task, 512)
        assert store.path(other) == out / "runs/tiny/rope" / task / "512"
    moved = store.path(finished_cell)
    assert not is_cell_path(moved, Cell("tiny", "rope", "a-c", 512))
    assert cell_path_parts(finished_cell)[2] == safe_name("a b")


# -- links and pipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timings.jsonl", "records.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    store, folder = opened(tmp_path / "run", 0, 1)
    target = tmp_path / "target"
    target.write_bytes(b"precious, and no line")
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name}: cannot be written: it is a symbolic link"):
        store.start(CELL, SPEC)
    with pytest.raises(UserError, match=f"{name}: cannot be written: it is a symbolic link"):
        store.append(CELL, finished(2))
    assert target.read_bytes() == b"precious, and no line"


@pytest.mark.parametrize("name", ["cell.json", "started.json"])
def test_a_link_that_is_replaced_leaves_its_target(tmp_path: Path, name: str) -> None:
    store, folder = opened(tmp_path / "run", 0, 1)
    target = tmp_path / "target"
    target.write_text(json.dumps({"schema_version": 2, "spec_hash": SPEC.hash, "spec": to_builtins(SPEC)}))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    store.start(CELL, SPEC)
    store.finish(CELL, result_of(CELL, SPEC, n=2))
    assert json.loads(target.read_text()) == {"schema_version": 2, "spec_hash": SPEC.hash, "spec": to_builtins(SPEC)}
    assert not (folder / name).is_symlink()


@pytest.mark.parametrize("where", ["runs", "runs/m", "runs/m/rope", "runs/m/rope/niah", "runs/m/rope/niah/512"])
def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, where: str) -> None:
    store, _ = opened(tmp_path / "run", 0, 1)
    (tmp_path / "run" / where).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / where).symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    for spec in (SPEC, OTHER):
        with pytest.raises(UserError, match=f"{where}: is a symbolic link"):
            store.start(CELL, spec)
    assert sorted(tmp_path.rglob("*")) == before
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    opened(linked, 0)  # The folder that the user names may be one.


def test_excerpts_and_what_is_replaced_do_not_leave_the_folder(tmp_path: Path) -> None:
    store, _ = opened(tmp_path / "run", 0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run/prompts").symlink_to(elsewhere)
    (tmp_path / "run/superseded").symlink_to(elsewhere)
    with pytest.raises(UserError, match="superseded: is a symbolic link"):
        store.start(CELL, OTHER)
    with pytest.raises(UserError, match="prompts: is a symbolic link"):
        store.save_excerpts(CELL, [Example("000000", "p", "", (), (), 1, 1)])
    assert not list(elsewhere.iterdir())
    assert list(store.records(CELL))


def test_the_lock_is_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(target)
    with pytest.raises(UserError, match="symbolic link"), ResultStore(tmp_path / "run").locked():
        pass
    assert target.read_text() == "precious"


def test_a_pipe_is_refused_and_waited_for_by_nobody(tmp_path: Path) -> None:
    store, folder = opened(tmp_path, 0)
    (folder / "timings.jsonl").unlink()
    os.mkfifo(folder / "timings.jsonl")
    with pytest.raises(UserError, match=r"timings.jsonl: cannot be written"):
        store.append(CELL, finished(1))
    with pytest.raises(UserError, match=r"timings.jsonl: cannot be written: it is not a regular file"):
        store.start(CELL, SPEC)


def test_a_superseded_tag_stays_below_the_folder(tmp_path: Path) -> None:
    store, folder = opened(tmp_path / "run", 0)
    (folder / "started.json").write_text(json.dumps({"spec_hash": "../../../../../escaped"}))
    notes: list[str] = []
    store.start(CELL, SPEC, note=notes.append)
    [kept] = tmp_path.rglob("records.jsonl")
    assert kept.is_relative_to(tmp_path / "run/superseded/m/rope/niah")
    assert str(kept.parent) in notes[0]


# -- what is on the disk when -----------------------------------------------------------------------------------------


class Calls:
    """The calls to the system that make a result durable, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, str]] = []
        fsync, replace = os.fsync, os.replace

        def synced(handle: int) -> None:
            fsync(handle)
            self.made.append(("fsync", str(Path(f"/proc/self/fd/{handle}").readlink())))

        def replaced(source: Any, target: Any) -> None:
            self.made.append(("from", str(source)))
            replace(source, target)
            self.made.append(("to", str(target)))

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)

    def place(self, kind: str, path: Path | str, after: int = 0) -> int:
        """Return where the first such call stands behind another one."""
        return self.made.index((kind, str(path)), after)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc tells which file a handle is of")


@needs_proc
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    path = tmp_path / "a" / "b" / "file.json"
    write_text(path, "text")
    kinds = [kind for kind, _ in calls.made]
    assert kinds == ["fsync", "fsync", "fsync", "from", "to", "fsync"]
    assert [name for kind, name in calls.made if kind == "fsync"][:2] == [str(path.parent.parent), str(tmp_path)]
    assert calls.made[2][1] == calls.made[3][1], "what is renamed is what was synced"
    assert calls.made[-1] == ("fsync", str(path.parent)), "and its new name is"
    assert path.read_text() == "text"


@needs_proc
def test_a_cell_counts_once_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    store, folder = opened(tmp_path / "run", 0, 1)
    timings, records = (calls.place("fsync", folder / f"{name}.jsonl") for name in ("timings", "records"))
    assert timings < records, "a record without its time would be missing from the seconds for good"
    calls.place("fsync", folder, records)
    begun = len(calls.made)
    store.finish(CELL, result_of(CELL, SPEC, n=2))
    ordered = calls.place("to", folder / "records.jsonl", begun)
    done = calls.place("to", folder / "cell.json", begun)
    assert calls.made[begun][0] == "fsync"
    assert ordered < calls.place("fsync", folder, ordered) < done < calls.place("fsync", folder, done)
    assert calls.made[done - 2][0] == "fsync"
    assert calls.made[done - 2][1] == calls.made[done - 1][1]
    above = [str(path) for path in folder.parents if path.is_relative_to(tmp_path)]
    assert set(above) <= {name for kind, name in calls.made if kind == "fsync"}, "so are the folders that were made"


@needs_proc
def test_a_cell_that_is_extended_is_not_done_on_the_disk_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = opened(tmp_path, 0)
    store.finish(CELL, result_of(CELL, SPEC))
    calls, unlink = Calls(monkeypatch), Path.unlink

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        calls.made.append(("unlink", str(self)))

    monkeypatch.setattr(Path, "unlink", unlinked)
    store.start(CELL, SPEC)
    store.append(CELL, finished(1))
    gone = calls.place("unlink", folder / "cell.json")
    assert gone < calls.place("fsync", folder, gone) < calls.place("fsync", folder / "timings.jsonl")


@needs_proc
def test_what_is_replaced_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = opened(tmp_path, 0)
    calls = Calls(monkeypatch)
    store.start(CELL, OTHER)
    moved = calls.place("from", folder)
    assert calls.made.index(("fsync", str(folder.parent)), moved) > moved
    assert calls.made.index(("fsync", str(tmp_path / "superseded/m/rope/niah")), moved) > moved


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_are_what_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        store, folder = opened(tmp_path, 0)
        store.finish(CELL, result_of(CELL, SPEC, n=1))
        with atomic_write(tmp_path / "made") as temporary:
            temporary.unlink()
            temporary.write_text("by a library that makes its own file")
    finally:
        os.umask(before)
    for path in (*folder.iterdir(), tmp_path / "made"):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it, and \ud800")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=80)
@given(data=st.data(), n=st.integers(1, 12))
def test_killed_at_any_byte_every_record_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n: int
) -> None:
    """Batches in any order, kills in the middle of a write of either file, doubled lines, resumed to the end."""
    order = data.draw(st.permutations(range(n)))
    size = data.draw(st.integers(1, 5))
    batches = [order[place : place + size] for place in range(0, n, size)]
    whole = ResultStore(tmp_path_factory.mktemp("whole"))
    whole.start(CELL, SPEC)
    whole.append(CELL, finished(*range(n)))
    whole.finish(CELL, result_of(CELL, SPEC, n=n))
    store = ResultStore(tmp_path_factory.mktemp("killed"))
    folder = store.path(CELL)
    have = store.start(CELL, SPEC)
    for _ in range(200):
        batch = next((batch for batch in batches if any(f"{index:06d}" not in have for index in batch)), None)
        if batch is None:
            break
        fresh = [index for index in batch if f"{index:06d}" not in have]
        before = {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in
                  ("timings.jsonl", "records.jsonl")}  # fmt: skip
        store.append(CELL, finished(*fresh))
        event = data.draw(st.sampled_from(["on", "on", "killed at records", "killed at timings", "doubled", "garbled"]))
        stored = set(have) | {f"{index:06d}" for index in fresh}
        if event == "on":
            have = dict.fromkeys(stored, "")
            continue
        if event.startswith("killed"):
            name = f"{event.split()[-1]}.jsonl"
            kept = data.draw(st.integers(before[name], (folder / name).stat().st_size))
            os.truncate(folder / name, kept)
            if name == "timings.jsonl":
                os.truncate(folder / "records.jsonl", before["records.jsonl"])
        lines = lines_of(folder)
        if event == "doubled":
            append(folder / "records.jsonl", data.draw(st.sampled_from(lines)))
        if event == "garbled":
            place = data.draw(st.integers(0, len(lines) - 1))
            lines[place] = data.draw(st.binary(max_size=20)).replace(b"\n", b"") + b"\n"
            (folder / "records.jsonl").write_bytes(b"".join(lines))
        resumed = store.start(CELL, SPEC)
        sound = {json.loads(line)["id"] for line in lines_of(folder)} if (folder / "records.jsonl").exists() else set()
        assert set(resumed) == sound
        assert set(resumed) <= stored
        if event == "doubled":
            assert set(resumed) == stored
        if event == "garbled":
            assert len(stored) - len(resumed) == 1
        assert all(resumed[name] == f"{int(name):032x}" for name in resumed)
        have = resumed
    else:
        pytest.fail("it does not come to an end")
    store.finish(CELL, result_of(CELL, SPEC, n=n))
    assert (folder / "records.jsonl").read_bytes() == (whole.path(CELL) / "records.jsonl").read_bytes()
    assert store.done(CELL, SPEC, n)
    assert {line["id"] for line in read_objects(folder / "timings.jsonl")} == {f"{index:06d}" for index in range(n)}
