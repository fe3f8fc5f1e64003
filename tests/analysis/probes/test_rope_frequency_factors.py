"""Frequency scaling factors against their closed forms."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx_bench.analysis.probes.rope_frequency_factors import scaling_factors
from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_frequencies import inverse_frequencies
from longctx_bench.methods.rope_scaling import NTK, PI, Llama3, LongRoPE, RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest

BASE = BaseModelInfo("tiny", 512, {"head_dim": 64, "hidden_size": 320, "num_attention_heads": 5, "rope_theta": 10000.0})
S = 8.0


def factors(**methods: Any) -> dict[str, list[float]]:
    found: dict[str, list[float]] = scaling_factors(BASE, methods, S)["factors"]
    return found


def test_pi_is_one_over_s_everywhere_and_rope_one() -> None:
    found = factors(pi=PI(), rope=RoPE())
    assert found["pi"] == pytest.approx([1 / S] * 32)
    assert found["rope"] == [1.0] * 32


def test_ntk_goes_from_one_to_one_over_s() -> None:
    found = factors(ntk=NTK())["ntk"]
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(1 / S, rel=1e-5)
    assert found == pytest.approx([S ** (-2 * pair / 62) for pair in range(32)], rel=1e-5)


def test_yarn_ramps_between_its_two_numbers_of_turns() -> None:
    found = factors(yarn=YaRN())["yarn"]

    def pair(turns: float) -> float:
        return 64 * math.log(512 / (turns * 2 * math.pi)) / (2 * math.log(10000))

    first, last = math.floor(pair(32)), math.ceil(pair(1))
    ramp = [min(1.0, max(0.0, (place - first) / (last - first))) for place in range(32)]
    assert found == pytest.approx([1 - share + share / S for share in ramp], rel=1e-5)


def test_llama3_leaves_fast_pairs_and_interpolates_slow_ones() -> None:
    found = factors(llama3=Llama3())["llama3"]
    for place, value in enumerate(found):
        turns = 512 * 10000 ** (-place / 32) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - 1) / 3))
        assert value == pytest.approx((1 - share) / S + share, rel=1e-4)


def test_longrope_divides_by_the_users_list() -> None:
    divisors = tuple(1 + place / 4 for place in range(32))
    found = scaling_factors(BASE, {"longrope": LongRoPE(short_factor=(1.0,) * 32, long_factor=divisors)}, S)
    assert found["factors"]["longrope"] == pytest.approx([1 / value for value in divisors], rel=1e-5)
    assert found["attention_factor"]["longrope"] == pytest.approx(math.sqrt(1 + math.log(S) / math.log(512)))


@pytest.mark.parametrize("method", [RoPE(), PI(), NTK(), YaRN(), Llama3()], ids=lambda method: type(method).__name__)
def test_frequencies_are_those_of_a_loaded_model(tiny_folder: Path, method: Any) -> None:
    base = BaseModelInfo("tiny", 256, json.loads((tiny_folder / "config.json").read_text()))
    model = load_model(tiny_folder, "float32", "cpu")
    with apply_method(model, ModelUnderTest(base, method, 1024), 1024):
        rotary = model.model.rotary_emb
        found, attention = inverse_frequencies(base, method, 1024)
        assert torch.equal(torch.tensor(found), rotary.inv_freq)
        assert attention == rotary.attention_scaling


def test_a_method_without_positions_has_no_frequencies() -> None:
    with pytest.raises(UserError, match="NoPE on tiny: has no rotary frequencies"):
        inverse_frequencies(BASE, NoPE(), 1024)


@pytest.mark.slow
def test_the_command_leaves_longrope_out_unless_it_has_lists(call: Any, tmp_path: Path) -> None:
    code, shown, error = call("probe", "factors", "tiny-control", "--scale", "2x,8x", "--out", tmp_path)
    assert code == 0, error
    assert error.startswith("left out: longrope: longrope needs 'short_factor', a list of 32 numbers")
    written = json.loads((tmp_path / "probes/factors/tiny-control/8x.json").read_text())
    assert list(written["factors"]) == ["pi", "ntk", "yarn", "llama3"]
    assert written["factors"]["pi"] == pytest.approx([1 / 8] * 32)
    doubled = json.loads((tmp_path / "probes/factors/tiny-control/2x.json").read_text())
    assert doubled["factors"]["pi"][0] == pytest.approx(0.5)
    lists = [f"longrope.{name}=[{','.join(['2.0'] * 32)}]" for name in ("short_factor", "long_factor")]
    code, _, error = call("probe", "factors", "tiny-control", "--out", tmp_path, "--set", lists[0], "--set", lists[1])
    assert (code, error) == (0, "")
    written = json.loads((tmp_path / "probes/factors/tiny-control/8x.json").read_text())
    assert written["factors"]["longrope"] == pytest.approx([0.5] * 32)
    # Those of the shipped base were searched.
    assert call("probe", "factors", "tiny", "--scale", "4x", "--out", tmp_path)[0] == 0
    searched = json.loads((tmp_path / "probes/factors/tiny/4x.json").read_text())["factors"]["longrope"]
    assert searched == sorted(searched, reverse=True)
    assert searched[0] == pytest.approx(1)
    code, shown, error = call("figures", tmp_path, "--kind", "factors")
    assert (code, len(shown.splitlines())) == (0, 3), error
    assert (tmp_path / "figures/factors-tiny-control-8x.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tiny", "--scale", "1x"], "up to the training context no method changes anything"),
        (["yarn-tiny,yarn-smollm2-135m"], "names more than one base"),
        (["longrope-tiny-control"], "longrope needs 'short_factor'"),
        (["drope-tiny"], "has no rotary frequencies"),
    ],
)
def test_mistakes(call: Any, tmp_path: Path, arguments: list[str], line: str) -> None:
    code, _, error = call("probe", "factors", *arguments, "--out", tmp_path)
    assert (code, line in error) == (2, True), error
    assert not (tmp_path / "probes").exists()


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "evil"}, {"rope_type": "yarn", "factor": "x"}, {"rope_type": "longrope", "factor": 2.0}],
    ids=str,
)
def test_a_rotation_that_no_model_has_is_one_line(
    rope: dict[str, Any], tiny_folder: Path, tmp_path: Path, call: Any
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 1e4} | rope}))
    code, _, error = call("probe", "factors", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "config.json" in error.splitlines()[-1]
    assert "Traceback" not in error
