"""The Python functions: what they take, what they return, what a notebook shows."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import longctx_bench
from longctx_bench.api import evaluation, models
from longctx_bench.core.argument_parsing import join_names, parse_int, parse_lengths, parse_scales
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two contestants at 2x, made by the docstrings' own examples."""
    made = tmp_path_factory.mktemp("api") / "results"
    runner = doctest.DocTestRunner()
    for module in (evaluation, models):
        found = doctest.DocTestFinder().find(module, extraglobs={"folder": made})
        # As they stand in the file: each reads what those before it made.
        for example in sorted((one for one in found if one.examples), key=lambda one: one.lineno or 0):
            runner.run(example)
    assert runner.tries >= 11
    assert runner.failures == 0
    return made


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(folder: Path) -> None:
    assert (folder / "exported/config.json").is_file()
    assert (folder / "figures/all-length.png").is_file()


def test_the_package_has_a_version_and_its_functions() -> None:
    assert longctx_bench.__version__[0].isdigit()
    for name in longctx_bench.__all__:
        assert getattr(longctx_bench, name)
    assert set(longctx_bench.__all__) <= set(dir(longctx_bench))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2x", (2.0,)), ("1x, 0.5x", (1.0, 0.5)), (2, (2.0,)), ([1, "2x"], (1.0, 2.0)), (np.array([1, 4]), (1.0, 4.0)),
     (np.float32(2), (2.0,)), (None, ()), ((), ())],
)  # fmt: skip
def test_scales_are_text_numbers_or_lists(given: Any, expected: tuple[float, ...]) -> None:
    assert parse_scales(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("4k", (4096,)), (4096, (4096,)), (512.0, (512,)), ([512, "1k,natural"], (512, 1024, NATURAL)),
     (np.int64(8), (8,)), (range(1, 3), (1, 2)), (None, ())],
)  # fmt: skip
def test_lengths_are_text_numbers_or_lists(given: Any, expected: tuple[int, ...]) -> None:
    assert parse_lengths(given) == expected


@pytest.mark.parametrize("given", [True, object(), {"2x": 1}, b"2x", [[1]], [None], "two", -1, float("nan"), "inf"])
def test_what_is_no_length_and_no_scale_is_one_line(given: Any) -> None:
    with pytest.raises(UserError, match=r"^scale"):
        parse_scales(given, "scale")
    with pytest.raises(UserError, match=r"^length"):
        parse_lengths(given, "length")


@pytest.mark.slow
def test_what_is_no_name_or_number_is_one_line(tmp_path: Path) -> None:
    assert join_names(["a", Path("b")], "model") == "a,b"
    for wrong in (3, [3], b"a"):
        with pytest.raises(UserError, match="model"):
            join_names(wrong, "model")
    assert parse_int(np.int64(3), "limit") == 3
    for wrong in ("3", 0, 1.5, True, float("inf")):
        with pytest.raises(UserError, match="limit"):
            parse_int(wrong, "limit")
    arguments: list[dict[str, Any]] = [
        {"scale": {}}, {"length": 1.5}, {"limit": "2"}, {"seed": "x"}, {"tasks": 3}, {"out": 3}, {"device": 7},
        {"dtype": 16}, {"batch_tokens": "many"}, {"engine": None},
    ]  # fmt: skip
    for given in arguments:
        with pytest.raises(UserError):
            longctx_bench.run("rope-tiny", **{"scale": "2x", "out": tmp_path, **given})
    with pytest.raises(UserError, match="model"):
        longctx_bench.run(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="folder"):
        longctx_bench.report(3)  # type: ignore[arg-type]


def test_text_and_lists_measure_the_same_cells(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("records.jsonl")}
    more = {"limit": 2, "device": "cpu", "out": folder}
    for given in ({"scale": "2x"}, {"scale": 2}, {"length": "1k"}, {"length": [1024]}):
        frame = longctx_bench.run(["rope-tiny", "yarn-tiny"], ["niah"], **given, **more)  # type: ignore[arg-type]
        assert frame["cell"].tolist() == ["rope-tiny/niah/1024", "yarn-tiny/niah/1024"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("records.jsonl")} == before


def test_frames_are_numbers_in_python_and_tables_in_a_notebook(folder: Path) -> None:
    frame = longctx_bench.report(folder)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == evaluation.COLUMNS
    html = frame._repr_html_()
    assert "<table" in html
    assert "yarn-tiny" in html
    assert "[34, 100]" in html  # Wilson's interval of 2 of 2
    assert frame["model"].tolist() == (frame["method"] + "-" + frame["base"]).tolist()
    part = frame[frame["method"] == "yarn"]
    assert type(part) is pd.DataFrame
    assert part["score"].tolist() == [1.0, 1.0]
    compared = longctx_bench.compare("yarn-tiny", "rope-tiny", folder, scale="2x")
    assert compared["p_holm"].item() == pytest.approx(0.5)
    assert "yarn-tiny against rope-tiny" in compared._repr_html_()
    with pytest.raises(UserError, match="did you mean"):
        longctx_bench.compare("yran-tiny", "rope-tiny", folder)


def test_figures_show_themselves_and_refuse_what_is_unknown(folder: Path) -> None:
    drawn = longctx_bench.figures(folder, ["length", "bars"], scale="2x")
    assert len(drawn) == 2
    assert drawn._repr_html_().count("data:image/png;base64,") == 2
    for given in ({"kind": "heatmpa"}, {"task": "nia"}, {"scale": "1x,2x"}, {"kind": ""}):
        with pytest.raises(UserError):
            longctx_bench.figures(folder, **given)  # type: ignore[arg-type]


def test_everything_of_a_folder_is_drawn_without_the_training_curves_of_what_ships(folder: Path) -> None:
    drawn = longctx_bench.figures(folder, "all")
    assert "curves" not in drawn
    assert {"all-length", "all-bars-2x"} <= set(drawn)
    assert any(line.startswith("curves: ") for line in drawn.left_out)


@pytest.mark.slow
def test_a_papers_figures_are_drawn_as_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    drawn = longctx_bench.figures(folder, paper="drope", base="tiny")
    assert "figure-1" in drawn
    assert any(line.startswith("figure-9, ") for line in drawn.left_out)
    assert drawn.save(tmp_path)[0].is_file()
    for given in (
        {"paper": "drope", "kind": "heatmap"},
        {"paper": "drope", "base": "tinny"},
        {"paper": "drop"},
        {"base": "tiny"},
    ):
        with pytest.raises(UserError):
            longctx_bench.figures(folder, **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_model_is_loaded_for_a_length_as_the_command_line_writes_it() -> None:
    model, _ = longctx_bench.load("pi-tiny", length="1k", device="cpu")
    assert model.config.rope_parameters["factor"] == 2
    for length in ("natural", "1k,2k", "long"):
        with pytest.raises(UserError, match="length"):
            longctx_bench.load("pi-tiny", length=length)


@pytest.mark.slow
def test_a_calibration_is_written_and_shown(tmp_path: Path) -> None:
    tried: list[Any] = []
    found = longctx_bench.calibrate("drope-tiny", 1.25, limit=1, device="cpu", out=tmp_path, tell=tried.append)
    assert set(found.table) == {1.25}
    assert len(tried) == len(found.fit.sweep) > 3
    assert found.path == tmp_path / "calibration.json"
    assert found.parameter in found.path.read_text()
    assert "1.25x" in found._repr_html_()
    for given in ({"scale": "1x"}, {"objective": "retrievel"}, {"objective": "perplexity"}, {"out": None}):
        with pytest.raises(UserError):
            longctx_bench.calibrate("yarn-tiny", **{"scale": 2, "out": tmp_path, **given})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no scalar"):
        longctx_bench.calibrate("pi-tiny", out=tmp_path)


@pytest.mark.slow
def test_torch_is_imported_by_nothing_that_reads() -> None:
    program = (
        "import sys, longctx_bench; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules);"
        "longctx_bench.report, longctx_bench.__version__; assert 'torch' not in sys.modules;"
        "from longctx_bench.cli.main import cli; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("progress", "watched", "shown"), [(None, True, True), (None, False, False), (True, False, True)]
)
def test_a_run_shows_its_progress_where_somebody_watches(
    progress: bool | None,
    watched: bool,
    shown: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "is_interactive", lambda: watched)
    longctx_bench.run("rope-tiny", length=256, limit=1, engine="echo", out=tmp_path, progress=progress)
    assert ("rope-tiny/niah/256" in capsys.readouterr().err) == shown
