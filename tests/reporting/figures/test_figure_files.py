"""Figure files: three formats, reproducible bytes, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pytest
from helpers.result_stores import write_store
from PIL import Image

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.niah_heatmaps import heatmap_sheet
from longctx_bench.reporting.results import read_cells

HALF = [1.0, 0.0] * 11
SCORES = {(method, "niah", length): HALF for method in ("rope", "drope") for length in (512, 1024)}


def sheet(folder: Path) -> Any:
    write_store(folder, SCORES)
    return heatmap_sheet(read_cells(folder).finished)


@pytest.mark.slow
def test_the_same_data_give_the_same_bytes_in_every_format(tmp_path: Path) -> None:
    first = style.save(sheet(tmp_path / "a"), tmp_path / "out" / "first", style.FORMATS)
    second = style.save(sheet(tmp_path / "b"), tmp_path / "out" / "second", style.FORMATS)
    assert [path.name for path in first] == ["first.png", "first.pdf", "first.svg"]
    assert [path.read_bytes()[:5] for path in first] == [b"\x89PNG\r", b"%PDF-", b"<?xml"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(p.name for p in (*first, *second))
    assert b"CreationDate" not in first[1].read_bytes()
    assert Image.open(first[0]).size[0] == round(sheet(tmp_path / "c").get_figwidth() * style.DPI)


@pytest.mark.slow
def test_a_users_own_style_changes_nothing(tmp_path: Path) -> None:
    [plain] = style.save(sheet(tmp_path / "a"), tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 10, "image.cmap": "jet", "axes.grid": True}):
        [own] = style.save(sheet(tmp_path / "b"), tmp_path / "own")
        assert matplotlib.rcParams["font.size"] == 30
    assert plain.read_bytes() == own.read_bytes()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="figures are written as png, pdf, svg, not as 'gif'"):
        style.save(sheet(tmp_path / "a"), tmp_path / "figure", ("gif",))


@pytest.mark.slow
def test_the_command_draws_in_several_formats(call: Any, tmp_path: Path) -> None:
    write_store(tmp_path, SCORES)
    code, shown, error = call("figures", tmp_path, "--kind", "heatmap,bars", "--format", "png,svg")
    assert code == 0, error
    names = ["niah-heatmap.png", "niah-heatmap.svg", "all-bars-2x.png", "all-bars-2x.svg"]
    assert shown.splitlines() == [f"wrote {tmp_path}/figures/{name}" for name in names]
    assert all((tmp_path / "figures" / name).stat().st_size > 5_000 for name in names)


@pytest.mark.slow
def test_all_draws_what_there_is_and_says_what_it_left_out(call: Any, tmp_path: Path) -> None:
    write_store(tmp_path, SCORES, weights={"embedded": "drope-tiny"})
    code, _, error = call("figures", tmp_path, "--kind", "all", "--out", tmp_path / "figs")
    assert code == 0, error
    assert sorted(path.name for path in (tmp_path / "figs").iterdir()) == [
        "all-bars-2x.png", "all-length.png", "all-tasks-2x.png", "niah-heatmap.png",
    ]  # fmt: skip
    [curves] = [line for line in error.splitlines() if line.startswith("left out: curves: ")]
    assert "--checkpoints" in curves
    assert [line for line in error.splitlines() if line != curves] == [
        "left out: in-context: no task of lm-eval was measured; run --tasks in_context --scale 1x first",
        f"left out: factors: {tmp_path}: holds no probe; `longctx-bench probe factors MODEL` makes one",
        f"left out: attention: {tmp_path}: holds no probe; `longctx-bench probe attention MODEL` makes one",
    ]


@pytest.mark.slow
def test_curves_of_what_ships_are_drawn_where_they_are_asked_for(call: Any, tmp_path: Path) -> None:
    from longctx_bench.core.sources import shipped_checkpoint_folder

    write_store(tmp_path, SCORES, weights={"embedded": "drope-tiny"})
    for place, options in enumerate((["--kind", "curves"], ["--checkpoints", shipped_checkpoint_folder("drope-tiny")])):
        out = tmp_path / str(place)
        code, _, error = call("figures", tmp_path, "--kind", "all", *options, "--out", out)
        assert code == 0, error
        assert (out / "curves.png").is_file()


@pytest.mark.slow
def test_an_unfinished_cell_is_named_and_the_rest_is_drawn(call: Any, tmp_path: Path) -> None:
    write_store(tmp_path, SCORES)
    cell = tmp_path / "runs/tiny/drope/niah/1024"
    (cell / "cell.json").rename(cell / "started.json")
    code, shown, error = call("figures", tmp_path)
    assert (code, shown) == (0, f"wrote {tmp_path}/figures/niah-heatmap.png\n")
    assert (
        error == "missing: tiny/drope/niah/1024: not finished, 22 examples so far; the same run command completes it\n"
    )


def test_one_file_by_its_ending(call: Any, tmp_path: Path) -> None:
    write_store(tmp_path, SCORES)
    code, shown, _ = call("figures", tmp_path, "--kind", "length", "--out", tmp_path / "mine.pdf")
    assert (code, shown) == (0, f"wrote {tmp_path}/mine.pdf\n")
    assert (tmp_path / "mine.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--kind", "bar"], "--kind bar: unknown; did you mean 'bars'?"),
        (["--format", "gif"], "--format gif: unknown"),
        (["--out", "x.gif"], "--out x.gif: must end in .png, .pdf or .svg, or name a folder"),
        (["--kind", "all", "--out", "x.png"], "--out x.png: is one file; for several kinds or formats name a folder"),
        (["--kind", "bars", "--scale", "3x"], "--scale 3x: not measured; measured: 1x, 2x"),
        (["--kind", "bars", "--scale", "1x,2x"], "--scale 1x,2x: expected one scale"),
        (["--kind", "curves", "--checkpoints", "nowhere"], "--checkpoints nowhere: no such folder"),
        (["--task", "vt"], "--task vt: not measured in"),
        (["--paper", "drope", "--kind", "bars"], "--kind does not go with --paper"),
        (["--paper", "drope", "--out", "x.png"], "a paper has many tables and figures; name a folder"),
    ],
)
def test_mistakes_are_one_line(call: Any, tmp_path: Path, arguments: list[str], line: str) -> None:
    write_store(tmp_path, SCORES)
    code, _, error = call("figures", tmp_path, *arguments)
    assert code == 2
    assert line in error
    assert len(error.strip().splitlines()) == 1


def test_an_empty_folder_has_nothing(call: Any, tmp_path: Path) -> None:
    code, _, error = call("figures", tmp_path, "--kind", "all")
    assert code == 2
    assert error.splitlines()[-1] == f"longctx-bench: {tmp_path}: has no data for any figure"
