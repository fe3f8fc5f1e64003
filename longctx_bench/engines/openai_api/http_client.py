"""The HTTP client: bounded concurrency, retries with backoff, and limits on what a server may send.

Nothing that a server sends is trusted: responses have a maximum size, compressed and decompressed, and a maximum time.
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

_MAX_BACKOFF = 30.0
_RETRIED_STATUS = frozenset((408, 409, 425, 429))
"""HTTP status codes to retry, besides all from 500."""
_MODELS_TIMEOUT = 60.0
"""Read timeout of the list of models, in seconds."""
_MAX_RESPONSE_BYTES = 4 << 20
"""Bytes of a response whose size does not depend on the request, such as the list of models."""
_MAX_ERROR_BYTES = 1 << 16
"""Bytes to read of an error response."""


class ApiStatusError(Exception):
    """The server refuses the request with a status that no retry changes."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"answers {status}: {reason}")
        self.status = status


class RetriesExhausted(Exception):
    """A transient error persisted after all retries; ``answered`` says whether the server responded at all."""

    def __init__(self, reason: str, answered: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.answered = answered
        self.pause = pause
        """Seconds that the server asks to wait (Retry-After)."""


class CompletionsClient:
    """Sends requests from one daemon thread."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        key = key_from_environment()
        self._withheld = key is not None and not server.takes_key
        self.key = ApiKey(key)
        """Redacted in everything that the server sends."""
        headers = {"Accept-Encoding": "gzip"}
        if key is not None and server.takes_key:
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
        # Requests to this machine must not go to a proxy that the environment names.
        direct = {f"all://{_bracketed(server.host)}": None} if server.is_loopback else {}
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, mounts=direct)
        self._slots = asyncio.Semaphore(server.concurrency)
        self._has_answered = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="longctx-bench-server", daemon=True).start()

    def get(self, path: str, parse: Callable[[bytes], T], attempts: int) -> T:
        """Return an endpoint's response, parsed by ``parse``; raises what the future of :meth:`post` raises."""
        # No model computes the list: a short timeout suffices.
        timeout = min(_MODELS_TIMEOUT, self._server.timeout)
        return self._submit(
            lambda: self._once("GET", path, None, lambda content, _: parse(content), 0, timeout), attempts
        ).result()

    def post(
        self, path: str, body: dict[str, Any], parse: Callable[[bytes, str], T], attempts: int, extra_bytes: int = 0
    ) -> Future[T]:
        """Send JSON to an endpoint.

        Args:
            path: of the endpoint, from ``/``.
            body: the request.
            parse: turns the bytes of the response, and the id of the request (``X-Request-Id``, another one for each
                attempt), into a value; it raises ValueError if the response is invalid.
            attempts: how often to send it; once, if the server was never reached.
            extra_bytes: by which the response may be larger than 4 MiB.

        Returns:
            A future of that value; it raises ApiStatusError or RetriesExhausted.
        """
        return self._submit(lambda: self._once("POST", path, body, parse, extra_bytes, self._server.timeout), attempts)

    def _submit(self, send: Callable[[], Coroutine[Any, Any, T]], attempts: int) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._retry(send, attempts), self._loop)

    async def _retry(self, send: Callable[[], Coroutine[Any, Any, T]], attempts: int) -> T:
        backoff = wait_exponential_jitter(self._server.backoff, _MAX_BACKOFF, jitter=self._server.backoff)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            requested = error.pause if isinstance(error, RetriesExhausted) else 0.0
            return max(backoff(state), min(requested, 2 * _MAX_BACKOFF))

        retrying = AsyncRetrying(
            # No retries before the first response: the address is wrong, or the server does not run.
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
        parse: Callable[[bytes, str], T],
        extra_bytes: int,
        timeout: float,
    ) -> T:
        request_id, max_seconds = uuid4().hex, 2 * timeout
        url, headers = self._server.root + path, {"X-Request-Id": request_id}
        limits = httpx2.Timeout(timeout, connect=min(10.0, timeout), pool=None)
        try:
            async with (
                asyncio.timeout(max_seconds),
                self._client.stream(method, url, json=body, headers=headers, timeout=limits) as response,
            ):
                self._has_answered = True
                status = response.status_code
                content = await _read_content(
                    response, _MAX_RESPONSE_BYTES + extra_bytes if status == 200 else _MAX_ERROR_BYTES
                )
        except httpx2.TimeoutException as error:
            raise RetriesExhausted(f"does not answer within {timeout:g} s") from error
        except TimeoutError as error:
            raise RetriesExhausted(f"gives no whole answer within {max_seconds:g} s", self._has_answered) from error
        except httpx2.TransportError as error:
            raise RetriesExhausted(f"cannot be reached ({type(error).__name__})") from error
        except zlib.error as error:
            raise RetriesExhausted("answers something that is no valid response", True) from error
        if status >= 500 or status in _RETRIED_STATUS:
            raise RetriesExhausted(f"answers {status}: {self._excerpt(content)}", True, _retry_after(response.headers))
        if status in {401, 403}:
            raise ApiStatusError(status, self._key_hint())
        if status != 200:
            raise ApiStatusError(status, self._excerpt(content))
        try:
            return parse(content, request_id)
        except ValueError as error:
            raise RetriesExhausted("answers something that is no valid response", True) from error

    def _key_hint(self) -> str:
        if self._withheld:
            return (
                "the key was not sent, as anybody on the way to another machine can read it over http; use https or a "
                "tunnel to localhost, or allow it with --unencrypted-key"
            )
        return f"it does not accept the key; set {KEY_VARIABLES[0]}"

    def _excerpt(self, content: bytes) -> str:
        """Return the start of a response as one printable line; servers may repeat the key in their errors."""
        text = self.key.masked(content.decode("utf-8", "replace"))
        line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
        return line[:200] or "(nothing)"


async def _read_content(response: httpx2.Response, max_bytes: int) -> bytes:
    """Return the decompressed bytes of a response; only the first ones of an error.

    Raises:
        ApiStatusError: there are more than ``max_bytes``, or they have a content encoding that was not asked for.
        zlib.error: they cannot be decompressed.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        raise ApiStatusError(
            response.status_code, f"its content is packed by {encoding!a:.40}, which was not asked for"
        )
    unzip = zlib.decompressobj(wbits=31) if encoding.endswith("gzip") else None
    chunks, size, raw = list[bytes](), 0, 0
    async for chunk in response.aiter_raw():
        raw += len(chunk)
        data = unzip.decompress(chunk, max_bytes + 1 - size) if unzip else chunk
        size += len(data)
        chunks.append(data)
        if max(size, raw) > max_bytes:
            if response.status_code != 200:
                break
            raise ApiStatusError(200, f"more than {max_bytes >> 20} MiB, which no response to this request has")
    if unzip and not unzip.eof and response.status_code == 200:
        raise zlib.error("cut off")
    return b"".join(chunks)[:max_bytes]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _retry_after(headers: httpx2.Headers) -> float:
    """Return the seconds of Retry-After where it is a number, else 0."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
