"""Fetching: real pip on a wheel made here, corrupt downloads, wrong members, no network, the hub's cache layout."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from helpers.fake_hub import publish
from pydantic import BaseModel

from longctx_bench.core import file_cache
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import _hub_reachable, content_digest, fetch, sha256, source_label
from longctx_bench.core.specs import HubSource, PathSource, ShippedSource, Source, WheelSource, validate


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


@pytest.mark.slow
def test_a_wheel_member_is_fetched_once(wheel: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(wheel)
    assert path.read_text() == "some words"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch(wheel) == path


@pytest.mark.slow
def test_a_corrupt_download_is_refused_and_not_kept(wheel: WheelSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corrupt or another build.*nothing was kept, run again"):
        fetch(wheel.model_copy(update={"sha256": "0" * 64}))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.slow
def test_a_wrong_member_is_named(wheel: WheelSource) -> None:
    with pytest.raises(UserError, match="has no member nothing.txt"):
        fetch(wheel.model_copy(update={"member": "nothing.txt"}))


@pytest.mark.slow
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

    from longctx_bench.models.checkpoint import checkpoint_folder, load_tokenizer
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
        return content_digest(PathSource(path=folder))

    assert {of(name) == of("") for name in ("README.md", "data/a.jsonl", "c.xz")} == {True}
    assert len({of(name) for name in ("", "config.json", "model.safetensors")}) == 3
    assert len({of(name, left_out="config.json") for name in ("", *files[1:])}) == 6


# -- what a source may name -------------------------------------------------------------------------------------------

WHEEL = {"wheel": "some-data", "version": "1.0", "sha256": "0" * 64, "member": "some_data/a.txt"}
OUTSIDE = (
    "../a",
    "a/../../b",
    "/etc/passwd",
    "a//b",
    "./a",
    "a/.",
    "",
    "a\\..\\b",
    "C:/a",
    "a\nb",
    "a\x1b[2J",
    "a" * 2000,
)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((WheelSource, "member", member) for member in OUTSIDE),
        *((HubSource, "file", member) for member in OUTSIDE),
        *(
            (WheelSource, "wheel", name)
            for name in ("--requirement=http://x/y?z", "-r", "a b", "a @ http://x", "a[b]", "")
        ),
        *((WheelSource, "version", text) for text in ("1.0 --no-binary=:all:", "*", "-1", "1.0;python", "1,>2", "")),
        *((WheelSource, "sha256", text) for text in ("", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n")),
        *(
            (HubSource, "hub", name)
            for name in ("../a", "a/../b", "a/b/c", "--x/y", "a/-b", "a b/c", "a--b/c", "a/b\n", "")
        ),
        *((HubSource, "revision", text) for text in ("../x", "-x", "a b", "a..b", "/a", "")),
        *((ShippedSource, "embedded", name) for name in ("..", ".", "../x", "a/b", "")),
    ],
)
def test_what_could_lead_elsewhere_is_no_source(kind: type[BaseModel], key: str, value: str) -> None:
    right = {WheelSource: WHEEL, HubSource: {"hub": "org/name"}, ShippedSource: {"embedded": "rope-tiny"}}[kind]  # type: ignore[index]
    assert kind.model_validate(right)
    with pytest.raises(UserError, match=f"somewhere: '{key}'"):
        validate(kind, {**right, key: value}, "somewhere")


def test_pip_gets_no_option_from_a_source(wheel: WheelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def noted(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no")

    monkeypatch.setattr(
        "longctx_bench.core.pypi_wheels.subprocess", SimpleNamespace(run=noted, DEVNULL=subprocess.DEVNULL)
    )
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch(wheel)
    [command] = commands
    assert command[-2:] == ["--", "longctx-testdata==1.0"]
    assert {"--only-binary=:all:", "--no-deps"} <= set(command)


@pytest.mark.slow
def test_a_pip_in_the_current_folder_is_not_run(
    wheel: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/pip").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (tmp_path / "here/pip" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path / "here")
    assert fetch(wheel).read_text() == "some words"
    assert not (tmp_path / "ran").exists()


# -- extraction and the cache -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_member_is_never_written_through_a_link_that_leads_away(wheel: WheelSource, tmp_path: Path) -> None:
    member = fetch(wheel)
    shutil.rmtree(member.parent)
    (tmp_path / "elsewhere").mkdir()
    member.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="would lie outside"):
        fetch(wheel)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_a_bomb_is_not_extracted(wheel: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index/longctx_testdata-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("longctx_testdata/bomb.txt", bytes(4 << 20))
    monkeypatch.setattr("longctx_bench.core.pypi_wheels._ALWAYS", 1 << 20)
    bomb = wheel.model_copy(update={"sha256": sha256(path), "member": "longctx_testdata/bomb.txt"})
    with pytest.raises(UserError, match="is not extracted"):
        fetch(bomb)
    assert not list((tmp_path / "cache").rglob("*bomb*"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
@pytest.mark.parametrize("piece", ["longctx_testdata/essays.txt", "whole.whl"])
def test_a_damaged_piece_is_named_and_made_again(
    wheel: WheelSource, piece: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    member = fetch(wheel)
    file = member.parent.parent / piece
    content = file.read_bytes()
    file.write_bytes(content[:-5] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    if piece == "whole.whl":
        assert fetch(wheel) == member, "what is not needed is not looked at"
        member.unlink()
    assert fetch(wheel).read_text() == "some words"
    assert file.read_bytes() == content
    [said] = [record.getMessage() for record in caplog.records if record.name == "longctx_bench"]
    assert said.startswith(f"{file}: is damaged")
    assert "\n" not in said


@pytest.mark.slow
def test_damage_that_keeps_size_and_time_is_noticed_by_the_next_process(wheel: WheelSource) -> None:
    member = fetch(wheel)
    before = member.stat()
    member.write_text("SOME WORDS")
    os.utime(member, ns=(before.st_atime_ns, before.st_mtime_ns))
    read_before = dict(file_cache._read)
    file_cache._read.clear()
    try:
        assert fetch(wheel).read_text() == "some words"
    finally:
        file_cache._read.update(read_before)


@pytest.mark.slow
def test_a_wheel_that_is_no_archive_is_one_line(wheel: WheelSource, tmp_path: Path) -> None:
    folder = fetch(wheel).parent.parent
    (folder / "whole.whl").write_bytes(b"no archive")
    other = wheel.model_copy(update={"sha256": sha256(folder / "whole.whl")})
    shutil.copytree(folder, folder.with_name(f"longctx-testdata-1.0-{other.sha256[:12]}"))
    fetched = folder.with_name(f"longctx-testdata-1.0-{other.sha256[:12]}") / wheel.member
    fetched.unlink()
    with pytest.raises(UserError, match="cannot be extracted"):
        fetch(other)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a folder one that cannot be written, for root as well."""

    def protect(folder: Path) -> None:
        def refuse(self: object, *_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

        monkeypatch.setattr(FileLock, "acquire", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(os, "open", refuse)

    return protect


@pytest.mark.slow
def test_a_populated_cache_that_cannot_be_written_is_read(
    wheel: WheelSource, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    path = fetch(wheel)
    file_cache._read.clear()
    read_only(tmp_path / "cache")
    assert fetch(wheel) == path
    with pytest.raises(UserError, match="set LONGCTX_BENCH_CACHE"):
        fetch(wheel.model_copy(update={"version": "1.1"}))


def test_a_damaged_file_in_the_hubs_cache_is_one_line_where_the_hub_is_out_of_reach(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = publish(tmp_path, "org/model", tiny_folder, "a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fetch(HubSource(hub="org/model")) == snapshot
    blob = (snapshot / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors: is damaged"):
        fetch(HubSource(hub="org/model"))
    assert fetch(HubSource(hub="org/model", file="config.json")).is_file()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (PathSource(path=Path("a/b")), "a/b"),
        (ShippedSource(embedded="drope-tiny"), "embedded drope-tiny"),
        (WheelSource(wheel="words", version="1.0", sha256="0" * 64, member="a.txt"), "PyPI words==1.0"),
        (HubSource(hub="a/b"), "hub a/b"),
        (HubSource(hub="a/b", revision="0123456789" * 4), "hub a/b@01234567"),
    ],
)
def test_where_a_source_comes_from_in_a_phrase(source: Source, said: str) -> None:
    assert source_label(source) == said


def test_the_hub_is_looked_for_where_it_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable = _hub_reachable.__wrapped__
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert not reachable()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert reachable()
    assert not reachable()
    # Only the proxy could tell.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert reachable()
