"""What can be added without an edit here: metrics, benchmarks, methods, engines, figures, tables, tasks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from longctx_bench import figures, run
from longctx_bench.benchmarks import BENCHMARKS
from longctx_bench.core.errors import UserError
from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.engines import ENGINES, make_engine
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.methods import METHODS
from longctx_bench.metrics import METRICS, Metric, as_metric
from longctx_bench.registry import Registry
from longctx_bench.reporting.figures.registry import FIGURE_KINDS as FIGURES
from longctx_bench.reporting.tables.base import Table
from longctx_bench.reporting.tables.registry import TABLE_KINDS as TABLES

Call = Callable[..., tuple[int, str, str]]
REGISTRIES = (BENCHMARKS, ENGINES, FIGURES, METHODS, METRICS, TABLES)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Forget what a test registered."""
    yield
    for kinds in REGISTRIES:
        kinds._registered.clear()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """Write a module that can be imported, and import it."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def written(name: str, source: str) -> ModuleType:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return written


def tasks_with(folder: Path, metric: str, source: str = "", registry: Any = None) -> Path:
    """A folder with a task ``mine``: the shipped needle task with another metric."""
    folder.mkdir()
    shipped = Registry().tasks["niah"]
    spec = {"use": shipped.use, "metric": metric, "max_new_tokens": 8, "samples": 4, "params": dict(shipped.params)}
    (folder / "mine.yaml").write_text(json.dumps({"mine": spec}))
    if source:
        (folder / "scores.py").write_text(source)
    return folder


def cell_of(out: Path) -> dict[str, Any]:
    [path] = (out / "runs").rglob("cell.json")
    return dict(json.loads(path.read_text()))


def measured(folder: Path, out: Path, essays: Path) -> Any:
    registry = Registry(include_paths=[folder], local_data={"ruler-essays": essays})
    return run("tiny", "mine", length=[512], limit=4, engine="echo", out=out, registry=registry)


HALF = "def half(text, references):\n    return 0.5\n"


def test_a_function_beside_a_tasks_yaml_is_its_metric(tmp_path: Path, essays: Path) -> None:
    folder = tasks_with(tmp_path / "tasks", "./scores.py:half", HALF)
    frame = measured(folder, tmp_path / "out", essays)
    assert list(frame["score"]) == [0.5]
    cell = cell_of(tmp_path / "out")
    assert (cell["metric"], cell["spec"]["task"]["metric"]) == ("half", "half")
    assert cell["spec"]["code"]["metric"]["files"] == ["scores.py"]
    assert (cell["percent"], cell["higher_is_better"]) == (True, True)

    # An edit is another measurement.
    (folder / "scores.py").write_text(HALF.replace("0.5", "0.25"))
    frame = measured(folder, tmp_path / "out", essays)
    assert list(frame["score"]) == [0.25]
    assert list((tmp_path / "out" / "superseded").rglob("cell.json"))


def test_a_run_is_scored_by_the_code_that_its_cells_name(tmp_path: Path, essays: Path) -> None:
    folder = tasks_with(tmp_path / "tasks", "./scores.py:half", HALF)
    registry = Registry(include_paths=[folder], local_data={"ruler-essays": essays})
    task = registry.tasks["mine"]
    planned = registry.load_metric(task)
    (folder / "scores.py").write_text(HALF.replace("0.5", "0.25"))
    assert registry.metric(task) is planned, "an edit while it runs is not what is measured"
    assert registry.load_metric(task).code != planned.code
    assert registry.metric(task).metric.score("", [""]) == 0.25


def test_a_metric_that_is_no_rate_has_its_direction_and_unit(tmp_path: Path, essays: Path, call: Call) -> None:
    source = (
        "from longctx_bench.metrics import Metric\n\n"
        "length = Metric('answer_length', lambda text, references, classes=(): float(len(text)), percent=False,\n"
        "                higher_is_better=False)\n"
    )
    folder = tasks_with(tmp_path / "tasks", "./scores.py:length", source)
    measured(folder, tmp_path / "out", essays)
    cell = cell_of(tmp_path / "out")
    assert (cell["metric"], cell["percent"], cell["higher_is_better"]) == ("answer_length", False, False)
    assert cell["score"] > 1
    # Whoever reads the results needs neither the file nor its code.
    (folder / "scores.py").unlink()
    code, shown, _ = call("report", tmp_path / "out", "--format", "md")
    assert code == 0
    assert "answer_length" in shown
    assert "lower is better" in shown
    assert "in %" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "source", "said"),
    [
        ("./scores.py:nothing", HALF, "scores.py:nothing"),
        ("./missing.py:half", "", "missing.py"),
        ("./scores.py:half", "half = 3\n", "half"),
        ("./scores.py:half", "raise ValueError('mine')\n", "mine"),
        ("./scores.py:half", HALF.replace("0.5", "7"), "percent=False"),
        ("string_match_al", "", "string_match_all"),
        ("no.such.module:half", "", "no.such.module"),
    ],
)
def test_a_bad_metric_is_one_line(
    tmp_path: Path, essays: Path, call: Call, metric: str, source: str, said: str
) -> None:
    folder = tasks_with(tmp_path / "tasks", metric, source)
    code, _, error = call(
        "run", "--model", "tiny", "--tasks", "mine", "--length", 512, "--limit", 2, "--engine", "echo",
        "--include-path", folder, "--data", f"ruler-essays={essays}", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert said in error
    assert "Traceback" not in error


def test_registered_metrics_are_known_by_name(
    tmp_path: Path, essays: Path, module: Callable[[str, str], ModuleType]
) -> None:
    module(
        "my_metrics",
        "from longctx_bench.metrics import METRICS\n\n\n"
        "@METRICS.register('quarter')\ndef quarter(text, references, classes=()):\n    return 0.25\n",
    )
    assert "quarter" in METRICS.names()
    folder = tasks_with(tmp_path / "tasks", "quarter")
    assert list(measured(folder, tmp_path / "out", essays)["score"]) == [0.25]
    assert cell_of(tmp_path / "out")["spec"]["code"]["metric"]["files"] == ["my_metrics.py"]


def test_what_ships_cannot_be_replaced() -> None:
    for kinds in REGISTRIES:
        name = next(iter(kinds))
        with pytest.raises(UserError, match=name):
            kinds.register(name)


def test_an_unknown_name_has_its_near_miss() -> None:
    with pytest.raises(UserError, match="did you mean 'perplexity'"):
        BENCHMARKS["perplexty"]
    with pytest.raises(UserError, match="hf, vllm, openai, echo"):
        make_engine("hff")


class Quiet(EchoEngine):
    """An engine of somebody's own, with an option of its own."""

    class Options(EchoEngine.Options):  # type: ignore[name-defined, misc]
        loud: bool = False

    name = "quiet"

    def __init__(self, loud: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.loud = loud


@pytest.mark.slow
def test_an_engine_and_its_option(tmp_path: Path, essays: Path, call: Call) -> None:
    ENGINES.register("quiet")(Quiet)
    made = make_engine("quiet", {"loud": "true"}, batch_tokens=99)
    assert isinstance(made, Quiet)
    assert made.loud is True
    command = ["run", "--model", "tiny", "--tasks", "niah", "--length", 512, "--limit", 2, "--engine", "quiet"]
    command += ["--data", f"ruler-essays={essays}", "--out", tmp_path / "out", "--engine-arg"]
    assert call(*command, "loud=yes")[0] == 0
    assert cell_of(tmp_path / "out")["spec"]["engine"] == "quiet"
    for argument, said in (("loudness=1", "loud"), ("loud=perhaps", "perhaps"), ("loud", "KEY=VALUE")):
        code, _, error = call(*command, argument)
        assert (code, said in error, len(error.strip().splitlines())) == (2, True, 1)


def test_figures_and_tables_of_ones_own(tmp_path: Path, essays: Path, call: Call) -> None:
    from matplotlib.figure import Figure

    registry = Registry(local_data={"ruler-essays": essays})
    run("tiny", "niah", length=[512], limit=4, engine="echo", out=tmp_path, registry=registry)
    FIGURES.register("empty")(lambda material: {f"empty-{len(material.cells)}": Figure()})
    assert list(figures(tmp_path, kind="empty")) == ["empty-1"]
    assert call("figures", tmp_path, "--kind", "empty", "--out", tmp_path / "drawn")[0] == 0
    assert (tmp_path / "drawn" / "empty-1.png").is_file()

    def counted(cells: Any) -> list[Table]:
        from longctx_bench.reporting.tables.scores_by_length import length_tables

        [table] = length_tables(cells)
        return [table.__class__(**{**vars(table), "title": "counted here"})]

    TABLES.register("counted")(counted)
    code, shown, _ = call("report", tmp_path, "--table", "counted", "--format", "md")
    assert (code, "counted here" in shown) == (0, True)
    code, _, error = call("report", tmp_path, "--table", "lenghts")
    assert (code, "lengths" in error) == (2, True)


def test_tasks_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, essays: Path) -> None:
    site = tmp_path / "site"
    package = site / "my_tasks"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('naming a task runs no code')\n")
    tasks_with(tmp_path / "yaml", "string_match_all")
    (package / "mine.yaml").write_text((tmp_path / "yaml" / "mine.yaml").read_text())
    info = site / "my_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[longctx_bench.tasks]\nmine = my_tasks\n")
    monkeypatch.syspath_prepend(str(site))
    assert "mine" in Registry().tasks
    (info / "entry_points.txt").write_text("[longctx_bench.tasks]\nmine = not_there\n")
    with pytest.raises(UserError, match="not_there"):
        Registry()


def test_names_cost_no_import() -> None:
    known: PluginRegistry[Any] = PluginRegistry("thing", {"one": "no.such.module:One"})
    assert known.names() == list(known) == ["one"]
    assert "one" in known
    assert known.location("one") == "no.such.module:One"
    with pytest.raises(UserError, match="no.such.module"):
        known["one"]


def test_the_metric_of_the_readme(tmp_path: Path, essays: Path) -> None:
    text = (Path(__file__).parents[2] / "tasks" / "README.md").read_text(encoding="utf-8")
    [source] = re.findall(r"```python\n(def first_word.*?)```", text, re.DOTALL)
    folder = tasks_with(tmp_path / "tasks", "./scores.py:first_word", source)
    assert list(measured(folder, tmp_path / "out", essays)["score"]) == [0.0]
    scope: dict[str, Any] = {}
    exec(source, scope)  # noqa: S102 (our own documentation)
    assert [scope["first_word"](answer, ["7", "8"]) for answer in ("7 it is", "it is 7", "", "8.")] == [1, 0, 0, 1]


def test_functions_become_metrics() -> None:
    plain = as_metric(lambda text, references: 1, "plain")
    assert plain.score("a", ["a"]) == 1.0
    assert (plain.name, plain.percent, plain.is_final("a", ["a"])) == ("plain", True, False)
    with_classes = as_metric(lambda text, references, classes=(): len(classes) / 4, "classes")
    assert with_classes.score("a", ["a"], ["x", "y"]) == 0.5
    assert as_metric(METRICS["string_match_all"], "x") is METRICS["string_match_all"]
    for value in (3, Metric):
        with pytest.raises(UserError, match="metric 'bad'"):
            as_metric(value, "bad")
