"""Checkpoints are found in a checkout, an installed package or a hub repository, in that order."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_hub import publish

from longctx_bench.core import sources
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.sources import HUB_VARIABLE, content_digest, fetch, shipped_checkpoint_folder
from longctx_bench.core.specs import ShippedSource

ROOT = Path(__file__).parents[2]
DROPE = ShippedSource(embedded="drope-tiny")


@pytest.fixture
def no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation: no checkpoint lies beside the package."""
    monkeypatch.setattr(sources, "shipped_folder", lambda name: tmp_path / "nowhere" / name)
    monkeypatch.delenv(HUB_VARIABLE, raising=False)


def checkpoint(folder: Path) -> Path:
    """Write what identifies a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of weights, as packages/ builds them: folders without code, and an entry point."""
    made = tmp_path / "site" / "weights_of_a_test"
    checkpoint(made / "drope-tiny")
    monkeypatch.syspath_prepend(made.parent)
    point = EntryPoint("weights", "weights_of_a_test", "longctx_bench.checkpoints")
    monkeypatch.setattr(sources, "entry_points", lambda group: [point] if group == point.group else [])
    return made


@pytest.mark.usefixtures("package")
def test_a_checkout_comes_first() -> None:
    assert shipped_checkpoint_folder("drope-tiny") == shipped_folder("baselines") / "checkpoints" / "drope-tiny"


@pytest.mark.usefixtures("no_checkout")
def test_an_installed_package_comes_before_the_hub(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUB_VARIABLE, "org/never-asked")
    assert fetch(DROPE) == package / "drope-tiny"


@pytest.mark.usefixtures("no_checkout")
@pytest.mark.parametrize("named", ["org/weights", f"org/weights@{'1' * 40}"])
def test_a_hub_repository_comes_last(
    named: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = content_digest(DROPE)
    monkeypatch.setattr(sources, "entry_points", lambda group: [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = publish(tmp_path / "hub", "org/weights", package / "drope-tiny", "1" * 40)
    (snapshot / "drope-tiny").mkdir()
    for file in [file for file in snapshot.iterdir() if file.is_symlink()]:
        (snapshot / "drope-tiny" / file.name).symlink_to(file.resolve())
    monkeypatch.setenv(HUB_VARIABLE, named)
    assert fetch(DROPE) == snapshot / "drope-tiny"
    assert content_digest(DROPE) == expected, "the same weights are the same cells, wherever they were found"
    with pytest.raises(UserError, match=r"^rope-tiny: LONGCTX_BENCH_WEIGHTS=org/weights has no such folder"):
        fetch(ShippedSource(embedded="rope-tiny"))


@pytest.mark.usefixtures("no_checkout")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("drope-tiny", "the weights of drope-tiny are not installed: pip install longctx-bench-tiny"),
        ("control-smollm", "the weights of control-smollm are not installed: pip install longctx-bench-smollm"),
        ("nobody", "nobody: no such checkpoint ships with this version"),
    ],
)
def test_without_any_one_line_says_what_to_install(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "entry_points", lambda group: [])
    with pytest.raises(UserError) as error:
        fetch(ShippedSource(embedded=name))
    assert str(error.value) == said


def test_what_the_line_names_holds_each_checkpoint() -> None:
    held: dict[str, list[str]] = {}
    needs: dict[str, list[str]] = {}
    for file in (ROOT / "packages").glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))
        name = project["project"]["name"]
        included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
        held[name] = [Path(path).name for path in included if "/checkpoints/" in path]
        needs[name] = project["project"]["dependencies"]
        assert project["project"]["entry-points"]["longctx_bench.checkpoints"] == {name: name.replace("-", "_")}
    for folder in (ROOT / "baselines" / "checkpoints").iterdir():
        distribution = sources._WEIGHTS[folder.name.rpartition("-")[2]]
        assert any(folder.name in held[each] for each in (distribution, *needs[distribution])), folder.name


WITHOUT_TORCH = """
import sys
for name in "gguf httpx2 huggingface_hub psutil safetensors tenacity tokenizers torch transformers".split():
    sys.modules[name] = None
from longctx_bench.cli import main
sys.argv = ["longctx-bench", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["list", "models"], 0, "drope"),
        (["report", "RESULTS"], 0, "drope-tiny"),
        (["compare", "drope-tiny", "yarn-tiny", "RESULTS"], 0, "better: beyond chance"),
        (["figures", "RESULTS", "--kind", "length", "--out", "drawn"], 0, "wrote"),
        (["run", "--limit", "1"], 2, "engine: this needs the package 'torch': pip install 'longctx-bench[hf]'"),
        (["export", "drope-tiny", "made", "--scale", "2x"], 2, "this needs the package 'torch': pip install"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_results_are_read_without_torch(arguments: list[Any], code: int, said: str, tmp_path: Path) -> None:
    results = str(ROOT / "results" / "reference" / "tiny.bundle")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *(results if each == "RESULTS" else each for each in arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
