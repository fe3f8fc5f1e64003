"""A plug-in's source is part of what a cell is known by: edited, it is measured again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longctx_bench.benchmarks import BENCHMARKS
from longctx_bench.core.code_digest import digest_of_file, digest_of_module
from longctx_bench.core.errors import UserError
from longctx_bench.core.plugins import load_object
from longctx_bench.core.types import Request
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.ray_executor.registry_bundle import pack, serialize, unpack
from longctx_bench.runner.executors.ray_executor.worker import Failure, JobSpec, Worker
from longctx_bench.runner.plan import PlannedCell, RunSpec, plan
from longctx_bench.runner.strategies import RunSettings
from longctx_bench.store.run_store import ResultStore

Call = Callable[..., tuple[int, str, str]]

METHOD = """
from longctx_bench.methods.rope_scaling import PI
from .helper import VALUE


class Mine(PI):
    strength: float = VALUE
"""


def a_plugin(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mine.yaml").write_text("use: ./mine.py:Mine\n")
    (folder / "mine.py").write_text(METHOD)
    (folder / "helper.py").write_text("from . import deeper\n\nVALUE = 1.0\n")
    (folder / "deeper.py").write_text("import json, os\n")
    (folder / "unrelated.py").write_text("VALUE = 3\n")
    (folder / "notes.txt").write_text("nothing\n")
    return folder


def the_cell(out: Path, method: str = "mine", task: str = "niah") -> dict:  # type: ignore[type-arg]
    return json.loads((out / f"runs/tiny/{method}/{task}/512/cell.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def run(call: Call, tiny_folder: Path, tmp_path: Path, essays: Path) -> Callable[..., str]:
    def ran(*more: str | Path, model: str = "mine", tasks: str = "niah") -> str:
        options: list[str | Path] = ["--engine", "echo", "--length", "512", "--limit", "2", "--out", tmp_path / "out"]
        options += ["--tasks", tasks, "--data", f"ruler-essays={essays}"]
        code, out, err = call("run", "--model", f"{model}:{tiny_folder}", *options, *more)
        assert code == 0, err
        return out + err

    return ran


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("mine.py", "(PI)", "(PI, frozen=True)"),
        ("mine.py", "\n\nclass", "\n# a comment\nclass"),
        ("helper.py", "\n\nVALUE = 1.0", "\n\nVALUE = 1.0  "),
        ("deeper.py", "json, os", "json, re"),
    ],
)
def test_edited_code_is_measured_again(
    run: Callable[..., str], tmp_path: Path, file: str, before: str, after: str
) -> None:
    folder, out = a_plugin(tmp_path / "plugin"), tmp_path / "out"
    run("--include-path", folder)
    first = the_cell(out)
    assert first["spec"]["code"]["method"]["files"] == ["deeper.py", "helper.py", "mine.py"]
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after))
    run("--include-path", folder)
    second = the_cell(out)
    assert second["spec_hash"] != first["spec_hash"]
    [kept] = (out / "superseded").rglob("cell.json")
    assert json.loads(kept.read_text()) == first


def test_what_is_not_imported_does_not_matter_nor_where_the_folder_lies(
    run: Callable[..., str], tmp_path: Path
) -> None:
    folder, out = a_plugin(tmp_path / "plugin"), tmp_path / "out"
    run("--include-path", folder)
    first = the_cell(out)
    (folder / "unrelated.py").write_text("VALUE = 4\n")
    (folder / "notes.txt").write_text("something\n")
    (folder / "other.yaml").write_text("use: longctx_bench.methods.rope_scaling:PI\n")
    moved = folder.rename(tmp_path / "moved")
    run("--include-path", moved)
    assert the_cell(out) == first
    assert not (out / "superseded").exists()


def test_edits_are_what_runs_even_where_size_and_time_are_the_same(tmp_path: Path) -> None:
    folder = a_plugin(tmp_path / "plugin")
    found = []
    for value in ("1.0", "2.0"):
        (folder / "helper.py").write_text(f"VALUE = {value}\n")
        for file in folder.glob("*.py"):
            os.utime(file, (1_000_000_000, 1_000_000_000))
        method = Registry([folder]).variant("mine:tiny").method
        found.append(method.model_dump()["strength"])
    assert found == [1.0, 2.0]


def test_a_file_that_is_edited_during_a_run_changes_nothing_of_that_run_and_all_of_the_next(
    tmp_path: Path, essays: Path
) -> None:
    folder = a_plugin(tmp_path / "plugin")
    source = "from typing import ClassVar\n\nfrom longctx_bench.benchmarks.niah import NeedleInAHaystack\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/own.py").write_text(f"{source}\n\nclass Own(NeedleInAHaystack):\n    mark: ClassVar[int] = 1\n")
    shipped = Registry().tasks["niah"]
    spec = {"use": "./own.py:Own", "metric": shipped.metric, "max_new_tokens": 8, "samples": 2}
    tasks = tmp_path / "tasks"
    (tasks / "own.yaml").write_text(json.dumps({"own": spec | {"params": shipped.params}}))
    registry = Registry([folder, tasks], {"ruler-essays": essays})

    def planned() -> PlannedCell:
        run = RunSpec(registry.variants("mine-tiny"), registry.select_tasks("own"), lengths=(512,))
        [cell] = plan(run, EchoEngine(), ResultStore(tmp_path / "out"), registry)
        return cell

    first = planned()
    (folder / "mine.py").write_text(METHOD.replace("VALUE\n\n", "VALUE\nVALUE += 1\n"))
    (tasks / "own.py").write_text((tasks / "own.py").read_text().replace("= 1", "= 2"))
    assert type(registry.benchmark(first.task)).mark == 1  # type: ignore[attr-defined]
    second = planned()
    assert type(registry.benchmark(first.task)).mark == 2  # type: ignore[attr-defined]
    assert second.variant.method.model_dump()["strength"] == 2.0
    for part in ("method", "task"):
        assert first.spec.code[part] != second.spec.code[part]


def test_modules_of_the_same_name_in_two_folders_are_two(tmp_path: Path) -> None:
    one, two = a_plugin(tmp_path / "one"), a_plugin(tmp_path / "two")
    (two / "helper.py").write_text("VALUE = 2.0\n")
    (two / "mine.yaml").rename(two / "other.yaml")
    registry = Registry([one, two])
    found = {name: registry.variant(f"{name}:tiny").method.model_dump()["strength"] for name in ("mine", "other")}
    assert found == {"mine": 1.0, "other": 2.0}


def test_a_module_beside_that_is_not_found_is_explained(tmp_path: Path) -> None:
    (tmp_path / "lies_beside.py").write_text("")
    (tmp_path / "mine.py").write_text("import lies_beside\n")
    with pytest.raises(UserError, match=r"from \.lies_beside import"):
        load_object("./mine.py:Mine", "mine: use", tmp_path)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("./mine.py:Mien", "has no 'Mien'.*did you mean 'Mine'"),
        ("./mine.py", r"names nothing in it.*\./mine\.py:NAME.*Mine"),
    ],
)
def test_a_class_that_a_file_does_not_have_is_named_without_our_module_names(
    tmp_path: Path, use: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text("from longctx_bench.methods.rope_scaling import PI\nclass Mine(PI):\n    pass\n")
    with pytest.raises(UserError, match=said) as raised:
        load_object(use, "mine: use", tmp_path)
    assert "longctx_bench_plugin" not in str(raised.value)


def test_a_benchmark_too(run: Callable[..., str], tmp_path: Path) -> None:
    folder, out = tmp_path / "tasks", tmp_path / "out"
    folder.mkdir()
    shipped = Registry().tasks["niah"]
    source = f"from {BENCHMARKS.location(shipped.use).replace(':', ' import ')} as Own\n"
    (folder / "own.py").write_text(source)
    spec = {"use": "./own.py:Own", "metric": shipped.metric, "max_new_tokens": 8, "samples": 2}
    (folder / "own.yaml").write_text(json.dumps({"own": spec | {"params": shipped.params}}))
    for edit in ("", "# edited\n"):
        (folder / "own.py").write_text(source + edit)
        run("--include-path", folder, model="pi", tasks="own,niah")
    assert the_cell(out, "pi", "own")["spec"]["code"]["task"]["files"] == ["own.py"]
    # A class of this package is its own wherever else it is named.
    assert "code" not in the_cell(out, "pi")["spec"]
    assert len([*(out / "superseded").rglob("cell.json")]) == 1


def an_installed_method(site: Path, name: str, files: dict[str, str], use: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[longctx_bench.methods]\n{name} = {use}\n")
    (info / "top_level.txt").write_text("\n".join({Path(file).parts[0].removesuffix(".py") for file in files}))
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)


PACKAGE = {
    "i19_pack/__init__.py": "",
    "i19_pack/sub/__init__.py": "from i19_pack import table\n",
    "i19_pack/sub/method.py": (
        "from longctx_bench.methods.rope_scaling import PI\nfrom ..law import f\n\n\nclass M(PI): ...\n"
    ),
    "i19_pack/law.py": "import numpy\n\n\ndef f(): ...\n",
    "i19_pack/table.py": "",
    "i19_pack/unrelated.py": "",
}


@pytest.mark.slow
def test_an_entry_point_too(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    an_installed_method(site, "installed", PACKAGE, "i19_pack.sub.method:M")
    monkeypatch.syspath_prepend(site)
    forget = lambda: [sys.modules.pop(name) for name in [*sys.modules] if name.startswith("i19_pack")]  # noqa: E731
    monkeypatch.setattr("longctx_bench.core.plugins._CODE", {})
    hashes = []
    for file in ("", "i19_pack/unrelated.py", "i19_pack/law.py", "i19_pack/table.py", "i19_pack/sub/method.py"):
        if file:
            (site / file).write_text((site / file).read_text() + "# edited\n")
        # As in a process of its own.
        monkeypatch.setattr("longctx_bench.core.plugins._CODE", {})
        forget()
        run(model="installed")
        hashes.append(the_cell(out, "installed")["spec_hash"])
    assert hashes[0] == hashes[1]
    assert len({*hashes}) == 4
    assert the_cell(out, "installed")["spec"]["code"]["method"]["files"] == [
        *("i19_pack/__init__.py", "i19_pack/law.py", "i19_pack/sub/__init__.py", "i19_pack/sub/method.py"),
        "i19_pack/table.py",
    ]
    forget()


def test_a_module_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"i19_alone.py": "import i19_beside, i19_foreign\n", "i19_beside.py": "", "i19_foreign.py": ""}
    an_installed_method(tmp_path, "alone", {name: text for name, text in files.items() if "foreign" not in name}, "")
    (tmp_path / "i19_foreign.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert digest_of_module("i19_alone").files == ("i19_alone.py", "i19_beside.py", "i19_foreign.py")
    # Among all that is installed, only what came with it is its own.
    monkeypatch.setattr("longctx_bench.core.code_digest.sysconfig.get_path", lambda name: str(tmp_path))
    assert digest_of_module("i19_alone").files == ("i19_alone.py", "i19_beside.py")


def test_what_has_no_source_is_refused() -> None:
    with pytest.raises(UserError, match="has no source file"):
        load_object("sys:Class", "mine: use", None)


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("import b.c", ["a.py", "b/__init__.py", "b/c.py"]),
        ("from b import c, nothing", ["a.py", "b/__init__.py", "b/c.py"]),
        ("from .b.c import *", ["a.py", "b/__init__.py", "b/c.py"]),
        ("def f():\n    from . import d", ["a.py", "d.py"]),
        ("import os, json.decoder, nothing.at.all", ["a.py"]),
        ("from ... import b", ["a.py", "b/__init__.py"]),
        ("from space.module import x", ["a.py", "space/module.py"]),
        ("import d\nthis is no Python", ["a.py"]),
        ("import a", ["a.py"]),
    ],
)
def test_imports_are_found_without_running_anything(tmp_path: Path, source: str, files: list[str]) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "space").mkdir()
    for name in ("b/__init__.py", "b/c.py", "d.py", "space/module.py"):
        (tmp_path / name).write_text("raise SystemExit\n")
    (tmp_path / "a.py").write_text(source)
    assert digest_of_file(tmp_path / "a.py").files == tuple(files)


def test_a_worker_has_the_same_code_or_refuses(tiny_folder: Path, tmp_path: Path) -> None:
    folder = a_plugin(tmp_path / "plugin")
    registry = Registry([folder])
    variant = registry.variant(f"mine:{tiny_folder}")
    elsewhere, scratch = unpack(pack(registry))
    sent = serialize(variant, variant.base({}), None)
    with scratch:
        assert elsewhere.variant_from_parts(sent.model, sent.spec, sent.params, sent.source).code == variant.code
    (folder / "helper.py").write_text("VALUE = 9.0\n")
    worker = Worker({"name": "echo"}, pack(registry))
    worker.start()
    requests = [Request("0", [5] * 40, 8)]
    refused = worker.answer(
        JobSpec(sent, 64, "niah", "ruler_all", "generate", False, RunSettings(None, 42, chat_template=False)),
        requests,
        {},
    )
    assert isinstance(refused, Failure)
    assert refused.kind == "user"
    assert "is other code than on the machine of the run" in refused.message


def test_loading_a_plugin_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = a_plugin(tmp_path / "plugin")
    before = {*folder.rglob("*")}
    Registry([folder]).variant("mine:tiny")
    assert {*folder.rglob("*")} == before
