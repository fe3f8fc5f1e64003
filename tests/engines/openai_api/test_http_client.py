"""How long a request waits before it is sent again: what the server asks for, up to a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from longctx_bench.engines.openai_api import http_client
from longctx_bench.engines.openai_api.config import ServerConfig
from longctx_bench.engines.openai_api.http_client import CompletionsClient, RetriesExhausted


class Busy(BaseHTTPRequestHandler):
    """Refuses with a Retry-After once, and answers then."""

    after: str | None = None
    asked: list[float]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.asked.append(time.monotonic())
        first = len(self.asked) == 1
        self.send_response(429 if first else 200)
        if first and self.after is not None:
            self.send_header("Retry-After", self.after)
        content = b"busy" if first else b"well"
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def ask() -> Iterator[Callable[[str | None], float]]:
    """Ask a server that asks to wait; return the seconds between the two requests."""
    servers = []

    def asked(after: str | None) -> float:
        handler = type("Handler", (Busy,), {"after": after, "asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = ServerConfig(f"http://127.0.0.1:{server.server_address[1]}", backoff=0.01, timeout=20.0)
        assert CompletionsClient(where).get("/x", bytes, attempts=3) == b"well"
        first, second = handler.asked
        return second - first

    yield asked
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_is_given_the_time_that_it_asks_for(ask: Callable[[str | None], float]) -> None:
    assert ask("1") >= 1.0


@pytest.mark.parametrize("after", [None, "", "0", "soon", "-5", "Wed, 21 Oct 2037 07:28:00 GMT", "1e9", "٣"])
def test_what_is_no_number_of_seconds_is_not_waited_for(ask: Callable[[str | None], float], after: str | None) -> None:
    assert ask(after if after is None or after.isascii() else after.encode().decode("latin-1")) < 20


def test_nobody_waits_for_an_hour(ask: Callable[[str | None], float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_MAX_BACKOFF", 0.2)
    assert 0.4 <= ask("3600") < 60


def test_a_server_that_stays_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = type("Handler", (Busy,), {"after": "0", "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asker = CompletionsClient(ServerConfig(f"http://127.0.0.1:{server.server_address[1]}", backoff=0.01, timeout=20.0))
    with pytest.raises(RetriesExhausted, match="answers 429: busy") as given_up:
        asker.get("/x", bytes, attempts=1)
    assert given_up.value.answered
    assert len(handler.asked) == 1
    server.shutdown()
    server.server_close()
