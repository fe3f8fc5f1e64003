"""Bundles: the same results out of one file, the same bytes each time, and no harm from foreign ones."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.page_results import needle_record, write_cell, write_run

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell
from longctx_bench.registry import Registry
from longctx_bench.reporting.results import read_cells
from longctx_bench.store import bundle
from longctx_bench.store.bundle import BundledFile, companion_folder, default_bundle, open_store, pack, unpack
from longctx_bench.store.run_store import ResultStore

CELL_JSON = "runs/tiny/rope/niah/512/cell.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "made")


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entry(path: str, content: bytes, **other: Any) -> dict[str, Any]:
    return {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **other}


def written(path: Path, files: list[dict[str, Any]], content: bytes, version: Any = 1, end: bytes = b"") -> Path:
    """Write a bundle by hand."""
    line = json.dumps({"bundle_version": version, "files": files}).encode() + b"\n"
    path.write_bytes(lzma.compress(line + content) + end)
    return path


# -- packing ------------------------------------------------------------------------------------------------------


def test_a_round_trip_keeps_every_byte_that_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "parity").mkdir()
    (folder / "parity" / "yarn-tiny-float32.json").write_text('{"lengths": {}}')
    before = content_of(folder)
    for other in ("report.md", "figures/a.png", ".lock", "runs/tiny/rope/niah/512/records.damaged.jsonl"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"no part of the results")
    manifest = pack(folder, tmp_path / "a.bundle")
    assert unpack(tmp_path / "a.bundle", tmp_path / "again") == manifest
    assert content_of(tmp_path / "again") == before
    assert manifest.size == sum(map(len, before.values()))
    assert manifest.num_cells == 8
    assert not list(tmp_path.glob("*unpacking*"))


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.bundle")
    unpack(tmp_path / "a.bundle", tmp_path / "b")
    # Other times, and another order on the disk.
    for path in sorted(content_of(tmp_path / "b"), reverse=True):
        content = (tmp_path / "b" / path).read_bytes()
        (tmp_path / "b" / path).unlink()
        (tmp_path / "b" / path).write_bytes(content)
    pack(tmp_path / "b", tmp_path / "b.bundle")
    assert (tmp_path / "a.bundle").read_bytes() == (tmp_path / "b.bundle").read_bytes()


def test_the_layout_is_the_documented_one(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.bundle")
    line, _, content = lzma.decompress((tmp_path / "a.bundle").read_bytes()).partition(b"\n")
    manifest = json.loads(line)
    assert (manifest["bundle_version"], manifest["without_texts"]) == (1, False)
    for file in manifest["files"]:
        here, content = content[: file["size"]], content[file["size"] :]
        assert here == (folder / file["path"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(here).hexdigest()
    assert not content
    # The methods' records of a task at a length follow each other.
    records = [file["path"] for file in manifest["files"] if file["path"].endswith("records.jsonl")]
    assert records[:2] == [f"runs/tiny/{method}/niah/512/records.jsonl" for method in ("rope", "yarn")]


def test_a_bundle_is_read_without_a_trace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(folder, tmp_path / "a.bundle")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    store = open_store(tmp_path / "a.bundle")
    assert store.folder == tmp_path / "a.bundle"
    assert len(list(scratch.iterdir())) == 1
    del store
    assert not list(scratch.iterdir())
    assert [s.cell for s in read_cells(tmp_path / "a.bundle").finished] == [s.cell for s in read_cells(folder).finished]
    assert not list(scratch.iterdir())


def test_pack_refuses(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.bundle"
    pack(folder, out)
    with pytest.raises(UserError, match="exists; choose another with --out, or replace it with --overwrite"):
        pack(folder, out)
    with pytest.raises(UserError, match=r"is a file, and results are written to a folder; .* unpack"):
        pack(out, tmp_path / "b.bundle")
    with pytest.raises(UserError, match=r"must end in \.bundle"):
        pack(folder, tmp_path / "b.zip")
    (tmp_path / "c.bundle").mkdir()
    with pytest.raises(UserError, match="exists"):
        pack(folder, tmp_path / "c.bundle", overwrite=True)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "b.bundle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no results; give the folder that a run wrote"):
        pack(tmp_path / "empty", tmp_path / "b.bundle")
    (folder / "runs/tiny/rope").rename(folder / "runs/tiny/a copy")
    with pytest.raises(UserError, match="has a name that no run writes"):
        pack(folder, tmp_path / "b.bundle")
    assert not (tmp_path / "b.bundle").exists()


def test_a_folder_that_changes_meanwhile_is_not_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = bundle._described

    def changing(source: Any) -> BundledFile:
        found = described(source)
        if source.path.endswith("niah/512/records.jsonl"):
            with source.file.open("ab") as file:
                file.write(b'{"id": "more"}\n')
        return found

    monkeypatch.setattr(bundle, "_described", changing)
    with pytest.raises(UserError, match=r"niah/512/records\.jsonl: changed while it was packed"):
        pack(folder, tmp_path / "a.bundle")
    assert not list(tmp_path.glob("*.bundle"))


def test_what_could_not_be_read_again_is_not_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "max_decompressed_size", lambda packed: packed)
    with pytest.raises(UserError, match="implausible for text"):
        pack(folder, tmp_path / "a.bundle")
    assert not list(tmp_path.glob("*.bundle"))


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_bundle(Path("results/v1.2")) == Path("results/v1.2.bundle")
    assert default_bundle(Path()) == tmp_path.with_name(tmp_path.name + ".bundle")
    (tmp_path / "v1.2.bundle").touch()
    assert companion_folder(Path("v1.2.bundle")) == Path("v1.2")
    assert companion_folder(Path("v1.2")) == Path("v1.2")


def test_runs_go_on_where_the_packed_one_was_interrupted(tiny_folder: Path, essays: Path, tmp_path: Path) -> None:
    def measure(out: Path, limit: int) -> None:
        registry = Registry(local_data={"ruler-essays": essays})
        run(str(tiny_folder), "niah", length=[512], limit=limit, engine="echo", out=out, registry=registry)

    measure(tmp_path / "a", 8)
    measure(tmp_path / "whole", 16)
    [cell] = ResultStore(tmp_path / "a").folders()
    details = json.loads((cell / "cell.json").read_text())
    started = {key: details[key] for key in ("schema_version", "spec_hash", "spec")}
    (cell / "started.json").write_text(json.dumps(started))
    (cell / "cell.json").unlink()
    pack(tmp_path / "a", tmp_path / "a.bundle")
    unpack(tmp_path / "a.bundle", tmp_path / "b")
    first = content_of(tmp_path / "b")
    measure(tmp_path / "b", 16)
    records = cell.relative_to(tmp_path / "a") / "records.jsonl"
    assert (tmp_path / "b" / records).read_bytes() == (tmp_path / "whole" / records).read_bytes()
    assert (tmp_path / "b" / records).read_bytes().startswith(first[records.as_posix()])
    assert not (tmp_path / "b" / "superseded").exists()


def test_unpacking_keeps_what_is_there(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.bundle")
    (tmp_path / "a" / "figures").mkdir(parents=True)
    (tmp_path / "a" / "figures" / "a.png").touch()
    unpack(tmp_path / "a.bundle", tmp_path / "a")
    assert (tmp_path / "a" / "figures" / "a.png").exists()
    with pytest.raises(UserError, match="a: already holds prompts/; choose another folder with --out"):
        unpack(tmp_path / "a.bundle", tmp_path / "a")
    with pytest.raises(UserError, match="cannot be written"):
        unpack(tmp_path / "a.bundle", tmp_path / "a.bundle" / "x")


# -- texts of data sets -------------------------------------------------------------------------------------------


def with_benchmark(folder: Path, cell: Cell, benchmark: str) -> Path:
    """Make a cell one of a benchmark, and return its records."""
    path = ResultStore(folder).path(cell)
    details = json.loads((path / "cell.json").read_text())
    details |= {"schema_version": 2, "exhausted": False}
    details["spec"] |= {
        "model": {"name": cell.model, "original_length": 512},
        "method": {"name": cell.method, "id": cell.method},
        "task": {"name": cell.task, "benchmark": benchmark},
    }
    (path / "cell.json").write_text(json.dumps(details))
    return path / "records.jsonl"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Cells of benchmarks that generate their references, that take them from data, and of a plug-in."""
    folder = tmp_path / "mixed"
    for task, benchmark in (
        ("niah", "needle-in-a-haystack"), ("cwe", "ruler-common-words"), ("multi_news", "longbench"),
        ("qa_1", "ruler-question-answering"), ("lm_eval:squad", "lm-eval"), ("theirs", "their-benchmark"),
    ):  # fmt: skip
        cell = Cell("tiny", "rope", task, 512)
        write_cell(folder, cell, [needle_record(place, place % 2, "a text") for place in range(4)])
        with_benchmark(folder, cell, benchmark)
    write_cell(folder, Cell("tiny", "rope", "perplexity", 512), [{"score": 2.5, "metric": "token_loss"}] * 3)
    (folder / "prompts/tiny/niah").mkdir(parents=True)
    (folder / "prompts/tiny/niah/512.jsonl").write_text("{}\n")
    return folder


def test_texts_of_data_sets_can_be_left_out(mixed: Path, tmp_path: Path) -> None:
    manifest = pack(mixed, tmp_path / "a.bundle", without_texts=True)
    assert manifest.without_texts
    unpack(tmp_path / "a.bundle", tmp_path / "a")
    before, after = content_of(mixed), content_of(tmp_path / "a")
    assert before.keys() - after.keys() == {"prompts/tiny/niah/512.jsonl"}
    changed = {path.split("/")[3] for path in after if after[path] != before[path]}
    assert {name.partition("~")[0] for name in changed} == {"multi_news", "qa_1", "lm_eval-squad", "theirs"}
    first = [json.loads(line) for line in before["runs/tiny/rope/qa_1/512/records.jsonl"].splitlines()]
    second = [json.loads(line) for line in after["runs/tiny/rope/qa_1/512/records.jsonl"].splitlines()]
    for whole, left in zip(first, second, strict=True):
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in whole.pop("references")]
        assert left.pop("references_sha256") == digests
        assert left == whole


def test_scores_stay_and_packing_again_changes_nothing(mixed: Path, tmp_path: Path) -> None:
    pack(mixed, tmp_path / "a.bundle", without_texts=True)
    unpack(tmp_path / "a.bundle", tmp_path / "a")
    pack(tmp_path / "a", tmp_path / "b.bundle", without_texts=True)
    assert (tmp_path / "a.bundle").read_bytes() == (tmp_path / "b.bundle").read_bytes()
    whole, left = read_cells(mixed), read_cells(tmp_path / "a.bundle")
    assert left == whole
    assert all((a.hashes == b.hashes).all() for a, b in zip(whole.finished, left.finished, strict=True))


def test_a_damaged_line_may_hold_a_text(mixed: Path, tmp_path: Path) -> None:
    with (mixed / "runs/tiny/rope/qa_1/512/records.jsonl").open("a") as file:
        file.write('{"id": "000004", "references": ["half a te')
    pack(mixed, tmp_path / "a.bundle")
    with pytest.raises(UserError, match=r"qa_1/512/records\.jsonl: has a damaged line; repeat the run"):
        pack(mixed, tmp_path / "b.bundle", without_texts=True)


# -- foreign bundles ----------------------------------------------------------------------------------------------

GOOD = b'{"cell": 1}'


def escaping(path: str) -> Callable[[Path], Path]:
    return lambda out: written(out, [entry(path, GOOD)], GOOD)


def declared(**values: Any) -> Callable[[Path], Path]:
    return lambda out: written(out, [entry(CELL_JSON, GOOD, **values)], GOOD)


def huge_dictionary(out: Path) -> Path:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 256 << 20}]
    line = json.dumps({"bundle_version": 1, "files": []}).encode() + b"\n"
    out.write_bytes(lzma.compress(line, filters=filters))
    return out


def bomb(out: Path) -> Path:
    packer = lzma.LZMACompressor(preset=0)
    line = json.dumps({"bundle_version": 1, "files": []}).encode() + b"\n"
    parts = [packer.compress(line), *(packer.compress(bytes(1 << 20)) for _ in range(80)), packer.flush()]
    out.write_bytes(b"".join(parts))
    return out


def bytes_of(content: bytes) -> Callable[[Path], Path]:
    def made(out: Path) -> Path:
        out.write_bytes(content)
        return out

    return made


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no xz": (bytes_of(b"PK\3\4 something else"), "is not a bundle"),
    "empty": (bytes_of(b""), "is not a bundle"),
    "only magic": (bytes_of(b"\xfd7zXZ\0"), "is damaged"),
    "no manifest": (
        bytes_of(lzma.compress(b"text, and more of it\n" * 9)),
        "is not a bundle, its first line is no man",
    ),
    "deep manifest": (bytes_of(lzma.compress(b'{"bundle_version": 1, "files": ' + b"[" * 99_999)), "is not a bundle"),
    "endless manifest": (bytes_of(lzma.compress(bytes(20 << 20))), "is not a bundle"),
    "later version": (
        lambda out: written(out, [], b"", version=2),
        "is a bundle of version 2, this longctx-bench reads version 1; update it",
    ),
    "version of no number": (lambda out: written(out, [], b"", version="1"), "is not a bundle"),
    "no files": (lambda out: written(out, [], b""), "holds no results"),
    "up": (escaping("../evil.json"), "which no run writes"),
    "up within": (escaping("runs/../../a/1/cell.json"), "which no run writes"),
    "absolute": (escaping("/evil.json"), "which no run writes"),
    "hidden": (escaping("runs/.git/a/b/512/cell.json"), "which no run writes"),
    "other name": (escaping("runs/tiny/rope/niah/512/evil.py"), "which no run writes"),
    "backslash": (escaping("runs\\tiny\\rope\\niah\\512\\cell.json"), "which no run writes"),
    "control characters": (escaping("runs/\x1b[31m/a/b/512/cell.json"), "which no run writes"),
    "newline at the end": (escaping(CELL_JSON + "\n"), "which no run writes"),
    "twice": (lambda out: written(out, [entry(CELL_JSON, GOOD)] * 2, GOOD * 2), "names a file twice"),
    "too large": (declared(size=1 << 50), "is implausible for text"),
    "larger than it is": (declared(size=1000), f"it ends within {CELL_JSON}"),
    "smaller than it is": (declared(size=3), "has another digest"),
    "negative": (declared(size=-1), "is not a bundle"),
    "no number": (declared(size=1.5), "is not a bundle"),
    "other content": (declared(sha256="0" * 64), "has another digest"),
    "no digest": (declared(sha256="x"), "is not a bundle"),
    "more content": (lambda out: written(out, [entry(CELL_JSON, GOOD)], GOOD + b"x"), "more than its manifest"),
    "more bytes": (lambda out: written(out, [entry(CELL_JSON, GOOD)], GOOD, end=b"x" * 9), "something follows"),
    "second stream": (lambda out: written(out, [], b"", end=lzma.compress(b"x")), "something follows"),
    "huge dictionary": (huge_dictionary, "is damaged"),
    "bomb": (bomb, "is damaged (it holds more than its manifest names)"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_foreign_files_end_in_one_line(what: str, call: Any, tmp_path: Path) -> None:
    make, reason = HOSTILE[what]
    path = make(tmp_path / "foreign.bundle")
    before = content_of(tmp_path)
    for command in (("report", path), ("unpack", path, "--out", tmp_path / "out")):
        if what == "no files" and command[0] == "unpack":
            continue
        code, shown, error = call(*command)
        assert (code, shown) == (2, ""), command
        assert error.count("\n") == 1
        assert error.startswith(f"longctx-bench: {path}: ")
        assert reason in error
        assert "\x1b" not in error
    assert not (tmp_path / "out").exists() or not content_of(tmp_path / "out")
    assert content_of(tmp_path) == before


def test_a_bomb_is_stopped_where_nothing_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx_bench.core.decompression._UNSUSPICIOUS", 1 << 10)
    content = bytes(1 << 20)
    written(tmp_path / "a.bundle", [entry(CELL_JSON, content[:100])], content)
    with pytest.raises(UserError, match="decompresses to more than|is damaged"):
        open_store(tmp_path / "a.bundle")


def test_a_bundle_that_was_cut_or_changed_anywhere(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.bundle")
    content, changed = (tmp_path / "a.bundle").read_bytes(), tmp_path / "b.bundle"
    rng = random.Random(0)
    for end in (*range(0, len(content), 97), len(content) - 1):
        changed.write_bytes(content[:end])
        with pytest.raises(UserError, match="is damaged|is not a bundle"):
            open_store(changed)
    for _ in range(60):
        position = rng.randrange(len(content))
        other = bytes((content[position] ^ (1 << rng.randrange(8)),))
        changed.write_bytes(content[:position] + other + content[position + 1 :])
        with pytest.raises(UserError, match=r"b\.bundle: "):
            open_store(changed)


def test_a_pipe_is_not_waited_for(tmp_path: Path, call: Any) -> None:
    os.mkfifo(tmp_path / "a.bundle")
    code, _, error = call("report", tmp_path / "a.bundle")
    assert (code, error.count("\n")) == (2, 1)
