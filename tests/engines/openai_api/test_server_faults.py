"""A server in a process of its own that is killed, comes back, or answers badly: a run loses nothing and says why."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from helpers import faulty_server

from longctx_bench.engines.openai_api.config import ServerConfig
from longctx_bench.store.run_store import ResultStore

pytestmark = pytest.mark.slow


def records(folder: Path) -> dict[str, bytes]:
    """All records of a run, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("records.jsonl"))}


def stored(folder: Path) -> int:
    return sum(content.count(b"\n") for content in records(folder).values())


class Process:
    """A server that can be killed and started again where it was."""

    def __init__(self, share: float = 0.0, port: int = 0) -> None:
        script = Path(faulty_server.__file__)
        command = [sys.executable, str(script), str(port), str(share)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self.url = self._output.readline().strip()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def again(self) -> Process:
        return Process(port=int(self.url.rpartition(":")[2]))

    def faults(self) -> dict[str, int]:
        with urlopen(f"{self.url}/faults", timeout=10) as answer:  # noqa: S310 (our own server)
            return dict(json.load(answer))


@pytest.fixture
def start() -> Iterator[Callable[[Process], Process]]:
    """Have a server killed at the end of the test."""
    known: list[Process] = []

    def keep(server: Process) -> Process:
        known.append(server)
        return server

    yield keep
    for server in known:
        server.kill()


@pytest.fixture
def ask(tiny_folder: Path, essays: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run two cells of 24 examples from the command line, on a server at a URL."""
    for name in ("LONGCTX_BENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def asked(server: Process, out: Path, *more: str) -> Any:
        return call(
            "run", "--model", tiny_folder, "--tasks", "niah_single_1,niah_single_2", "--length", "512", "--limit",
            "24", "--engine", "openai", "--base-url", server.url, "--data",
            f"ruler-essays={essays}", "--out", out, *more,
        )  # fmt: skip

    return asked


def killing(server: Process, out: Path, then: Callable[[], None] = lambda: None) -> Any:
    """Return the store's ``append``, under which the server dies once eight records are there."""
    append = ResultStore.append

    def last(self: ResultStore, *arguments: Any) -> None:
        append(self, *arguments)
        if stored(out) == 8:
            server.kill()
            then()

    return last


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_started_again_is_waited_for(
    start: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(Process())
    assert ask(server, tmp_path / "whole")[0] == 0
    later = threading.Timer(0.5, lambda: start(server.again()))
    monkeypatch.setattr(ResultStore, "append", killing(server, tmp_path / "killed", later.start))
    said = ask(server, tmp_path / "killed", "--concurrency", "4")
    assert said[0] == 0, said
    assert later.finished.is_set(), "the server was killed, and came back while the run went on"
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def test_a_server_that_stays_away_ends_the_run_in_a_line_a_cell_and_the_next_goes_on(
    start: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(Process())
    assert ask(server, tmp_path / "whole")[0] == 0
    out = tmp_path / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "append", killing(server, out))
        # Patience that the command line does not offer to shorten.
        patched.setattr(ServerConfig, "__init__", _hasty(ServerConfig.__init__))
        code, _, errors = ask(server, out, "--concurrency", "2")
    assert code == 2
    failed = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2, errors
    assert all("cannot be reached" in line for line in failed)
    assert "2 times; what was measured is kept, run the same command again" in failed[0]
    assert "Traceback" not in errors
    kept = records(out)
    assert stored(out) >= 8
    code, _, errors = ask(start(server.again()), out)
    assert code == 0, errors
    for name, content in records(tmp_path / "whole").items():
        assert records(out)[name] == content
        assert set(kept.get(name, b"").splitlines()) <= set(content.splitlines())


def _hasty(init: Any) -> Any:
    def made(self: ServerConfig, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named, attempts=2, backoff=0.01)

    return made


@pytest.mark.slow
def test_three_in_ten_requests_answered_500_or_never(start: Any, ask: Any, tmp_path: Path) -> None:
    assert ask(start(Process()), tmp_path / "whole")[0] == 0
    ill = start(Process(0.3))
    said = ask(ill, tmp_path / "ill", "--request-timeout", "1")
    assert said[0] == 0, said
    assert records(tmp_path / "ill") == records(tmp_path / "whole")
    counts = ill.faults()
    assert counts["500"] > 3
    assert counts["never"] > 3
    assert 0.15 < 1 - counts["answered"] / counts["asked"] < 0.45
