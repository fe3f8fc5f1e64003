"""Figures of training curves, frequency factors and attention probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.reporting.figures.attention_by_length import attention_sheet
from longctx_bench.reporting.figures.loss_curves import curve_sheet, read_curves
from longctx_bench.reporting.figures.plot_styles import METHODS
from longctx_bench.reporting.figures.rope_factors import factor_sheet

HEADER = "step,tokens,lr,train_loss,validation_loss,tokens_per_second\n"


def run(folder: Path, kind: str, positions: str, base: str | None, losses: list[float]) -> None:
    folder.mkdir(parents=True)
    lines = [f"{place},{place * 1e9:.0f},0.1,,{loss},\n" for place, loss in enumerate(losses, 1)]
    (folder / "loss.csv").write_text(HEADER + "1,500000000,0.1,9.5,,\n" + "".join(lines))
    recipe = f"kind: {kind}\npositions: {positions}\n" + (f"base: {base}\n" if base else "")
    (folder / "README.md").write_text(f"---\nlicense: x\n---\n# card\n\n```yaml\n{recipe}```\n")


def test_curves_show_recalibration_and_control_beside_the_bases_loss(tmp_path: Path) -> None:
    run(tmp_path / "rope-x", "pretrain", "rope", None, [4.0, 3.25])
    run(tmp_path / "drope-x", "recalibrate", "drope", "rope-x", [3.9, 3.5, 3.125])
    run(tmp_path / "control-x", "control", "rope", "rope-x", [3.4, 3.0])
    figure = curve_sheet(read_curves([tmp_path, tmp_path / "rope-x"]))
    scratch, continued = figure.axes
    assert (scratch.get_title(), continued.get_title()) == ("trained from scratch", "rope-x, continued")
    lines = {line.get_label(): line for line in continued.lines}
    assert list(lines) == ["control-x: 3.000", "drope-x: 3.125", "rope-x, before: 3.250"]
    assert list(lines["drope-x: 3.125"].get_xdata()) == [1.0, 2.0, 3.0]
    assert list(lines["drope-x: 3.125"].get_ydata()) == [3.9, 3.5, 3.125]
    assert lines["drope-x: 3.125"].get_color() == METHODS["drope"].colour
    assert set(lines["rope-x, before: 3.250"].get_ydata()) == {3.25}
    assert [list(line.get_ydata()) for line in scratch.lines] == [[4.0, 3.25]]
    assert continued.get_xlabel() == "training tokens (billions)"
    assert scratch.get_ylabel() == "validation loss (nats a token)"


def test_the_shipped_curves_end_where_their_cards_say() -> None:
    curves = {
        c.name: c
        for c in read_curves([shipped_checkpoint_folder("drope-tiny"), shipped_checkpoint_folder("rope-tiny")])
    }
    assert (curves["drope-tiny"].kind, curves["drope-tiny"].base) == ("recalibrate", "drope-tiny-first")
    for name, curve in curves.items():
        card = (shipped_checkpoint_folder(name) / "README.md").read_text()
        tokens, loss = curve.points[-1]
        assert f"| validation loss | {loss:.4f} |" in card
        assert f"| tokens seen | {tokens:,.0f} |" in card


def test_a_broken_curve_is_named(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(UserError, match=r"loss.csv: not a curve as `longctx-bench train` writes it"):
        read_curves([tmp_path])
    with pytest.raises(UserError, match="no loss.csv with validation losses"):
        curve_sheet([])


def test_factors_are_drawn_as_given() -> None:
    rope = [1.0, 0.1, 0.001, 0.0001]
    figure = factor_sheet(rope, {"yarn": [1.0, 1.0, 0.5, 0.25], "pi": [0.25] * 4}, 4.0, 512, "tiny")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["yarn"].get_ydata()) == [1.0, 1.0, 0.5, 0.25]
    assert list(lines["pi"].get_ydata()) == [0.25] * 4
    assert set(lines["1/s = 0.25"].get_ydata()) == {0.25}
    # 512 tokens turn the second pair 8 times and the third 0.08 times: the dotted line stands between them.
    assert (1.5, 1.5) in {tuple(line.get_xdata()) for line in figure.axes[0].lines}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pi", "yarn", "1/s = 0.25"]
    with pytest.raises(UserError, match="yarn has 1 factors, the model 4 pairs of dimensions"):
        factor_sheet(rope, {"yarn": [1.0]}, 4.0, 512, "tiny")


def test_markers_of_factors_that_coincide_stand_apart() -> None:
    figure = factor_sheet([1.0] * 64, {"yarn": [1.0] * 64, "pi": [1.0] * 64}, 4.0, 512, "tiny")
    markers = {line.get_label(): line.get_markevery() for line in figure.axes[0].lines[:2]}
    assert markers == {"pi": (0, 8), "yarn": (4, 8)}


def head(needle: float, near: float) -> dict[str, Any]:
    return {"needle": needle, "near": near, "profile": [0.25, 0.5, 0.25]}


def probe() -> dict[str, Any]:
    def entry(scale: float, **series: tuple[float, float]) -> dict[str, Any]:
        made = {
            name: {"positional": head(0.0, near), "semantic": head(needle, 0.1)}
            for name, (needle, near) in series.items()
        }
        return {"length": int(512 * scale), "scale": scale, "needle": 0.5, "n": 2, **made}

    lengths = [entry(1, **{"with": (0.8, 0.9)}), entry(2, **{"with": (0.6, 0.7), "without": (0.2, 0.4)})]
    heads = {"positional": [1, 0], "semantic": [6, 1]}
    return {"model": "drope-tiny", "scaling": "softmax temperature", "near": 4, "heads": heads, "lengths": lengths}


def test_attention_is_drawn_by_place_and_by_scale() -> None:
    figure = attention_sheet(probe())
    positional, semantic = figure.axes[:3], figure.axes[3:]
    assert [axis.get_title() for axis in positional] == ["1x: 512 tokens", "2x: 1,024 tokens", ""]
    assert positional[0].get_ylabel() == "positional head 1.0\nattention"
    assert semantic[-1].get_ylabel() == "on the needle (%)"
    assert positional[-1].get_ylabel() == "on the last 4 tokens (%)"
    values = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in semantic[-1].lines}
    assert values == {"with": ([1, 2], [80.0, 60.0]), "without": ([2], [20.0])}
    assert [list(line.get_ydata()) for line in positional[-1].lines] == [[90.0, 70.0], [40.0]]
    stairs = [patch.get_data() for patch in semantic[1].patches]
    assert [list(data.values) for data in stairs] == [[0.25, 0.5, 0.25]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "drope-tiny, with softmax temperature", "drope-tiny, without softmax temperature", "needle",
    ]  # fmt: skip


def test_what_is_no_probe_is_refused(call: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="drope-tiny: not what `longctx-bench probe attention` writes"):
        attention_sheet({**probe(), "lengths": [{"length": 512}]})
    for kind in ("attention", "factors"):
        (tmp_path / "probes" / kind / "x").mkdir(parents=True)
        (tmp_path / "probes" / kind / "x" / "8x.json").write_text(json.dumps({"model": "x"}))
        code, _, error = call("figures", tmp_path, "--kind", kind)
        assert (code, "run it again" in error) == (2, True)
