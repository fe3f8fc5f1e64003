"""Prompt excerpts: enough to read an example, shared by all methods, without influence on results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longctx_bench import run
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell, Example
from longctx_bench.registry import Registry
from longctx_bench.store.prompt_excerpts import add_excerpts, make_excerpt, read_excerpts
from longctx_bench.store.run_store import ResultStore

KEPT = "prompts/tiny/niah/1024.jsonl"
CELL = Cell("tiny", "rope", "niah", 1024)


def example(prompt: str, *references: str) -> Example:
    return Example("000000", prompt, " Answer:", references, (50.0,), 12, 8)


@pytest.fixture
def arguments(tmp_path: Path, essays: Path) -> dict[str, Any]:
    registry = Registry(local_data={"ruler-essays": essays})
    return {"length": [1024], "limit": 6, "engine": "echo", "out": tmp_path / "run", "registry": registry}


def test_a_short_prompt_is_kept_whole() -> None:
    for length in (0, 10, 700, 701, 1400):
        prompt = "abcdefghij" * 140
        kept = make_excerpt(example(prompt[:length], "efg"))
        assert (kept.begin + kept.end, kept.hidden, kept.needles) == (prompt[:length], 0, ())
        assert max(len(kept.begin), len(kept.end)) <= 700


def test_the_hidden_part_is_counted_and_its_needles_kept() -> None:
    prompt = "b" * 700 + " " * 60 + "The number of  x\nis 12.5, they say. " + "." * 900 + "e" * 700
    kept = make_excerpt(example(prompt, "12.5"))
    assert (kept.begin, kept.end) == ("b" * 700, "e" * 700)
    assert kept.hidden == len(prompt) - 1400
    (needle,) = kept.needles
    assert "The number of x is 12.5, they say." in needle
    assert (kept.answer_prefix, kept.n_tokens, kept.hash) == (" Answer:", 12, example(prompt, "12.5").hash)
    assert make_excerpt(example(prompt.replace("12.5", "1295"), "12.5")).needles == (), "a reference is no pattern"
    assert make_excerpt(example(prompt, "")).needles == ()
    assert make_excerpt(example("12.5" + prompt[4:-4].replace("12.5", "none") + "12.5", "12.5")).needles == ()


def test_a_needle_across_the_edge_is_kept_and_many_are_cut() -> None:
    prompt = list("." * 3000)
    prompt[697:704] = "1234567"
    prompt[2297:2304] = "7654321"
    assert len(make_excerpt(example("".join(prompt), "1234567", "7654321")).needles) == 2
    many = make_excerpt(example("b" * 700 + "apple " * 300 + "pear " * 3 + "e" * 700, "pear", "apple")).needles
    assert len(many) == 8
    assert sum("pear" in needle for needle in many) >= 3


def test_a_run_keeps_each_prompt_once(
    tiny_folder: Path, arguments: dict[str, Any], tiny_encoder: PromptEncoder
) -> None:
    run(f"{tiny_folder},yarn:{tiny_folder}", "niah", **arguments)
    out = arguments["out"]
    assert [str(path.relative_to(out)) for path in (out / "prompts").rglob("*.jsonl")] == [KEPT]
    assert len((out / KEPT).read_text().splitlines()) == 6
    store = ResultStore(out)
    kept = store.load_excerpts(CELL)
    assert kept == store.load_excerpts(replace(CELL, method="yarn"))
    assert set(kept) == {record["hash"] for record in store.records(CELL)}
    registry: Registry = arguments["registry"]
    (task,) = registry.select_tasks("niah", None)
    written = list(registry.benchmark(task).examples(tiny_encoder, 1024, task.max_new_tokens, 6, 42))
    assert any(one.needles for one in kept.values())
    for one in written:
        found = kept[one.hash]
        assert found.hidden > 0
        assert one.prompt.startswith(found.begin)
        assert one.prompt.endswith(found.end)
        assert len(found.begin) + found.hidden + len(found.end) == len(one.prompt)
        (reference,) = one.references
        assert any(reference in text for text in (found.begin, found.end, *found.needles))
        assert (found.answer_prefix, found.n_tokens) == (one.answer_prefix, one.n_tokens)
    first = json.loads((out / KEPT).read_text().splitlines()[0])
    assert list(first) == ["hash", "begin", "end", "hidden", "needles", "answer_prefix", "n_tokens"]


def test_more_examples_add_lines_and_other_methods_none(tiny_folder: Path, arguments: dict[str, Any]) -> None:
    run(str(tiny_folder), "niah", **arguments)
    path = arguments["out"] / KEPT
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    run(f"yarn:{tiny_folder}", "niah", **arguments)
    assert path.stat().st_mtime_ns == written, "nothing new, nothing written"
    run(str(tiny_folder), "niah", **arguments | {"limit": 9})
    after = path.read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 9


def test_numbers_do_not_depend_on_excerpts(
    tiny_folder: Path, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(str(tiny_folder), "niah", **arguments)
    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "save_excerpts", lambda *_: None)
        run(str(tiny_folder), "niah", **arguments | {"out": tmp_path / "bare"})
    records, bare = (ResultStore(out).path(CELL) / "records.jsonl" for out in (arguments["out"], tmp_path / "bare"))
    assert records.read_bytes() == bare.read_bytes()
    hashes = [ResultStore(out).summary(CELL) for out in (arguments["out"], tmp_path / "bare")]
    assert hashes[0]["spec_hash"] == hashes[1]["spec_hash"]  # type: ignore[index]
    assert ResultStore(tmp_path / "bare").load_excerpts(CELL) == {}
    # A finished cell of a run from before there were excerpts stays finished, and none are written for it.
    run(str(tiny_folder), "niah", **arguments | {"out": tmp_path / "bare"})
    assert not (tmp_path / "bare" / "prompts").exists()


def test_a_break_leaves_the_file_as_it_was_and_the_next_run_completes_it(
    tiny_folder: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(str(tiny_folder), "niah", **arguments)
    path: Path = arguments["out"] / KEPT
    before = path.read_bytes()
    more = arguments | {"limit": 9}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(UserError, match="No space left on device"):
            add_excerpts(path, [example("new")])
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name], "nothing is left beside it"
    # A killed run of long ago, or a hand, may have left anything: the next run that is not finished puts it right.
    path.write_bytes(b'{"hash": "x"}\nnot JSON\n' + before[: len(before) // 2])
    assert 0 < len(read_excerpts(path)) < 6
    run(str(tiny_folder), "niah", **more)
    assert len(read_excerpts(path)) == len(path.read_bytes().splitlines()) == 9


def test_show_takes_what_the_run_kept_or_else_writes_the_prompt_again(
    call: Callable[..., tuple[int, str, str]],
    tiny_folder: Path,
    arguments: dict[str, Any],
    tmp_path: Path,
    essays: Path,
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "tiny")
    out = arguments["out"]
    run(str(folder), "niah", **arguments)
    held = (out / KEPT).read_bytes()
    (out / KEPT).unlink()
    command = ["show", "rope-tiny/niah/1024", "2", "--out", out, "--data", f"ruler-essays={essays}"]
    code, again, error = call(*command)
    assert code == 0, error
    shutil.rmtree(folder)
    (out / KEPT).write_bytes(held)
    code, kept, error = call(*command)
    assert code == 0, error
    assert kept == again, "the same text, whether written again or kept"
    (out / KEPT).unlink()
    code, _, error = call(*command)
    assert (code, len(error.strip().splitlines())) == (2, 1)


def test_peak_memory_is_kept_where_the_engine_knows_it(tiny_folder: Path, arguments: dict[str, Any]) -> None:
    run(str(tiny_folder), "niah", **arguments)
    run(str(tiny_folder), "niah", **arguments | {"engine": "hf", "device": "cpu", "limit": 2, "length": [512]})
    store = ResultStore(arguments["out"])
    echo, real = store.summary(CELL), store.summary(replace(CELL, length=512))
    assert echo is not None
    assert real is not None
    assert "peak_memory" not in echo
    # Python with torch alone takes more than 100 MB, and this machine less than a terabyte.
    assert 10**8 < real["peak_memory"] < 10**12
