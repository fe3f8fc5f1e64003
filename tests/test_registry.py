"""Names that lead to classes of one's own, and protocols that a task does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.registry import ALL_EXAMPLES, Registry, plain_method_name

OWN = """
from longctx_bench.benchmarks.base import Benchmark


class {name}(Benchmark):
    size: int = 1

    def examples(self, encoder, length, max_new_tokens, n, seed):
        yield from ()
"""
TASK = "use: ./mine.py:{name}, metric: string_match_all, max_new_tokens: 4, samples: 3"


def own(folder: Path, task: str, name: str) -> Path:
    """A task folder with a class beside its YAML."""
    folder.mkdir()
    (folder / "mine.py").write_text(OWN.format(name=name))
    (folder / "tasks.yaml").write_text(f"{task}: {{{TASK.format(name=name)}}}\n")
    return folder


def test_a_tasks_class_lies_beside_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    registry = Registry(include_paths=[own(tmp_path / "a", "one", "One"), own(tmp_path / "b", "two", "Two")])
    for task, name in (("one", "One"), ("two", "Two")):
        (spec,) = registry.select_tasks(task)
        assert type(registry.benchmark(spec)).__name__ == name, "each folder's own file of that name"
        assert spec.samples == 3


def test_a_parameter_that_is_wrong_names_its_task(tmp_path: Path) -> None:
    folder = own(tmp_path / "a", "one", "One")
    (folder / "tasks.yaml").write_text(f"one: {{{TASK.format(name='One')}, params: {{size: big}}}}\n")
    registry = Registry(include_paths=[folder])
    with pytest.raises(UserError, match="task one: 'size': "):
        registry.benchmark(registry.tasks["one"])


def test_a_task_without_its_class_is_refused(tmp_path: Path) -> None:
    folder = own(tmp_path / "a", "one", "One")
    (folder / "tasks.yaml").write_text(f"one: {{{TASK.format(name='Other')}}}\n")
    registry = Registry(include_paths=[folder])
    with pytest.raises(UserError, match="one"):
        registry.benchmark(registry.tasks["one"])


def test_entries_with_an_underscore_and_groups(tmp_path: Path) -> None:
    folder = own(tmp_path / "a", "one", "One")
    (folder / "tasks.yaml").write_text(
        f"_base: &base {{{TASK.format(name='One')}}}\none: *base\ntwo: *base\ngroups: {{both: [two, one, two]}}\n"
    )
    registry = Registry(include_paths=[folder])
    assert "_base" not in registry.tasks
    assert [task.name for task in registry.select_tasks("both, one")] == ["two", "one"]
    with pytest.raises(UserError, match="--tasks: unknown task 'on'; did you mean 'one'"):
        registry.select_tasks("on")
    with pytest.raises(UserError, match="--tasks: names no task"):
        registry.select_tasks(" , ")


def test_a_protocol_that_a_task_does_not_have() -> None:
    registry = Registry()
    (task,) = registry.select_tasks("niah_single_1", "ruler@paper")
    assert (task.name, task.protocol) == ("niah_single_1@paper", "ruler@paper")
    for name in ("lm_eval:arc_easy", "niah", "niah_grid,lm_eval:arc_easy"):
        with pytest.raises(UserError, match=r"--protocol ruler@paper: task '.*' does not have it$"):
            registry.select_tasks(name, "ruler@paper")
    with pytest.raises(UserError, match=r"task 'niah_single_1' does not have it; did you mean 'ruler@paper'"):
        registry.select_tasks("niah_single_1", "ruler@papers")
    (harness,) = registry.select_tasks("lm_eval:arc_easy")
    assert (harness.metric, harness.samples, harness.params) == (
        "lm_eval",
        ALL_EXAMPLES,
        {"task": "arc_easy", "include": None},
    )


def test_an_lm_eval_task_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval/mine.yaml").write_text("task: mine\n")
    registry = Registry(include_paths=[tmp_path])
    (mine,) = registry.select_tasks("lm_eval:mine")
    assert mine.params["include"] == {"path": str((tmp_path / "lm_eval").resolve())}
    (other,) = registry.select_tasks("lm_eval:other")
    assert other.params["include"] is None


def test_models_by_name() -> None:
    registry = Registry()
    assert [variant.name for variant in registry.variants("tiny, rope-tiny,yarn-tiny")] == ["rope-tiny", "yarn-tiny"]
    assert registry.variant("yarn:tiny").name == "yarn-tiny"
    for text, message in (
        ("", "--model: names no model"),
        (" , ", "--model: names no model"),
    ):
        with pytest.raises(UserError, match=message):
            registry.variants(text)
    for text, message in (
        ("yarn-tny", "unknown model; did you mean 'yarn-tiny'"),
        ("yran:tiny", "unknown method 'yran'; did you mean 'yarn'"),
        ("drope-smollm2-135m", "has no drope checkpoint; name one as drope:FOLDER_OR_HUB_ID"),
    ):
        with pytest.raises(UserError, match=message):
            registry.variant(text)


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("yarn@4x-tiny", "yarn@4x-tiny", {"factor": 4.0}),
        ("yarn@4.0x:tiny", "yarn@4x-tiny", {"factor": 4.0}),
        ("ntk@1.5x-tiny", "ntk@1.5x-tiny", {"factor": 1.5}),
        ("pi+log-n-tiny", "pi+log-n-tiny", {"query_scale": "log-n"}),
        ("rope+llama4-tiny", "rope+llama4-tiny", {"query_scale": "llama4", "query_scale_beta": 0.1}),
        ("mrrope-pro@8x+log-n-tiny", "mrrope-pro@8x+log-n-tiny", {"factor": 8.0, "query_scale": "log-n"}),
        ("drope@2x-tiny", "drope@2x-tiny", {"factor": 2.0}),
        ("resonance-yarn@2x-tiny", "resonance-yarn@2x-tiny", {"factor": 2.0, "scaling": "yarn"}),
    ],
)
def test_a_methods_name_may_fix_its_factor_and_scale_queries(text: str, name: str, params: dict[str, Any]) -> None:
    registry = Registry()
    variant = registry.variant(text)
    assert (variant.name, variant.spec.name) == (name, name.removesuffix("-tiny"))
    assert variant.method.model_dump(mode="json").items() >= params.items()
    assert variant.spec.use == registry.methods[plain_method_name(variant.method_name)].use
    again = registry.variant_from_parts(
        variant.model, variant.spec, variant.method.model_dump(mode="json"), variant.source
    )
    assert again.method == variant.method
    plain = Registry(settings={plain_method_name(variant.method_name): params}).variant(
        f"{plain_method_name(variant.method_name)}-tiny"
    )
    assert plain.method == variant.method, "the same cell as by --set, under a name of its own"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yarn@0.5x-tiny", "method yarn@0.5x: 'factor': Input should be greater than or equal to 1"),
        (f"yarn@{'9' * 400}x-tiny", "'factor': Input should be a finite number"),
        ("yarn@4-tiny", "unknown model; did you mean 'yarn-tiny'"),
        ("yarn@4x:tny", "tny"),
        ("yarn+su-tiny", "unknown model"),
        ("yarn+log-n@4x-tiny", "unknown model"),
        ("yarn+tuned+log-n-tiny", "unknown model"),
        ("self-extend+tuned-smollm2-135m", "self-extend+tuned-smollm2-135m: the checkpoint has no parameters of"),
        ("yran@4x:tiny", "unknown method 'yran@4x'; did you mean 'yarn'"),
        ("rope@4x-tiny", "rope@4x-tiny: rope has no factor by length that could be fixed"),
        ("crop@4x-tiny", "no factor by length"),
        ("nope@4x-tiny", "no factor by length"),
        ("alibi@4x-tiny", "no factor by length"),
        ("rnope-swa@4x-tiny", "no factor by length"),
        ("p-rope@4x-tiny", "no factor by length"),
        ("cope@4x-tiny", "no factor by length"),
        ("giraffe@4x-tiny", "no factor by length"),
        ("resonance@4x-tiny", "no factor by length"),
        ("dynamic-ntk@4x-tiny", "no factor by length"),
    ],
)
def test_what_a_methods_name_cannot_say(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        Registry().variant(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_and_a_setting_that_contradict_each_other() -> None:
    registry = Registry(settings={"yarn": {"factor": 2.0, "beta_fast": 16.0}})
    with pytest.raises(UserError, match=r"yarn@4x-tiny: --set yarn.factor says otherwise; leave one out"):
        registry.variant("yarn@4x-tiny")
    method = registry.variant("yarn+log-n-tiny").method
    assert method.model_dump(mode="json").items() >= {"factor": 2.0, "beta_fast": 16.0}.items()


def test_two_folders_of_one_name_are_refused_together(tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    names = [tmp_path / "一" / "模型", tmp_path / "二" / "模型", tmp_path / "a b", tmp_path / "a-b"]
    for folder in names:
        shutil.copytree(tiny_folder, folder)
    registry = Registry()
    for one, other in ((0, 1), (2, 3)):
        with pytest.raises(UserError, match="another model is called rope-.* too; rename one folder"):
            registry.variants(f"{names[one]},{names[other]}")
    assert registry.variant(str(names[2])).model.name == "a-b", "as before: results of it are known by that"


def test_settings_and_data_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--set yran: unknown method; did you mean 'yarn'"):
        Registry(settings={"yran": {}})
    with pytest.raises(UserError, match="--data ruler-essay: unknown data source; did you mean 'ruler-essays'"):
        Registry(local_data={"ruler-essay": tmp_path})
    with pytest.raises(UserError, match="--include-path .*nowhere: no such folder"):
        Registry(include_paths=[tmp_path / "nowhere"])
    with pytest.raises(UserError, match="--include-path .*nowhere: no such folder"):
        Registry(include_paths=[tmp_path / "nowhere"])
