"""A server that means harm, or is broken: bounded in memory and time, and never believed in what cannot be."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Generation, LoglikelihoodResult, Request
from longctx_bench.engines.openai_api import payloads
from longctx_bench.engines.openai_api.config import KEY_VARIABLES, ServerConfig
from longctx_bench.engines.openai_api.engine import OpenAIEngine
from longctx_bench.engines.openai_api.http_client import CompletionsClient, RetriesExhausted
from longctx_bench.engines.openai_api.key_redaction import ApiKey
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rope_scaling import RoPE
from longctx_bench.models.checkpoint import load_tokenizer, read_config
from longctx_bench.models.variant import ModelUnderTest

pytestmark = pytest.mark.slow

SECRET = "sk-live/3f9a+77e0c1d2"  # noqa: S105 (made up)


class Hostile:
    """What the server does with each completion that is not the first, by which it is got to know."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.model = "served"
        self.models = 0
        self.change: Callable[[dict[str, Any], int], dict[str, Any]] = lambda answer, number: answer
        self.send: Callable[[Any, bytes, int], None] | None = None
        """Takes over the sending: handler, the honest answer, number of the completion."""

    def answer(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        ids = body["prompt"]
        choice: dict[str, Any] = {"index": 0, "text": f" {sum(ids) % 9}", "finish_reason": "stop", "stop_reason": None}
        if body.get("echo"):
            choice["logprobs"] = {"token_logprobs": [None, *[-1.0] * len(ids)]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 2}
        return {"id": f"cmpl-{name}", "object": "text_completion", "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hostile: Hostile

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.hostile.models += 1
        self.say(json.dumps({"data": [{"id": self.hostile.model}]}).encode())

    def do_POST(self) -> None:
        hostile = self.hostile
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hostile.bodies.append(body)
        hostile.headers.append(dict(self.headers))
        number = len(hostile.bodies)
        answer = hostile.answer(body, self.headers["X-Request-Id"])
        if number == 1:
            self.say(json.dumps(answer).encode())
            return
        content = json.dumps(hostile.change(answer, number)).encode()
        if hostile.send is None:
            self.say(content)
            return
        self.close_connection = True
        with suppress(OSError):
            hostile.send(self, content, number)

    def say(self, content: bytes, **headers: str) -> None:
        with suppress(OSError):
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection:  # otherwise the client may send its next request while the connection closes
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    made = Hostile()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hostile": made}))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(hostile: Hostile, tiny_folder: Path) -> Callable[..., list[Generation]]:
    """Ask the server to continue prompts."""

    def asked(count: int = 1, budget: int = 8, **more: Any) -> list[Generation]:
        engine = OpenAIEngine(ServerConfig(hostile.url, **{"attempts": 2, "backoff": 0.01, "timeout": 5.0, **more}))
        engine.load(tiny_folder)
        requests = [Request(str(place), [3 + place, 5, 7], budget) for place in range(count)]
        contestant = ModelUnderTest(BaseModelInfo("tiny", 256, read_config(tiny_folder)), RoPE(), 512)
        batches = engine.batches(requests, False)
        found = [item for batch in batches for item in engine.generate(batch, contestant, lambda *_: False)]
        return sorted(found, key=lambda item: int(item.example_id))

    return asked


def bomb(megabytes: int) -> bytes:
    return gzip.compress(b'{"choices": [' + b" " * (megabytes << 20) + b"]}")


def test_an_honest_answer_of_the_same_server_is_taken(hostile: Hostile, ask: Any) -> None:
    assert [item.text for item in ask(3)] == [" 6", " 7", " 8"]
    hostile.send = lambda handler, content, _: handler.say(gzip.compress(content), Content_Encoding="gzip")
    assert [item.text for item in ask(3)] == [" 6", " 7", " 8"], "packed as it was asked for"


@pytest.mark.slow
def test_an_answer_is_unpacked_up_to_a_limit(hostile: Hostile, ask: Any) -> None:
    content = bomb(400)
    hostile.send = lambda handler, *_: handler.say(content, Content_Encoding="gzip")
    tracked = _peak(lambda: _refused(ask, "more than 4 MiB"))
    assert tracked < 64 << 20


def test_an_endless_answer_is_read_up_to_a_limit(hostile: Hostile, ask: Any) -> None:
    sent = []

    def endless(handler: Any, *_: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while sum(sent) < 1 << 30:
            sent.append(handler.wfile.write(b" " * (1 << 16)))

    hostile.send = endless
    tracked = _peak(lambda: _refused(ask, "more than 4 MiB"))
    assert tracked < 64 << 20
    assert sum(sent) < 1 << 28


def test_an_error_is_read_up_to_a_limit(hostile: Hostile, ask: Any) -> None:
    def fails(handler: Any, *_: Any) -> None:
        handler.send_response(400)
        handler.end_headers()
        for _ in range(1 << 14):
            handler.wfile.write(b"no " * (1 << 14))

    hostile.send = fails
    _refused(ask, "answers 400: no no")


@pytest.mark.parametrize("packed", ["br", "zstd", "gzip, gzip"])
def test_an_answer_packed_otherwise_than_asked_for_is_refused(hostile: Hostile, ask: Any, packed: str) -> None:
    hostile.send = lambda handler, content, _: handler.say(content, Content_Encoding=packed)
    _refused(ask, "was not asked for")


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"{}" * 99)[:-9], b""], ids=["not gzip", "cut short", "empty"]
)
def test_a_damaged_packed_answer_is_asked_for_again(hostile: Hostile, ask: Any, content: bytes) -> None:
    def once(handler: Any, honest: bytes, number: int) -> None:
        handler.say(gzip.compress(honest) if number > 2 else content, Content_Encoding="gzip")

    hostile.send = once
    assert [item.text for item in ask()] == [" 6"]


def test_an_answer_that_drips_ends_after_a_time(hostile: Hostile, ask: Any) -> None:
    def drips(handler: Any, *_: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    hostile.send = drips
    began = time.perf_counter()
    _refused(ask, "no whole answer within 0.6 s", timeout=0.3)
    assert time.perf_counter() - began < 15, "two attempts of 0.6 s"


def change(**values: Any) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """Return an answer whose choice or counts are others."""

    def changed(answer: dict[str, Any], _: int) -> dict[str, Any]:
        for name, value in values.items():
            answer["usage" if name.endswith("_tokens") else "choices"] = (
                answer["usage"] | {name: value} if name.endswith("_tokens") else [answer["choices"][0] | {name: value}]
            )
        return answer

    return changed


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"completion_tokens": -5}, "no valid response"),
        ({"prompt_tokens": -1}, "no valid response"),
        ({"completion_tokens": 9}, "wrote 9 tokens; 8 were asked for"),
        ({"completion_tokens": 10**30}, "8 were asked for"),
        ({"prompt_tokens": 2}, "read 2 tokens of a prompt of 3"),
        ({"text": "word " * 2000}, "10000 characters, which is more than the 8 tokens"),
        ({"text": " a" * 60}, "120 characters, which is more than the 8 tokens"),
        ({"text": " a" * 60, "completion_tokens": None}, "120 characters, which is more than the 8 tokens"),
        ({"text": 5}, "no valid response"),
        ({"text": None}, "no valid response"),
        ({"finish_reason": "content_filter"}, "no valid response"),
    ],
)
def test_what_cannot_be_is_refused(hostile: Hostile, ask: Any, values: dict[str, Any], said: str) -> None:
    hostile.change = change(**values)
    _refused(ask, said)


def test_a_length_that_no_model_has_is_refused() -> None:
    for length in (0, -4096):
        with pytest.raises(ValueError, match="max_model_len"):
            payloads.parse_models(json.dumps({"data": [{"id": "a", "max_model_len": length}]}).encode())


def test_a_probability_above_one_is_none(hostile: Hostile, tiny_folder: Path) -> None:
    engine = OpenAIEngine(ServerConfig(hostile.url, attempts=1))
    engine.load(tiny_folder)
    request = Request("0", [3, 5, 7], 0, scored=2)
    contestant = ModelUnderTest(BaseModelInfo("tiny", 256, read_config(tiny_folder)), RoPE(), 512)

    def losses() -> LoglikelihoodResult:
        [found] = engine.loglikelihood([request], contestant)
        return found

    assert list(losses().losses) == [1.0, 1.0]
    hostile.change = change(logprobs={"token_logprobs": [None, -1.0, 2.0, -1.0]})
    with pytest.raises(UserError, match="gives no log-probabilities of prompts"):
        losses()


def test_answers_in_the_wrong_order_are_noticed_and_asked_for_again(hostile: Hostile, ask: Any) -> None:
    """The server answers each second request with what belongs to the one before."""
    before: list[bytes] = []

    def late(handler: Any, content: bytes, number: int) -> None:
        before.append(content)
        handler.say(before[-2] if number in {3, 5} else content)

    hostile.send = late
    found = ask(3, concurrency=1)
    assert [item.text for item in found] == [" 6", " 7", " 8"]
    assert len(hostile.bodies) == 1 + 3 + 2, "two were asked for again"


def test_one_answer_to_everything_is_noticed(hostile: Hostile, ask: Any) -> None:
    """As above, from a server that gives ids of its own."""
    kept: list[bytes] = []

    def first(handler: Any, content: bytes, number: int) -> None:
        kept.append(content)
        handler.say(kept[0])

    hostile.change = lambda answer, number: answer | {"id": f"cmpl-{number:032x}"}
    hostile.send = first
    original = hostile.answer
    hostile.answer = lambda body, name: original(body, "0" * 32)  # type: ignore[method-assign]
    _refused(ask, "no valid response", count=2)


def test_a_server_whose_ids_are_all_the_same_is_believed(hostile: Hostile, ask: Any) -> None:
    original = hostile.answer
    hostile.answer = lambda body, name: original(body, "x")  # type: ignore[method-assign]
    hostile.change = change(text=" 1")
    assert [item.text for item in ask(4)] == [" 1"] * 4


# -- the key --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1:8000/v1", True),
        ("http://[::1]:8000", True),
        ("http://localhost:8000", True),
        ("https://api.example.com/v1", True),
        ("http://10.0.0.7:8000", False),
        ("http://gpu1:8000", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://0.0.0.0:8000", False),
    ],
)
def test_a_key_goes_where_nobody_else_can_read_it(monkeypatch: pytest.MonkeyPatch, url: str, sent: bool) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert ("authorization" in CompletionsClient(ServerConfig(url))._client.headers) == sent
    assert "authorization" in CompletionsClient(ServerConfig(url, unencrypted_key=True))._client.headers


def test_a_key_that_was_not_sent_is_named_when_the_server_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert "--unencrypted-key" in CompletionsClient(ServerConfig("http://gpu1"))._key_hint()
    assert "set LONGCTX_BENCH_API_KEY" in CompletionsClient(ServerConfig("https://gpu1"))._key_hint()


def test_what_stays_on_this_machine_reaches_no_proxy(
    hostile: Hostile, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert [item.text for item in ask()] == [" 6"]
    assert hostile.headers[-1]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.slow
def test_a_key_that_the_server_repeats_is_masked_everywhere(
    hostile: Hostile, tiny_folder: Path, essays: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    hostile.model = f"model-of-{SECRET}"
    hostile.change = change(text=f" {SECRET}", completion_tokens=None)
    arguments = (
        "run", "--engine", "openai", "--base-url", hostile.url, "--model", tiny_folder, "--tasks", "niah_single_1",
        "--length", "512", "--limit", "3", "--data", f"ruler-essays={essays}", "--out", tmp_path,
    )  # fmt: skip
    said = [call(*arguments)]
    assert said[0][0] == 0, said

    def fails(handler: Any, *_: Any) -> None:
        content = json.dumps({"error": SECRET}).replace("/", "\\/").replace("+", "\\u002B").encode()
        handler.send_response(400)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    hostile.send = fails
    said.append(call(*arguments, "--overwrite"))
    said.append(call(*arguments, "--overwrite", "--model-name", "another"))
    assert [code for code, _, _ in said[1:]] == [2, 2]
    kept = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert any("[key]" in text for path, text in kept.items() if path.name == "records.jsonl")
    assert any("model-of-[key]" in text for path, text in kept.items() if path.name == "cell.json")
    for text in (*kept.values(), *(text for _, *texts in said for text in texts)):
        assert SECRET not in text
        assert "3f9a" not in text


def test_a_placeholder_is_no_secret_in_what_a_model_writes() -> None:
    assert ApiKey("EMPTY").masked_in_answer("EMPTY or not") == "EMPTY or not"
    assert ApiKey("EMPTY").masked("key EMPTY") == "key [key]"
    assert ApiKey(None).masked("any") == "any"


# -- a server that is not there -------------------------------------------------------------------------------------


def test_a_server_that_was_never_there_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    once, asked = CompletionsClient._once, []

    def counted(self: CompletionsClient, *arguments: Any) -> Any:
        asked.append(arguments[1])
        return once(self, *arguments)

    monkeypatch.setattr(CompletionsClient, "_once", counted)
    with pytest.raises(RetriesExhausted, match="cannot be reached"):
        CompletionsClient(ServerConfig("http://127.0.0.1:9")).get("/models", payloads.parse_models, 3)
    assert asked == ["/models"]


def test_a_server_that_is_not_there_is_known_before_a_prompt_is_written(
    tiny_folder: Path, essays: Path, tmp_path: Path, call: Any
) -> None:
    code, _, errors = call(
        "run", "--engine", "openai", "--base-url", "http://127.0.0.1:9", "--model", tiny_folder, "--tasks",
        "niah_single_1", "--length", "512", "--limit", "1", "--data", f"ruler-essays={essays}", "--out", tmp_path,
    )  # fmt: skip
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "cannot be reached" in errors
    assert list(tmp_path.glob("[!e.]*")) == [], "neither records nor prompts"


def _refused(ask: Any, said: str, **more: Any) -> None:
    with pytest.raises(UserError, match=said):
        ask(**more)


def _peak(work: Callable[[], None]) -> int:
    """Return the bytes that Python took at most while something ran."""
    import tracemalloc

    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- any bytes ------------------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["id", "choices", "text", "finish_reason", "usage", "logprobs", "prompt_tokens", "data", "x"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.one_of(_json.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200)))
def test_any_bytes_are_an_answer_or_a_value_error(content: bytes) -> None:
    for read in (payloads.parse_models, payloads.parse_completion):
        try:
            found: Any = read(content)
        except ValueError:
            continue
        if isinstance(found, payloads.Completion):
            assert found.choices[0].finish_reason in {"stop", "length"}
            assert (found.prompt_tokens or 0) >= 0 <= (found.completion_tokens or 0)


def test_deep_answers_are_value_errors() -> None:
    for content in (b"[" * 100_000, b'{"choices":' * 100_000, b'{"choices": ' + b"[" * 5000 + b"]" * 5000 + b"}"):
        with pytest.raises(ValueError):  # noqa: PT011
            payloads.parse_completion(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=40),
    new=st.none() | st.integers(0, 20),
    read=st.none() | st.integers(0, 20),
    reason=st.sampled_from(["stop", "length"]),
)
def test_a_generation_is_what_was_asked_for_or_refused(
    tiny_folder: Path, text: str, new: int | None, read: int | None, reason: str
) -> None:
    engine = _engine(tiny_folder)
    usage = payloads.Usage(prompt_tokens=read, completion_tokens=new)
    found = payloads.Completion(choices=[payloads.Choice(text=text, finish_reason=reason)], usage=usage)
    try:
        made = engine._generation(Request("0", [3, 5, 7], 8), found, 0.0)
    except UserError:
        return
    assert made.text == text
    assert 0 <= made.new_tokens <= 8
    assert read in {None, 3}


@lru_cache
def _engine(folder: Path) -> OpenAIEngine:
    """An engine that has got to know a server."""
    engine = OpenAIEngine(ServerConfig("http://127.0.0.1:9"))
    engine._tokenizer, engine._sends_token_ids = load_tokenizer(folder), True
    return engine
