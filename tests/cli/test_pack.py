"""``pack`` and ``unpack``: every command prints the same from a bundle as from its folder, and writes to neither."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.longbench_rows import row
from helpers.page_results import write_cell, write_run

from longctx_bench import compare, figures, report, run
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell
from longctx_bench.registry import Registry
from longctx_bench.store.bundle import pack
from longctx_bench.store.run_store import ResultStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that can be missing, too."""
    folder = write_run(tmp_path / "made")
    write_cell(folder, Cell("tiny", "yarn", "damaged", 512), [{"score": 1.0}])
    (ResultStore(folder).path(Cell("tiny", "yarn", "damaged", 512)) / "records.jsonl").write_text("{}\n")
    unfinished = ResultStore(folder).path(Cell("tiny", "yarn", "unfinished", 512))
    unfinished.mkdir(parents=True)
    (unfinished / "started.json").write_text(json.dumps({"failed": "for no reason"}))
    return folder


@pytest.fixture
def bundle(folder: Path) -> Path:
    """Its bundle, next to it."""
    pack(folder, folder.with_name("made.bundle"))
    return folder.with_name("made.bundle")


COMMANDS = [
    *(("report", "{}", "--table", "all", "--format", form) for form in ("terminal", "md", "latex", "csv", "json")),
    ("report", "{}", "--table", "all", "--format", "html"),
    *(("compare", "yarn-tiny", "rope-tiny", "{}", "--format", form) for form in ("md", "latex", "csv", "html")),
    ("list", "results", "{}"),
    ("show", "rope-tiny/niah/1024", "--out", "{}"),
    ("show", "yarn-tiny/niah/2048", "7", "--compare-with", "rope-tiny", "--out", "{}"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_bundle_prints_what_its_folder_prints(
    command: tuple[str, ...], call: Any, folder: Path, bundle: Path
) -> None:
    first, second = (call(*(str(path) if word == "{}" else word for word in command)) for path in (folder, bundle))
    assert first[0] == 0
    assert first[1]
    assert second == first


def test_the_page_differs_in_the_names_alone(call: Any, folder: Path, bundle: Path) -> None:
    first, second = (call("report", path, "--format", "html")[1] for path in (folder, bundle))
    assert second.replace("made.bundle", "made") == first


@pytest.mark.slow
def test_figures_are_the_same_and_lie_in_the_folder_of_its_name(call: Any, folder: Path, bundle: Path) -> None:
    code, _, _ = call("figures", folder, "--kind", "heatmap,length")
    assert code == 0
    before = {path: path.read_bytes() for path in (folder / "figures").iterdir()}
    for path in before:
        path.unlink()
    code, shown, _ = call("figures", bundle, "--kind", "heatmap,length")
    assert code == 0
    assert f"wrote {folder / 'figures'}" in shown
    assert {path: path.read_bytes() for path in before} == before


def test_python_reads_bundles_too(folder: Path, bundle: Path) -> None:
    assert report(bundle).equals(report(folder))
    assert compare("yarn-tiny", "rope-tiny", bundle).equals(compare("yarn-tiny", "rope-tiny", folder))
    assert list(figures(bundle)) == list(figures(folder))


def test_pack_and_unpack_say_what_they_did(call: Any, folder: Path) -> None:
    code, shown, error = call("pack", folder)
    assert (code, error) == (0, "")
    first, second = shown.splitlines()
    assert first.startswith(f"wrote {folder}.bundle: 10 cells, 0.0")
    assert " MB packed into 0.0" in first
    assert second.startswith("it holds excerpts of prompts: mind their licences")
    assert call("pack", folder)[0] == 2
    code, shown, _ = call("pack", folder, "--overwrite", "--without-texts")
    assert (code, shown.count("\n")) == (0, 1)
    code, shown, _ = call("unpack", f"{folder}.bundle", "--out", folder.with_name("other"))
    assert code == 0
    assert shown.startswith(f"wrote {folder.with_name('other')}: 10 cells, 0.0")
    assert shown.endswith(", without texts of data sets\n")


def test_nothing_writes_into_a_bundle(call: Any, bundle: Path) -> None:
    before = bundle.read_bytes()
    for command in (
        ("run", "--model", "rope-tiny", "--limit", "1", "--engine", "echo", "--out", bundle),
        ("run", "--model", "rope-tiny", "--limit", "1", "--engine", "echo", "--dry-run", "--out", bundle),
        ("parity", "rope-tiny", "--out", bundle),
        ("probe", "factors", "yarn-tiny", "--out", bundle),
        ("report", bundle, "--out", bundle),
        ("figures", bundle, "--out", bundle),
        ("migrate", bundle),
        ("pack", bundle),
    ):
        code, _, error = call(*command)
        assert code == 2, command
        assert error.count("\n") == 1, (command, error)
        assert "bundle" in error, (command, error)
    assert bundle.read_bytes() == before
    with pytest.raises(UserError, match="is a file, and results are written to a folder"):
        ResultStore(bundle)


def test_a_folder_of_bundles_names_them(call: Any, folder: Path, bundle: Path, tmp_path: Path) -> None:
    code, _, error = call("report", tmp_path)
    assert (code, error) == (2, f"longctx-bench: {tmp_path}: holds no results; give the bundle {bundle}\n")
    pack(folder, tmp_path / "another.bundle")
    assert "give one of its bundles, such as" in call("report", tmp_path)[2]
    folder.rename(tmp_path / "moved")
    code, _, error = call("report", folder)
    assert (code, error) == (2, f"longctx-bench: {folder}: no such folder; give the bundle {bundle}\n")


def test_texts_that_were_left_out_are_named(call: Any, folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.bundle", without_texts=True)
    code, shown, _ = call("show", "rope-tiny/niah/1024", "--compare-with", "yarn-tiny", "--out", tmp_path / "a.bundle")
    assert code == 0
    assert "--- prompt\n[left out: text of a data set]\n[with the data, it would be written again: " in shown
    assert "--- references\n[left out: text of a data set]\n--- generation (8 tokens" in shown
    assert "=== yarn-tiny/niah/1024" in shown
    assert "left out: text of a data set" in call("report", tmp_path / "a.bundle", "--format", "html")[1]


def test_texts_that_were_left_out_come_back_with_the_data(call: Any, tiny_folder: Path, tmp_path: Path) -> None:
    data, out, packed = tmp_path / "data", tmp_path / "run", tmp_path / "run.bundle"
    data.mkdir()
    lines = [json.dumps(row("prose", pieces, 5)) for pieces in (2, 30, 60)]
    (data / "multi_news.jsonl").write_text("".join(f"{line}\n" for line in lines))
    registry = Registry(local_data={"longbench": data})
    run(str(tiny_folder), "multi_news", length=[700], limit=3, engine="echo", out=out, registry=registry)
    pack(out, packed, without_texts=True)
    command = ("show", "rope-tiny/multi_news/700", "1", "--data", f"longbench={data}", "--out")
    whole = call(*command, out)
    assert whole[0] == 0
    assert call(*command, packed) == whole
    assert json.loads(lines[1])["answers"][0] in whole[1].partition("--- references")[2]
    # Other data are not passed off as those of the run.
    (data / "multi_news.jsonl").write_text("".join(f"{json.dumps(row('prose', 50, 7))}\n" for _ in lines))
    code, _, error = call(*command, packed)
    assert (code, "differs from the one in the run" in error) == (2, True)


@pytest.mark.slow
def test_reading_results_needs_no_torch(bundle: Path, folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'tokenizers', 'safetensors'): sys.modules[name] = None\n"
        "sys.argv = ['longctx-bench', *sys.argv[1:]]\n"
        "from longctx_bench.cli import main\n"
        "main()\n"
    )
    for command in (("report", bundle), ("pack", folder, "--out", f"{folder}-2.bundle", "--without-texts")):
        arguments = [sys.executable, "-c", code, *map(str, command)]
        done = subprocess.run(arguments, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
