"""``python faulty_server.py PORT SHARE``: a completions server in a process of its own, to be killed and started again.

It has no weights: an answer is a function of the prompt alone. A share of the requests is answered 500 or never, and
which ones is a function of the prompt and of how often it was asked, so that every run meets the same faults.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_asked: Counter[str] = Counter()
_faults: Counter[str] = Counter()
_lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """Answers like vLLM as far as the engine asks."""

    protocol_version = "HTTP/1.1"
    share = 0.0

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List the model; at ``/faults``, what was done wrong so far."""
        counts = {"asked": _asked.total(), **_faults}
        self.say(200, counts if self.path == "/faults" else {"data": [{"id": "echo", "max_model_len": 65536}]})

    def do_POST(self) -> None:
        """Complete a prompt, or fail."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = body["prompt"]
        key = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        with _lock:
            _asked[key] += 1
            drawn = hashlib.sha256(f"{key} {_asked[key]}".encode()).digest()
            fault = ("500", "never")[drawn[1] % 2] if drawn[0] < 256 * self.share else None
            _faults[fault or "answered"] += 1
        if fault == "500":
            self.say(500, {"error": "told to"})
            return
        if fault == "never":
            time.sleep(3600)
        time.sleep(0.02)
        text = f" {int(key[:6], 16)}"
        choice = {"index": 0, "text": text, "finish_reason": "stop", "stop_reason": None}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(text)}
        self.say(200, {"id": "x", "object": "text_completion", "choices": [choice], "usage": usage})

    def say(self, status: int, value: Any) -> None:
        """Answer in JSON."""
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until killed; the first line says where."""
    Handler.share = float(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
