"""Asking a server over HTTP: a bounded number of requests at once, each sent again while that can help.

Nothing that a server sends is trusted: an answer has a largest size, on the wire and unpacked, and a longest time.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from longctx_bench.engines.openai_api.config import KEY_VARIABLES, ServerConfig, key_from_environment
from longctx_bench.engines.openai_api.key_redaction import ApiKey

T = TypeVar("T")

_LONGEST_PAUSE = 30.0
_AGAIN = frozenset((408, 409, 425, 429))
"""Refusals that pass by themselves, besides all of 500 and above."""
_LISTING = 60.0
"""Seconds of silence before the list of models."""
_LARGEST = 4 << 20
"""Bytes of an answer whose size does not depend on the request: a list of models, say."""
_LARGEST_ERROR = 1 << 16
"""Bytes that are read of an error."""


class ApiStatusError(Exception):
    """The server refuses the request, and would refuse it again."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"answers {status}: {reason}")
        self.status = status


class RetriesExhausted(Exception):
    """Something that may pass by itself did not; the message says what, and that the server answered if it did."""

    def __init__(self, reason: str, answered: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.answered = answered
        self.pause = pause
        """Seconds that the server asks to wait."""


class CompletionsClient:
    """Sends requests from one background thread, whose end the process does not wait for."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        key = key_from_environment()
        self._withheld = key is not None and not server.takes_key
        self.key = ApiKey(key)
        """What is masked in everything that the server says."""
        headers = {"Accept-Encoding": "gzip"}
        if key is not None and server.takes_key:
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
        # What stays on this machine must not reach a proxy that the environment names.
        direct = {f"all://{_in_url(server.host)}": None} if server.is_loopback else {}
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, mounts=direct)
        self._slots = asyncio.Semaphore(server.concurrency)
        self._has_answered = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="longctx-bench-server", daemon=True).start()

    def get(self, path: str, read: Callable[[bytes], T], attempts: int) -> T:
        """Return what an endpoint says, read by ``read``; raises as :meth:`post`'s future."""
        # No model computes what is listed, so that no silence is long.
        silence = min(_LISTING, self._server.timeout)
        return self._later(
            lambda: self._once("GET", path, None, lambda content, _: read(content), 0, silence), attempts
        ).result()

    def post(
        self, path: str, body: dict[str, Any], read: Callable[[bytes, str], T], attempts: int, more: int = 0
    ) -> Future[T]:
        """Send JSON to an endpoint.

        Args:
            path: of the endpoint, from ``/``.
            body: the request.
            read: turns the answer's bytes, and the name that the request was sent under (``X-Request-Id``, another
                for each attempt), into a value; a ValueError from it means that the answer is garbled.
            attempts: how often to send it; once, where the server was never reached.
            more: bytes by which the answer may be larger than 4 MiB.

        Returns:
            A future of that value; it raises ApiStatusError or RetriesExhausted.
        """
        return self._later(lambda: self._once("POST", path, body, read, more, self._server.timeout), attempts)

    def _later(self, send: Callable[[], Coroutine[Any, Any, T]], attempts: int) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._persist(send, attempts), self._loop)

    async def _persist(self, send: Callable[[], Coroutine[Any, Any, T]], attempts: int) -> T:
        grow = wait_exponential_jitter(self._server.backoff, _LONGEST_PAUSE, jitter=self._server.backoff)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.pause if isinstance(error, RetriesExhausted) else 0.0
            return max(grow(state), min(asked, 2 * _LONGEST_PAUSE))

        retrying = AsyncRetrying(
            # A server that was never there is not waited for: its address is wrong, or it does not run.
            stop=lambda state: state.attempt_number >= attempts or not self._has_answered,
            wait=pause,
            retry=retry_if_exception_type(RetriesExhausted),
            reraise=True,
        )

        async def attempt() -> T:
            return await send()

        async with self._slots:
            return await retrying(attempt)

    async def _once(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[bytes, str], T],
        more: int,
        silence: float,
    ) -> T:
        name, longest = uuid4().hex, 2 * silence
        url, headers = self._server.root + path, {"X-Request-Id": name}
        limits = httpx2.Timeout(silence, connect=min(10.0, silence), pool=None)
        try:
            async with (
                asyncio.timeout(longest),
                self._client.stream(method, url, json=body, headers=headers, timeout=limits) as response,
            ):
                self._has_answered = True
                status = response.status_code
                content = await _content(response, _LARGEST + more if status == 200 else _LARGEST_ERROR)
        except httpx2.TimeoutException as error:
            raise RetriesExhausted(f"does not answer within {silence:g} s") from error
        except TimeoutError as error:
            raise RetriesExhausted(f"gives no whole answer within {longest:g} s", self._has_answered) from error
        except httpx2.TransportError as error:
            raise RetriesExhausted(f"cannot be reached ({type(error).__name__})") from error
        except zlib.error as error:
            raise RetriesExhausted("answers something that is no valid response", True) from error
        if status >= 500 or status in _AGAIN:
            raise RetriesExhausted(f"answers {status}: {self._said(content)}", True, _seconds(response.headers))
        if status in {401, 403}:
            raise ApiStatusError(status, self._no_key())
        if status != 200:
            raise ApiStatusError(status, self._said(content))
        try:
            return read(content, name)
        except ValueError as error:
            raise RetriesExhausted("answers something that is no valid response", True) from error

    def _no_key(self) -> str:
        if self._withheld:
            return (
                "the key was not sent, as anybody on the way to another machine can read it over http; use https or a "
                "tunnel to localhost, or allow it with --unencrypted-key"
            )
        return f"it does not accept the key; set {KEY_VARIABLES[0]}"

    def _said(self, content: bytes) -> str:
        """Return the start of an answer as one harmless line; servers repeat keys in their errors."""
        text = self.key.masked(content.decode("utf-8", "replace"))
        line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return line[:200] or "(nothing)"


async def _content(response: httpx2.Response, largest: int) -> bytes:
    """Return an answer's bytes, unpacked; of an error the first ones.

    Raises:
        ApiStatusError: there are more than ``largest``, or they are packed in another way than was asked for.
        zlib.error: they cannot be unpacked.
    """
    packed = response.headers.get("content-encoding", "").strip().lower()
    if packed not in {"", "identity", "gzip", "x-gzip"}:
        raise ApiStatusError(response.status_code, f"its content is packed by {packed!a:.40}, which was not asked for")
    unzip = zlib.decompressobj(wbits=31) if packed.endswith("gzip") else None
    parts, size, raw = list[bytes](), 0, 0
    async for chunk in response.aiter_raw():
        raw += len(chunk)
        part = unzip.decompress(chunk, largest + 1 - size) if unzip else chunk
        size += len(part)
        parts.append(part)
        if max(size, raw) > largest:
            if response.status_code != 200:
                break
            raise ApiStatusError(200, f"more than {largest >> 20} MiB, which is no answer to what was asked")
    if unzip and not unzip.eof and response.status_code == 200:
        raise zlib.error("cut off")
    return b"".join(parts)[:largest]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _seconds(headers: httpx2.Headers) -> float:
    """Return what Retry-After asks for, where it is a number; 0 elsewhere."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
