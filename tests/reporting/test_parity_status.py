"""Parity status of vLLM results in tables, CSV and the page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.page_results import hash_of, needle_record, write_cell
from helpers.result_stores import result_of, spec_of
from msgspec import convert

from longctx_bench.core.types import NATURAL, Cell
from longctx_bench.reporting.html.cell_provenance import provenance
from longctx_bench.reporting.parity_status import ParityStatus, parity_status, read_certificates
from longctx_bench.reporting.results import read_cells
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.store.schema import CellResult, ModelRecord, to_builtins, upgrade_method

MODEL = {"name": "tiny", "source": {"embedded": "rope-tiny"}, "original_length": 512}
METHOD = {"name": "drope", "use": "somewhere:DroPE", "params": {"factor": None, "temperature": {"c": 0.4}}}
WEIGHTS = {"embedded": "drope-tiny"}
VLLM = {"engine": "vllm", "vllm": "0.32.0+cpu", "device": "cpu", "dtype": "float32", "tensor_parallel": 1}
ENVIRONMENT = {"longctx_bench": "0.1.0", "packages": {"torch": "2.13.0", "transformers": "5.19.0", "numpy": "2.4.6"}}
CERTIFIED = "certified against transformers"


def details(length: int = 1024, engine: str = "vllm") -> dict[str, Any]:
    return {
        "cell": {"model": "tiny", "method": "drope", "task": "niah", "length": length},
        "spec": {
            "model": MODEL,
            "weights": WEIGHTS,
            "method": METHOD,
            "task": {"name": "niah", "params": {}},
            "digests": {"weights": "b2b3", "essays": "1234"},
            "seed": 42,
            "chat_template": False,
            "engine": engine,
            "dtype": "float32",
        },
        "engine": VLLM,
        "environment": ENVIRONMENT,
    }


def result(length: int = 1024, engine: str = "vllm") -> CellResult:
    """The cell as the report has it."""
    cell, said = Cell("tiny", "drope", "niah", length), details(length, engine)
    return result_of(cell, spec_of(cell, said["spec"]), engine=said["engine"], environment=said["environment"])


def certificate(**changed: Any) -> dict[str, Any]:
    return {
        "contestant": "drope-tiny",
        "model": to_builtins(convert(MODEL, ModelRecord)),
        "method": upgrade_method(METHOD),
        "weights": WEIGHTS,
        "digests": {"weights": "b2b3"},
        "dtype": "float32",
        "engines": {"hf": {"engine": "hf"}, "vllm": VLLM},
        "environment": ENVIRONMENT | {"git": None},
        "lengths": {"512": {"passed": True}, "1024": {"passed": True}, "2048": {"passed": False}},
    } | changed


def told(length: int = 1024, **changed: Any) -> str:
    return str(parity_status(result(length), [certificate(**changed)]))


def test_a_length_that_passed_is_certified_and_no_other() -> None:
    assert parity_status(result(), [certificate()]) == ParityStatus(True)
    assert told(512) == CERTIFIED
    assert told(2048) == "not certified (failed at this length)"
    assert told(4096) == "not certified (the certificate lacks this length)"
    assert told(NATURAL) == "not certified (whole documents have no certificate)"


def test_only_vllm_has_something_to_certify() -> None:
    assert parity_status(result(engine="hf"), [certificate()]) is None


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": MODEL | {"original_length": 1024}}, "model"),
        ({"method": upgrade_method(METHOD | {"params": {"factor": 4}})}, "method's parameters"),
        ({"weights": {"path": "elsewhere"}}, "weights"),
        ({"digests": {"weights": "ffff"}}, "digest of the weights"),
        ({"digests": None}, "digest of the weights"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"engines": {"vllm": VLLM | {"vllm": "0.33.0"}}}, "version of vLLM"),
        ({"engines": {"vllm": VLLM | {"device": "NVIDIA H200"}}}, "device"),
        ({"engines": {"vllm": VLLM | {"tensor_parallel": 2}}}, "tensor parallelism"),
        ({"environment": ENVIRONMENT | {"longctx_bench": "0.2.0"}}, "version of longctx-bench"),
    ],
)
def test_a_certificate_of_something_else_certifies_nothing(changed: dict[str, Any], what: str) -> None:
    assert told(**changed) == f"not certified (the certificate has another {what})"


def test_packages_that_no_number_depends_on_may_differ() -> None:
    other = {"longctx_bench": "0.1.0", "packages": ENVIRONMENT["packages"] | {"numpy": "9"}}  # type: ignore[operator]
    assert told(environment=other) == CERTIFIED
    older = {"longctx_bench": "0.1.0", "packages": {"torch": "2.12.0", "transformers": "5.18.0"}}
    assert told(environment=older).endswith("another version of torch and another version of transformers)")


def test_the_nearest_of_several_certificates_counts() -> None:
    others = [certificate(dtype="bfloat16", weights={}), certificate(contestant="yarn-tiny")]
    assert str(parity_status(result(), [*others, certificate()])) == CERTIFIED
    assert str(parity_status(result(), others[1:])) == "not certified (no certificate)"


def test_what_is_no_certificate_is_passed_over(tmp_path: Path) -> None:
    assert read_certificates(tmp_path) == []
    folder = tmp_path / "parity"
    folder.mkdir()
    (folder / "a.json").write_text("{ not json")
    (folder / "b.json").write_text('{"lengths": 3}')
    (folder / "c.json").write_text("[]")
    (folder / "d.json").write_text(json.dumps(certificate(lengths={"1024": float("inf")})))
    found = read_certificates(tmp_path)
    assert [item["contestant"] for item in found] == ["drope-tiny"]
    assert parity_status(result(), found) == ParityStatus(False, "failed at this length")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """DroPE by vLLM at two lengths, of which one is certified; YaRN by transformers."""
    for length in (1024, 4096):
        records = [needle_record(place, 1.0, "x") | {"hash": hash_of(length, place)} for place in range(11)]
        more = {key: value for key, value in details(length).items() if key != "cell"}
        write_cell(tmp_path, Cell("tiny", "drope", "niah", length), records, **more)
        write_cell(tmp_path, Cell("tiny", "yarn", "niah", length), records)
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "drope-tiny-float32.json").write_text(json.dumps(certificate()))
    return tmp_path


def test_tables_say_which_numbers_are_certified_and_what_would_certify_the_others(run: Path) -> None:
    [table] = length_tables(read_cells(run).finished)
    notes = [note for note in table.notes if "certif" in note]
    assert notes == [
        "made by vLLM, certified against transformers: drope-tiny at 1,024",
        "made by vLLM, not certified (the certificate lacks this length): drope-tiny at 4,096",
        "to certify them: `longctx-bench parity drope-tiny --length 4096 --dtype float32`, --out being this folder",
    ]


def test_tables_of_certified_numbers_alone_and_of_other_engines(run: Path) -> None:
    cells = read_cells(run).finished
    [one] = [s for s in cells if s.parity and s.parity.certified]
    [table] = length_tables([one])
    assert "made by vLLM, certified against transformers: all numbers" in table.notes
    assert not any("to certify" in note for note in table.notes)
    [table] = length_tables([s for s in cells if s.parity is None])
    assert not any("certif" in note for note in table.notes)


def test_csv_and_page_say_it_for_each_cell(call: Any, run: Path) -> None:
    code, shown, _ = call("report", run, "--format", "csv")
    rows = {(row["method"], row["length"]): row["parity"] for row in csv.DictReader(io.StringIO(shown))}
    lacks = "not certified (the certificate lacks this length)"
    assert code == 0
    assert rows == {
        ("drope", "1024"): CERTIFIED,
        ("drope", "4096"): lacks,
        ("yarn", "1024"): "",
        ("yarn", "4096"): "",
    }
    by_name = {str(summary.cell): provenance(summary) for summary in read_cells(run).finished}
    assert by_name["drope-tiny/niah/1024"]["parity"] == CERTIFIED
    assert by_name["drope-tiny/niah/4096"]["parity"] == lacks
    assert "parity" not in by_name["yarn-tiny/niah/1024"]
