"""Cell identity, and files of older schema versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from helpers.result_stores import result_of, spec_of, write_store

from longctx_bench import run
from longctx_bench.benchmarks import BENCHMARKS
from longctx_bench.benchmarks.niah import NeedleInAHaystack
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Component
from longctx_bench.core.types import Cell, SampleRecord
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.methods import METHODS
from longctx_bench.methods.rope_scaling import YaRN
from longctx_bench.metrics import METRICS, get_metric
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import (
    SCHEMA_VERSION,
    CellSpec,
    UnsupportedVersionError,
    parse_result,
    parse_spec,
    to_builtins,
    upgrade,
)

Call = Callable[..., tuple[int, str, str]]
V1 = json.loads((Path(__file__).parent / "v1_cells.json").read_text(encoding="utf-8"))
"""A ``cell.json`` as version 1 wrote it for each class that results/reference had cells of."""
CELL = Cell("tiny", "rope", "niah", 512)
SPEC = spec_of(CELL, {"weights": {"embedded": "rope-tiny"}, "digests": {"weights": "0123", "essays": "4567"}})


def components() -> list[type[Component]]:
    return [kinds[name] for kinds in (BENCHMARKS, METHODS) for name in kinds.shipped]  # type: ignore[attr-defined]


def test_each_shipped_class_has_an_id_of_its_own() -> None:
    kinds = components()
    assert len(kinds) > 20
    assert all("id" in kind.__dict__ for kind in kinds)
    assert len({kind.component_id() for kind in kinds}) == len(kinds)
    assert [kind.component_id() for kind in kinds] == [*BENCHMARKS.shipped, *METHODS.shipped]
    registry = Registry()
    assert {task.use for task in registry.tasks.values()} <= BENCHMARKS.shipped.keys()
    assert {method.use for method in registry.methods.values()} <= METHODS.shipped.keys()


def planned(out: Path, registry: Registry | None = None) -> CellSpec:
    """The spec of YaRN on a needle task, as a run would write it."""
    registry = registry or Registry()
    asked = RunSpec(registry.variants("yarn-tiny"), registry.select_tasks("niah"), lengths=(1024,))
    [cell] = plan(asked, EchoEngine(), ResultStore(out), registry)
    return cell.spec


def test_a_class_that_moves_and_gets_another_name_keeps_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(tmp_path)
    moved = ModuleType("longctx_bench.elsewhere")
    for name, parent in (("Scaling", YaRN), ("Hidden", NeedleInAHaystack)):
        setattr(moved, name, type(name, (parent,), {"id": parent.component_id(), "__module__": moved.__name__}))
    monkeypatch.setitem(sys.modules, moved.__name__, moved)
    registry = Registry()
    for specs, name, kind in ((registry.methods, "yarn", "Scaling"), (registry.tasks, "niah", "Hidden")):
        specs[name] = specs[name].model_copy(update={"use": f"{moved.__name__}:{kind}"})  # type: ignore[index]
    after = planned(tmp_path, registry)
    assert (after.method.use, after.task.use) == ("longctx_bench.elsewhere:Scaling", "longctx_bench.elsewhere:Hidden")
    assert after.hash == before.hash


@pytest.mark.parametrize("part", ["method", "benchmark", "metric"])
def test_a_raised_version_is_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = planned(tmp_path)
    if part == "metric":
        shipped = dict(METRICS.shipped) | {"string_match_all": replace(get_metric("string_match_all"), version=2)}
        monkeypatch.setattr(METRICS, "shipped", shipped)
    else:
        monkeypatch.setattr(YaRN if part == "method" else NeedleInAHaystack, "version", 2)
    after = planned(tmp_path)
    assert after.hash != before.hash
    versions = {after.method.version, after.task.benchmark_version, after.task.metric_version}
    assert versions == {1, 2}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 43}, False),
        ({"dtype": "bfloat16"}, False),
        ({"engine": "vllm"}, False),
        ({"length": 1024}, False),
        ({"chat_template": True}, False),
        ({"digests": {"weights": "0124", "essays": "4567"}}, False),
        ({"digests": {"weights": "0123", "essays": "4568"}}, False),
        ({"digests": {"essays": "4567"}, "weights": {"hub": "a/b", "revision": "1"}}, False),
        ({"code": {"method": {"sha256": "0"}}}, False),
        ({"weights": {"path": "/elsewhere/rope-tiny"}}, True),
        ({"model.name": "other"}, True),
        ({"model.licence": "MIT"}, True),
        ({"model.original_length": 1024}, False),
        ({"method.name": "other"}, True),
        ({"method.use": "else.where:Class"}, True),
        ({"method.id": "other"}, False),
        ({"method.params": {"factor": 2.0}}, False),
        ({"task.name": "other"}, True),
        ({"task.use": "else.where:Class"}, True),
        ({"task.protocol": "a label"}, True),
        ({"task.benchmark": "other"}, False),
        ({"task.metric": "other"}, False),
        ({"task.params": {"keys": 2}}, False),
        ({"task.max_new_tokens": 7}, False),
        ({"task.min_new_tokens": 7}, False),
        ({"task.stop": ["."]}, False),
    ],
    ids=str,
)
def test_what_tells_two_measurements_apart(change: dict[str, Any], same: bool) -> None:
    values = to_builtins(SPEC)
    for key, value in change.items():
        *inside, last = key.split(".")
        at = values[inside[0]] if inside else values
        assert last in at or last in CellSpec.__struct_fields__
        at[last] = value
    other = parse_spec({"schema_version": SCHEMA_VERSION, "spec": values})
    assert (other.hash == SPEC.hash) is same


def test_a_task_without_chat_templates_is_the_same_with_the_option() -> None:
    without = msgspec.structs.replace(SPEC, task=msgspec.structs.replace(SPEC.task, chat_template=False))
    assert msgspec.structs.replace(without, chat_template=True).hash == without.hash


# -- older versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", V1, ids=lambda values: "/".join(map(str, values["cell"].values())))
def test_cells_of_version_1_are_read(values: dict[str, Any]) -> None:
    result = parse_result(values)
    assert (result.score, result.n, result.spec.task.params) == (
        values["score"], values["n"], values["spec"]["task"]["params"]
    )  # fmt: skip
    registry = Registry()
    method, task = registry.methods[result.cell.method], registry.tasks[result.cell.task]
    assert result.spec.method.id == method.use
    assert result.spec.task.benchmark == task.use
    assert result.spec.task.grid == ("depth_grid" if task.use == "needle-in-a-haystack" else None)
    assert result.spec_hash == result.spec.hash != values["spec_hash"]
    again = upgrade(values)
    assert upgrade(again) is again
    assert parse_result(json.loads(json.dumps(to_builtins(result)))) == result


def test_what_version_1_measured_is_not_measured_again(tmp_path: Path, essays: Path) -> None:
    registry = Registry(local_data={"ruler-essays": essays})
    options: dict[str, Any] = {"length": [512], "limit": 3, "engine": "echo", "out": tmp_path, "registry": registry}
    run("tiny", "niah", **options)
    folder = ResultStore(tmp_path).path(CELL)
    for finished in (True, False):
        as_version_1(folder, finished)
        before = (folder / "records.jsonl").read_bytes()
        run("tiny", "niah", **options | {"limit": 5})
        after = (folder / "records.jsonl").read_bytes()
        assert after.startswith(before)
        assert len(after.splitlines()) == 5
    assert not (tmp_path / "superseded").exists()


def as_version_1(folder: Path, finished: bool) -> None:
    """Write a cell's files as version 1 did, of a run that ended or was killed."""
    values = json.loads((folder / "cell.json").read_text())
    del values["schema_version"]
    for part in ("method", "task"):
        values["spec"][part] = {
            key: value
            for key, value in values["spec"][part].items()
            if key
            not in {"id", "version", "benchmark", "benchmark_version", "metric_version", "stop", "min_new_tokens"}
        }
    values["spec_hash"] = "of another kind"
    (folder / "cell.json").write_text(json.dumps(values))
    if not finished:
        (folder / "cell.json").unlink()
        (folder / "started.json").write_text(json.dumps({key: values[key] for key in ("spec_hash", "spec")}))


def test_migrate_writes_cells_and_certificates_once(tmp_path: Path, call: Call) -> None:
    out = tmp_path / "run"
    values = V1[0]
    cell = Cell(**values["cell"])
    folder = ResultStore(out).path(cell)
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(values))
    (folder / "records.jsonl").write_text("untouched")
    certificate = {"contestant": "x", "lengths": {}, "method": values["spec"]["method"]}
    (out / "parity").mkdir()
    (out / "parity" / "x.json").write_text(json.dumps(certificate))
    code, printed, _ = call("migrate", tmp_path)
    assert (code, "2 files migrated, 0 up to date" in printed) == (0, True)
    assert parse_result(json.loads((folder / "cell.json").read_text())) == parse_result(values)
    assert json.loads((folder / "cell.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert json.loads((out / "parity" / "x.json").read_text())["method"]["id"] == parse_spec(values).method.id
    assert (folder / "records.jsonl").read_text() == "untouched"
    assert "0 files migrated, 2 up to date" in call("migrate", out)[1]


def test_what_cannot_be_migrated_is_named_and_left(tmp_path: Path, call: Call) -> None:
    broken = {"later": {"schema_version": 99}, "no-spec": {"spec": None}, "not-json": None, "v2": {"schema_version": 2}}
    for name, values in broken.items():
        folder = ResultStore(tmp_path).path(Cell("m", "rope", name, 512))
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text("{" if values is None else json.dumps(V1[0] | values | {"spec": None}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("cell.json")}
    code, printed, error = call("migrate", tmp_path)
    assert (code, "4 left as they are" in printed) == (2, True)
    assert all(name in printed + error for name in broken)
    assert {path: path.read_bytes() for path in tmp_path.rglob("cell.json")} == before
    code, _, error = call("migrate", tmp_path / "none")
    assert (code, len(error.strip().splitlines())) == (2, 1)


def test_a_link_among_the_results_is_named_and_the_rest_is_migrated(tmp_path: Path, call: Call) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere.json"
    for values in V1[:3]:
        folder = ResultStore(out).path(Cell(**values["cell"]))
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(values))
    elsewhere.write_text(json.dumps(V1[0]))
    linked = ResultStore(out).path(Cell(**V1[0]["cell"])) / "cell.json"
    linked.unlink()
    linked.symlink_to(elsewhere)
    code, printed, error = call("migrate", out)
    assert (code, f"{linked}: is a symbolic link" in printed + error) == (2, True)
    assert "2 files migrated, 0 up to date, 1 left as they are" in printed
    assert (linked.is_symlink(), json.loads(elsewhere.read_text())) == (True, V1[0])


NO_METHODS = [
    None,
    5,
    [],
    "rope",
    {},
    {"name": 5},
    {"name": "rope", "use": []},
    {"name": "rope", "use": 5},
    {"use": "a:B"},
]


@pytest.mark.parametrize("method", NO_METHODS, ids=str)
def test_a_certificate_that_no_version_wrote_is_left_and_ends_no_report(
    tmp_path: Path, call: Call, method: Any
) -> None:
    write_store(tmp_path, {("rope", "niah", 512): [1.0]})
    file = tmp_path / "parity" / "x.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"contestant": "rope-tiny", "lengths": {"512": {}}, "method": method}))
    before = file.read_bytes()
    assert call("report", tmp_path)[0] == 0
    assert call("migrate", tmp_path)[0] == 0
    assert file.read_bytes() == before


def test_a_later_versions_cell_is_not_overwritten(tmp_path: Path, call: Call) -> None:
    store = ResultStore(tmp_path)
    store.start(CELL, SPEC)
    store.append(CELL, [SampleRecord({"id": "000000", "hash": "0" * 32, "score": 1.0}, 0.1)])
    store.finish(CELL, result_of(CELL, SPEC))
    path = store.path(CELL) / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    before = path.read_bytes()
    with pytest.raises(UserError, match="schema version 3"):
        store.start(CELL, SPEC)
    assert path.read_bytes() == before
    code, _, error = call("report", tmp_path)
    assert (code, "schema version 3" in error) == (2, True)


@pytest.mark.parametrize("version", [0, -1, 3, "2", None, [], {}, 1.5])
def test_versions_that_there_are_not(version: Any) -> None:
    with pytest.raises(UnsupportedVersionError):
        upgrade({"schema_version": version})


@pytest.mark.parametrize("spec", [None, [], "x", {}, {"task": None}, {"task": {"name": 3}}, {"task": {"use": []}}])
def test_what_no_version_wrote_is_refused_by_the_types(spec: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        parse_spec({"spec": spec})
    with pytest.raises(msgspec.ValidationError):
        parse_result(V1[0] | {"spec": spec})
