"""A completions server in the test process: a real small model behind real HTTP, which fails as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from longctx_bench.core.types import Request
from longctx_bench.engines.hf.engine import HFEngine, load_model
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rope_scaling import RoPE
from longctx_bench.models.checkpoint import read_config
from longctx_bench.models.variant import ModelUnderTest

VLLM = {"stop_token_ids", "min_tokens", "include_stop_str_in_output", "repetition_penalty"}


class Served:
    """What the server runs, what it refuses, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.engine = HFEngine("cpu", "float32")
        self.engine.load(folder)
        self.tokenizer: Any = self.engine.core.tokenizer
        self.contestant = ModelUnderTest(BaseModelInfo("served", 256, read_config(folder)), RoPE(), 256)
        self.model = load_model(folder, "float32", "cpu")
        self.lock = threading.Lock()
        self.takes_ids = self.takes_extras = True
        self.says_why = True
        """Whether it is vLLM; others may pass over what they do not know."""
        self.key: str | None = None
        self.room: int | None = 4096
        self.cuts_to: int | None = None
        self.fault: Callable[[int], str | None] = lambda number: None
        """What goes wrong with the n-th completion: a status, ``garbage``, ``hang``, ``cut`` or ``dead``."""
        self.asked: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.url = ""
        self.ends: Callable[[], None] = lambda: None

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer as vLLM does."""
        prompt = body["prompt"]
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = ids[-self.cuts_to :] if self.cuts_to else ids
        known = body if self.says_why else {}
        stop = frozenset(known.get("stop_token_ids", ()))
        request = Request("0", ids, body["max_tokens"], stop, known.get("min_tokens", 0))
        with self.lock:
            [found] = self.engine.generate([request], self.contestant, lambda *_: False)
            choice: dict[str, Any] = {
                "index": 0, "text": found.text,
                "finish_reason": "length" if found.finish_reason == "length" else "stop",
            }  # fmt: skip
            if self.says_why:
                choice["stop_reason"] = next(iter(stop)) if found.finish_reason == "stop" else None
            if body.get("echo"):
                choice["logprobs"] = self.echo(ids)
        usage = {"prompt_tokens": len(ids), "completion_tokens": found.new_tokens}
        return {"id": "x", "object": "text_completion", "choices": [choice], "usage": usage}

    @torch.inference_mode()
    def echo(self, ids: list[int]) -> dict[str, Any]:
        """Log-probabilities of a prompt's tokens and of one more."""
        scores = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)
        own = [None, *(float(scores[place, token]) for place, token in enumerate(ids[1:])), -0.1]
        tops = [None, *({"best": float(scores[place].max())} for place in range(len(ids) - 1)), {"best": -0.1}]
        return {"tokens": [], "token_logprobs": own, "top_logprobs": tops}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served
    ended: threading.Event
    """Set when this handler's server is told to end; a later server has its own."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List the model."""
        if self.path != "/v1/models":
            self.say(404, {"error": "no such thing"})
            return
        self.say(200, {"data": [{"id": "tiny-served", "max_model_len": self.served.room}]})

    def do_POST(self) -> None:
        """Complete, or fail as told."""
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sent = self.headers.get("Authorization")
        if served.key is not None and sent != f"Bearer {served.key}":
            self.say(401, {"error": f"wrong key {sent}"})
            return
        with served.lock:
            # Under the lock, which a request that came before the end may have waited for until after it.
            if self.ended.is_set():
                self.close_connection = True
                return
            served.asked.append(body)
            number = len(served.asked)
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
        try:
            self.answer(body, served.fault(number))
        finally:
            with served.lock:
                served.at_once -= 1

    def answer(self, body: dict[str, Any], fault: str | None) -> None:
        served = self.served
        if fault == "hang":
            time.sleep(3)
            self.close_connection = True
        elif fault == "dead":
            self.close_connection = True
            served.ends()
        elif fault == "garbage":
            self.say(200, {"choices": [{"text": 7}]})
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "4000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif fault:
            self.say(int(fault), {"error": f"told to; your header was {self.headers.get('Authorization')}"})
        elif isinstance(body["prompt"], list) and not served.takes_ids:
            self.say(422, {"error": "prompt must be a string"})
        elif body.keys() & VLLM and not served.takes_extras:
            self.say(400, {"error": "unknown field"})
        else:
            self.say(200, served.complete(body))

    def say(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextmanager
def serving(served: Served, port: int = 0) -> Iterator[Served]:
    """Serve until the block ends, or until the server is told to die."""
    ended = threading.Event()
    handler = type("Handler", (_Handler,), {"served": served, "ended": ended})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"

    def ends() -> None:
        ended.set()
        server.shutdown()
        server.server_close()

    served.ends = ends
    try:
        yield served
    finally:
        ends()
        thread.join()
