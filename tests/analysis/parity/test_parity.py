"""Certificates: what passes, what does not, how a difference is explained, and what a report makes of them."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.result_stores import result_of

from longctx_bench.analysis.parity.certify import certify
from longctx_bench.analysis.parity.hf_reference import generate_reference
from longctx_bench.analysis.parity.output_comparison import (
    Generation,
    Rotation,
    Tolerance,
    compare_outputs,
    explain,
    rotation_of,
)
from longctx_bench.cli.parity import _show
from longctx_bench.core import provenance
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.registry import Registry
from longctx_bench.reporting.parity_status import parity_status, read_certificates
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.store.run_store import ResultStore

LIKELY = {7: -0.1, 8: -2.4, 9: -5.0, 10: -6.0, 11: -7.0}
TIE = {7: -0.6931, 8: -0.6935, 9: -9.0, 10: -9.5, 11: -10.0}
TURNED = Rotation([1.0, 0.01], 1.0)


def shifted(step: dict[int, float], by: float) -> dict[int, float]:
    return {token: value + by for token, value in step.items()}


def compared(
    mine: list[Generation], theirs: list[Generation], turned: Rotation | None = TURNED, **more: Any
) -> dict[str, Any]:
    return compare_outputs((mine, TURNED), (theirs, turned), Tolerance(**more), "float32")


def test_the_same_answers_pass() -> None:
    found = compared([Generation([7], [LIKELY])], [Generation([7], [shifted(LIKELY, 2e-5)])])
    assert found["passed"]
    assert found["first_token"]["largest_difference"] == pytest.approx(2e-5)
    assert found["greedy"] == {"equal_share": 1.0, "differences": []}


def test_a_first_log_probability_that_is_off_fails() -> None:
    assert compared([Generation([7], [LIKELY])], [Generation([7], [shifted(LIKELY, 4e-3)])])["passed"]
    assert not compared([Generation([7], [LIKELY])], [Generation([7], [shifted(LIKELY, 6e-3)])])["passed"]
    strict = compared([Generation([7], [LIKELY])], [Generation([7], [shifted(LIKELY, 4e-3)])], first_token=1e-3)
    assert not strict["passed"]
    without = {token: value for token, value in LIKELY.items() if token != 9}
    found = compared([Generation([7], [LIKELY])], [Generation([7], [without])])
    assert (found["passed"], found["first_token"]["largest_difference"]) == (False, math.inf)


def test_a_near_tie_explains_a_difference_and_a_clear_choice_does_not() -> None:
    tie = explain(Generation([7, 7], [LIKELY, TIE]), Generation([7, 8], [LIKELY, TIE]), 1e-3)
    assert (tie["step"], tie["hf"], tie["vllm"], tie["explained"]) == (1, 7, 8, True)
    assert tie["hf_gap"] == pytest.approx(4e-4)
    clear = explain(Generation([7, 7], [LIKELY, LIKELY]), Generation([7, 8], [LIKELY, LIKELY]), 1e-3)
    assert (clear["hf_gap"], clear["explained"]) == (pytest.approx(2.3), False)


def test_what_rounding_may_do_to_a_first_token_does_not_explain_another_token() -> None:
    nearly = {**TIE, 8: TIE[7] - 3e-3}
    mine = [Generation([7], [nearly])] * 200
    found = compared(mine, [Generation([8], [nearly]), *mine[1:]])
    assert (found["passed"], found["greedy"]["differences"][0]["explained"]) == (False, False)
    assert compared(mine, [Generation([8], [nearly]), *mine[1:]], gap=5e-3)["passed"]


def test_a_candidate_that_the_reference_did_not_think_of_and_an_early_end_are_not_explained() -> None:
    unknown = explain(Generation([7], [TIE]), Generation([99], [TIE]), 1e-3)
    assert (unknown["hf_gap"], unknown["explained"]) == (None, False)
    ended = explain(Generation([7], [TIE]), Generation([7, 8], [TIE, TIE]), 1e-3)
    assert (ended["step"], ended["hf"], ended["vllm"], ended["explained"]) == (1, None, 8, False)


@pytest.mark.parametrize(("different", "passed"), [(1, True), (2, False)])
def test_explained_differences_may_be_one_in_a_hundred(different: int, passed: bool) -> None:
    mine = [Generation([7], [TIE])] * 100
    theirs = [Generation([8], [TIE])] * different + mine[different:]
    found = compared(mine, theirs)
    assert found["greedy"]["equal_share"] == 1 - different / 100
    assert found["passed"] is passed
    assert all(item["explained"] for item in found["greedy"]["differences"])


def test_one_unexplained_difference_fails_whatever_the_share() -> None:
    mine = [Generation([7], [LIKELY])] * 200
    assert not compared(mine, [Generation([8], [LIKELY]), *mine[1:]])["passed"]


def test_frequencies_are_read_off_the_table_and_compared() -> None:
    angles, factor = [1.0, 0.01, 1e-7], 1.2
    row = [factor * math.cos(angle) for angle in angles] + [factor * math.sin(angle) for angle in angles]
    read = rotation_of([row])
    assert read is not None
    assert read.frequencies == pytest.approx(angles)
    assert read.factor == pytest.approx(factor)
    assert rotation_of(None) is None

    answers = [Generation([7], [LIKELY])]
    assert not compared(answers, answers, Rotation([1.0, 0.010001], 1.0))["passed"]
    assert not compared(answers, answers, Rotation([1.0, 0.01], 1.01))["passed"]
    assert not compared(answers, answers, None)["passed"]


def test_no_positions_are_the_same_as_frequencies_too_small_to_turn_anything() -> None:
    answers = [Generation([7], [LIKELY])]
    found = compare_outputs(
        (answers, Rotation([0.0, 0.0], 1.0)), (answers, Rotation([1e-30, 1e-33], 1.0)), Tolerance(), "float32"
    )
    assert (found["passed"], found["rotary"]["positions"]) == (True, False)
    assert compare_outputs((answers, None), (answers, None), Tolerance(), "float32")["passed"]


class SameAgain:
    """Stands for vLLM: transformers once more."""

    name, dtype = "vllm", "float32"

    def load(self, folder: Path) -> None:
        self.folder = folder

    def generate_with_logprobs(
        self, batch: Any, model: Any, top: int
    ) -> list[tuple[list[int], list[dict[int, float]]]]:
        found = generate_reference(self.folder, model, batch, "float32", "cpu", 0)
        assert found.rotation is not None
        angles, factor = found.rotation.frequencies, found.rotation.factor
        self.row = [factor * math.cos(angle) for angle in angles] + [factor * math.sin(angle) for angle in angles]
        return [(answer.tokens, answer.steps) for answer in found.answers]

    def rotary_table(self, request: Any, model: Any) -> list[list[float]]:
        return [self.row]

    def settings(self) -> dict[str, Any]:
        return {"engine": "vllm", "vllm": "0", "device": "cpu", "dtype": self.dtype, "tensor_parallel": 1}


@pytest.mark.slow
def test_a_certificate_is_what_a_report_looks_for(tiny_folder: Path, essays: Path, tmp_path: Path) -> None:
    registry = Registry(local_data={"ruler-essays": essays})
    hf, other = HFEngine("cpu", "float32"), SameAgain()

    def spec(*lengths: int, seed: int = 42) -> RunSpec:
        variants = registry.variants(f"yarn:{tiny_folder}")
        return RunSpec(variants, registry.select_tasks("niah", None), (), lengths, 2, seed, overwrite=True)

    def measure(length: int, seed: int = 42) -> dict[str, Any]:
        asked: Any = other
        written = certify(spec(length, seed=seed), registry, hf, asked, Tolerance(), 3, tmp_path, 1)
        assert all(path.parent == tmp_path / "parity" for path in written)
        [certificate] = written.values()
        return certificate

    first = measure(512)
    assert first["certified"]
    assert first["lengths"]["512"]["first_token"]["largest_difference"] == 0
    assert 0 < first["lengths"]["512"]["first_token"]["hf_against_fp64"] < 1e-3
    assert first["lengths"]["512"]["first_token"]["fp64_prompts"] == 1

    planned: Any = other
    for cell in plan(spec(512, 768), planned, ResultStore(tmp_path), registry):
        result = result_of(cell.cell, cell.spec, engine=other.settings(), environment=provenance.environment())
        found = parity_status(result, read_certificates(tmp_path))
        assert found is not None
        assert found.certified is (cell.cell.length == 512), found

    assert list(measure(640)["lengths"]) == ["512", "640"]
    assert list(measure(640, seed=7)["lengths"]) == ["640"]


def test_other_engines_are_refused(call: Any, tmp_path: Path) -> None:
    code, _, said = call("parity", "drope-tiny", "--engines", "hf,echo", "--out", tmp_path)
    warning, error = said.splitlines()
    assert (code, "--engines" in warning, "deprecated" in warning, "only hf,vllm" in error) == (2, True, True, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_says_what_to_install(call: Any, tmp_path: Path) -> None:
    code, _, said = call("parity", "drope-tiny", "--out", tmp_path)
    assert (code, "longctx-bench[vllm]" in said) == (2, True)


@pytest.fixture
def certificates() -> dict[Path, dict[str, Any]]:
    """Certificates that ship with the project, one of them made to fail at a length."""
    folder = Path(__file__).parents[3] / "results" / "reference" / "parity"
    found = {path: json.loads(path.read_text()) for path in sorted(folder.glob("drope-*.json"))}
    next(iter(found.values()))["lengths"]["512"]["passed"] = False
    return found


def test_the_verdict_has_a_heading_and_stands_in_every_part(
    certificates: dict[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    monkeypatch.setattr(
        "longctx_bench.reporting.formats.terminal.Console", lambda: Console(width=80, color_system=None)
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _show(certificates, "terminal")
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith(tuple("┏┃┡│└")) and len(line) > 80]
    assert sum("verdict" in line for line in lines) > 1
    assert sum("FAILED" in line for line in lines) == sum("verdict" in line for line in lines)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_parity_for_programs(
    certificates: dict[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    _show(certificates, form)
    shown = capsys.readouterr()
    rows = json.loads(shown.out) if form == "json" else list(csv.DictReader(io.StringIO(shown.out)))
    assert [(row["contestant"], int(row["length"])) for row in rows] == [
        (found["contestant"], int(length)) for found in certificates.values() for length in found["lengths"]
    ]
    assert str(rows[0]["passed"]).lower() == "false"
    assert all(f"wrote {path}" in shown.err for path in certificates)
