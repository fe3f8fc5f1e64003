"""Figures of measured cells: the drawn artists have the measured values."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from longctx_bench.core.errors import UserError
from longctx_bench.registry import Registry
from longctx_bench.reporting.figures.niah_heatmaps import heatmap_sheet
from longctx_bench.reporting.figures.plot_styles import METHODS, assign_plot_styles
from longctx_bench.reporting.figures.score_bars import bar_sheet
from longctx_bench.reporting.figures.score_vs_length import groups, length_sheet
from longctx_bench.reporting.figures.short_context import in_context_sheet
from longctx_bench.reporting.figures.task_heatmap import task_table
from longctx_bench.reporting.results import CellSummary

Cells = Callable[..., list[CellSummary]]
HIT, HALF, MISS = [1.0] * 22, [1.0, 0.0] * 11, [0.0] * 22
FIFTEEN = [
    "rope", "crop", "pi", "ntk", "llama3", "yarn", "yarn-perplexity", "yarn-retrieval", "alibi", "rnope-swa", "nope",
    "nope-retrieval", "drope", "drope-perplexity", "drope-paper",
]  # fmt: skip


def drawn(figure: Any) -> list[Any]:
    """Return the panels that show something."""
    FigureCanvasAgg(figure).draw()
    return [axis for axis in figure.axes if axis.axison and axis.get_label() != "<colorbar>"]


def texts(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_a_heatmap_has_a_panel_per_model_with_its_scores_by_depth_and_length(cells: Cells) -> None:
    deep = [1.0 if place % 11 >= 6 else 0.0 for place in range(22)]
    figure = heatmap_sheet(
        cells(
            {
                ("yarn", "niah", 512): HIT,
                ("yarn", "niah", 1024): deep,
                ("rope", "niah", 512): HIT,
                ("rope", "niah", 2048): MISS,
            }
        )
    )
    rope, yarn = drawn(figure)
    assert [rope.get_title(), yarn.get_title()] == ["rope", "yarn"]
    grid = np.ma.filled(yarn.images[0].get_array(), math.nan)
    assert grid[:, 0].tolist() == [100.0] * 11
    assert grid[:, 1].tolist() == [0.0] * 6 + [100.0] * 5
    assert np.isnan(grid[:, 2]).all(), "yarn was not measured at 2,048"
    assert texts(yarn) == [v for depth in range(11) for v in ("100", "100" if depth >= 6 else "0")]
    assert [label.get_text() for label in yarn.get_xticklabels()] == ["512\n1x", "1,024\n2x", "2,048\n4x"]
    assert {image.get_clim() for axis in (rope, yarn) for image in axis.images} == {(0.0, 100.0)}
    assert {tuple(line.get_xdata()) for line in yarn.lines} == {(0.5, 0.5)}, "the training context ends after 512"
    assert figure.axes[-1].get_ylabel() == "niah on tiny: score (%)\nn = 2 per cell"


@pytest.mark.slow
def test_many_methods_stay_apart_on_a_heatmap_sheet(cells: Cells) -> None:
    scores = {(name, "niah", length): HALF for name in FIFTEEN for length in (512, 1024, 2048, 4096)}
    figure = heatmap_sheet(cells(scores))
    panels = drawn(figure)
    assert len(panels) == len(FIFTEEN) == 15
    renderer = figure.canvas.get_renderer()
    for group in ([axis.title for axis in panels], *(axis.get_xticklabels() for axis in panels)):
        boxes = [text.get_window_extent(renderer) for text in group]
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
               for box in (axis.get_tightbbox(renderer) for axis in panels))  # fmt: skip


@pytest.mark.slow
def test_many_lengths_drop_values_and_labels_that_would_overlap(cells: Cells) -> None:
    lengths = [512 * 2**power for power in range(10)]
    scores = {(name, "niah", length): HIT for name in FIFTEEN[:10] for length in lengths}
    figure = heatmap_sheet(cells(scores))
    panel = drawn(figure)[0]
    assert texts(panel) == []
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in panel.get_xticklabels() if text.get_text()]
    assert 2 <= len(boxes) < 10
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert figure.axes[0].images[0].get_array().shape == (11, 10)


def test_nothing_to_draw_is_said(cells: Cells) -> None:
    only = cells({("rope", "vt", 512): HIT})
    with pytest.raises(UserError, match="no finished cell has a depth grid; .*niah"):
        heatmap_sheet(only)
    with pytest.raises(UserError, match="no task was measured at two lengths"):
        length_sheet(only)
    with pytest.raises(UserError, match="no task of lm-eval was measured"):
        in_context_sheet(only)
    with pytest.raises(UserError, match="--scale 4x: .*1x"):
        bar_sheet(only, 4.0)
    with pytest.raises(UserError, match="no finished cell of these tasks has a score in per cent"):
        task_table([])


def test_lines_go_through_the_means_and_bands_are_the_intervals(cells: Cells) -> None:
    summaries = cells({
        ("rope", "niah", 512): HIT, ("rope", "niah", 1024): MISS, ("drope", "niah", 512): HIT,
        ("drope", "niah", 1024): HALF, ("rope", "perplexity", 512): [2.5, 3.5],
        ("rope", "perplexity", 1024): [5.0, 6.0], ("rope", "vt", 512): HIT,
    })  # fmt: skip
    niah, loss = drawn(length_sheet(summaries))
    assert [niah.get_title(), loss.get_title()] == ["niah (n = 22)", "perplexity (n = 2)"], "vt has one length: no line"
    legend = [text.get_text() for text in niah.figure.legends[0].get_texts()]
    assert legend == ["rope", "drope", "95 % interval"]
    assert (niah.get_ylabel(), loss.get_ylabel()) == ("string match all (%)", "token loss (nats a token)")
    lines = {line.get_label(): line for line in niah.lines}
    assert list(lines["drope"].get_ydata()) == [100.0, 50.0]
    assert list(lines["rope"].get_ydata()) == [100.0, 0.0]
    assert lines["drope"].get_xdata() == pytest.approx([1, 2], rel=0.05)
    assert (lines["drope"].get_color(), lines["drope"].get_marker()) == (
        METHODS["drope"].colour,
        METHODS["drope"].marker,
    )
    half = next(s for s in summaries if s.cell.method == "drope" and s.cell.length == 1024)
    heights = {
        round(float(y), 6) for band in niah.collections for path in band.get_paths() for y in path.vertices[:, 1]
    }
    assert {round(100 * half.low, 6), round(100 * half.high, 6)} <= heights
    assert [label.get_text() for label in niah.get_xticklabels()] == ["1x\n512", "2x\n1,024"]
    assert list(loss.lines[-1].get_ydata()) == [3.0, 5.5]


@pytest.mark.slow
def test_labels_are_smaller_only_where_panels_are_narrow_and_many(cells: Cells) -> None:
    def sizes(names: list[str], lengths: int) -> tuple[float, float]:
        scores = {("rope", name, 256 * 2**place): HIT for name in names for place in range(lengths)}
        axis = drawn(length_sheet(cells(scores)))[0]
        return axis.title.get_fontsize(), axis.get_xticklabels()[0].get_fontsize()

    long = ["passage_retrieval_en", "passage_retrieval_zh", "multifieldqa_en_e"]
    wide, narrow, short = sizes(long[:2], 6), sizes(long, 6), sizes(["vt", "cwe", "fwe"], 4)
    assert wide == short, "the style's own sizes"
    assert (narrow[0] < wide[0], narrow[1] < wide[1]) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize(("characters", "points"), [(24, 8), (25, 7)])
def test_a_title_of_24_characters_fits_a_narrow_panel(cells: Cells, characters: int, points: int) -> None:
    names = [letter * (characters - len(" (n = 22)")) for letter in "abc"]
    axis = drawn(length_sheet(cells({("rope", name, length): HIT for name in names for length in (512, 1024)})))[0]
    assert (len(axis.get_title()), axis.title.get_fontsize()) == (characters, points)


@pytest.mark.slow
def test_fifteen_lines_are_divided_into_rows_with_the_untouched_model_in_each(cells: Cells) -> None:
    summaries = cells({(name, "niah", length): HALF for name in FIFTEEN for length in (512, 1024)})
    found = assign_plot_styles(summaries)
    rows = groups(found)
    assert [row[0] for row in rows] == ["rope-tiny"] * len(rows)
    assert all(len(row) <= 9 for row in rows)
    assert sorted(name for row in rows for name in row[1:]) == sorted(f"{m}-tiny" for m in FIFTEEN if m != "rope")
    figure = length_sheet(summaries)
    assert [len([line for line in axis.lines if line.get_label()[0] != "_"]) for axis in drawn(figure)] == list(
        map(len, rows)
    )
    looked = [(look.colour, look.marker, look.dashes) for look in found.values()]
    assert len(set(looked)) == len(looked)


def test_two_bases_are_named_and_the_smaller_is_hollow(cells: Cells) -> None:
    scores = {(who, "niah", n): HALF for who in ("rope", "yarn", "yarn@other") for n in (512, 1024)}
    lines = {line.get_label(): line for line in drawn(length_sheet(cells(scores)))[0].lines}
    assert lines["yarn-other"].get_color() == lines["yarn-tiny"].get_color()
    assert lines["yarn-other"].get_markerfacecolor() == "white"
    assert lines["yarn-tiny"].get_markerfacecolor() == METHODS["yarn"].colour


def test_every_known_method_has_a_look_of_its_own() -> None:
    assert Registry().methods.keys() <= METHODS.keys()
    assert len({(look.colour, look.marker, look.dashes) for look in METHODS.values()}) == len(METHODS)
    assert len({(look.colour, look.marker) for look in METHODS.values()}) == len(METHODS), (
        "dashes do not show on a point"
    )


def test_unknown_methods_keep_their_look_and_differ(cells: Cells) -> None:
    both = assign_plot_styles(cells({(name, "niah", 512): HIT for name in ("half-pi", "mine", "third-pi", "rope")}))
    assert len({(look.colour, look.marker) for look in both.values()}) == 4
    alone = assign_plot_styles([s for s in cells({}) if s.cell.method == "half-pi"])
    assert alone["half-pi-tiny"].colour == both["half-pi-tiny"].colour


def test_bars_stand_at_their_scores_with_intervals(cells: Cells) -> None:
    summaries = cells({
        ("rope", "niah", 1024): MISS, ("yarn", "niah", 1024): HALF, ("rope", "vt", 1024): HIT,
        ("yarn", "niah", 4096): HIT, ("yarn", "perplexity", 1024): [3.0, 4.0],
    })  # fmt: skip
    [axis] = drawn(bar_sheet(summaries))
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axis.containers if hasattr(c, "patches")}
    assert heights == {"rope": [0.0, 100.0], "yarn": [50.0]}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["niah\nn = 22", "vt\nn = 22"], "without the loss"
    half = next(s for s in summaries if s.cell.method == "yarn" and s.cell.task == "niah" and s.cell.length == 1024)
    spans = [segment[:, 1].tolist() for c in axis.collections for segment in c.get_segments()]
    assert [pytest.approx([100 * half.low, 100 * half.high])] == [span for span in spans if 20 < span[0] < 40]
    [longer] = drawn(bar_sheet(summaries, 8.0))
    assert [bar.get_height() for bar in longer.patches] == [100.0]


@pytest.mark.slow
def test_many_models_get_a_panel_per_task_with_their_names(cells: Cells) -> None:
    summaries = cells({(name, task, 1024): HALF for name in FIFTEEN for task in ("niah", "niah_multikey")})
    panels = drawn(bar_sheet(summaries))
    assert [axis.get_title() for axis in panels] == ["niah\nn = 22", "niah_multikey\nn = 22"]
    assert {bar.get_width() for axis in panels for bar in axis.patches} == {50.0}
    assert [label.get_text() for label in panels[0].get_yticklabels()] == FIFTEEN


def test_small_scores_are_drawn_from_zero(cells: Cells) -> None:
    [axis] = drawn(bar_sheet(cells({("rope", "trec", 1024): [0.0] * 199 + [1.0]})))
    assert axis.get_ylim() == (0.0, 10.0)


def test_in_context_takes_lm_evals_tasks_at_the_training_context(cells: Cells) -> None:
    summaries = cells({
        ("rope", "lm_eval:piqa", 512): HIT, ("drope", "lm_eval:piqa", 512): HALF, ("drope", "lm_eval:piqa", 1024): MISS,
        ("rope", "lm_eval:arc_easy", 512): HALF, ("rope", "niah", 512): HIT,
    })  # fmt: skip
    [axis] = drawn(in_context_sheet(summaries))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["arc_easy\nn = 22", "piqa\nn = 22"]
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axis.containers if hasattr(c, "patches")}
    assert heights == {"rope": [50.0, 100.0], "drope": [50.0]}


def test_a_heat_table_has_a_row_a_method_and_rulers_order_of_tasks(cells: Cells) -> None:
    summaries = cells({
        ("rope", "vt", 1024): HALF, ("rope", "niah_single_1", 1024): HIT, ("yarn", "qa_1", 1024): MISS,
        ("rope", "zebra", 1024): HIT, ("rope", "perplexity", 1024): [3.0, 4.0],
    })  # fmt: skip
    [axis] = drawn(task_table(summaries))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["niah_single_1", "vt", "qa_1", "zebra"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["rope", "yarn"]
    grid = np.ma.filled(axis.images[0].get_array(), math.nan)
    assert np.array_equal(grid, [[100, 50, math.nan, 100], [math.nan, math.nan, 0, math.nan]], equal_nan=True)
    assert texts(axis) == ["100", "50", "100", "0"]
    assert axis.figure.axes[-1].get_ylabel().endswith("\nn = 22 per cell")


@pytest.mark.slow
def test_a_panel_of_bars_says_what_was_not_measured(cells: Cells) -> None:
    scores = {(name, "niah", 1024): MISS for name in FIFTEEN} | {(name, "vt", 1024): HIT for name in FIFTEEN[2:]}
    niah, vt = drawn(bar_sheet(cells(scores)))
    assert (texts(niah), texts(vt)) == ([], ["not measured"] * 2)


def test_whole_documents_have_a_scale_of_their_own(cells: Cells) -> None:
    summaries = cells({("rope", "multi_news", 0): HALF})
    [axis] = drawn(bar_sheet(summaries))
    assert [bar.get_height() for bar in axis.patches] == [50.0]
    assert axis.figure.get_supylabel() == "score at natural length (%)\nwith 95 % intervals"
