"""Asking a server over HTTP: a bounded number of requests at once, each sent again while that can help."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from longctx_bench.engines.servers import KEY_VARIABLES, Server, key_from_environment

T = TypeVar("T")

_LONGEST_PAUSE = 30.0
_AGAIN = frozenset((408, 409, 425, 429))
"""Refusals that pass by themselves, besides all of 500 and above."""


class Rejected(Exception):
    """The server refuses the request, and would refuse it again."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"answers {status}: {reason}")
        self.status = status


class GaveUp(Exception):
    """Something that may pass by itself did not; the message says what, and that the server answered if it did."""

    def __init__(self, reason: str, answered: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.answered = answered
        self.pause = pause
        """Seconds that the server asks to wait."""


class Asker:
    """Sends requests from one background thread, whose end the process does not wait for."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._key = key_from_environment()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
        timeout = httpx2.Timeout(server.timeout, connect=min(10.0, server.timeout), pool=None)
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout)
        self._slots = asyncio.Semaphore(server.concurrency)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="longctx-bench-server", daemon=True).start()

    def get(self, path: str, read: Callable[[bytes], T], attempts: int) -> T:
        """Return what an endpoint says, read by ``read``; raises as :meth:`post`'s future."""
        return self._later(lambda: self._client.get(self._server.root + path), read, attempts).result()

    def post(self, path: str, body: dict[str, Any], read: Callable[[bytes], T], attempts: int) -> Future[T]:
        """Send JSON to an endpoint.

        Args:
            path: of the endpoint, from ``/``.
            body: the request.
            read: turns the answer's bytes into a value; a ValueError from it means that the answer is garbled.
            attempts: how often to send it.

        Returns:
            A future of that value; it raises Rejected or GaveUp.
        """
        return self._later(lambda: self._client.post(self._server.root + path, json=body), read, attempts)

    def _later(
        self, send: Callable[[], Awaitable[httpx2.Response]], read: Callable[[bytes], T], attempts: int
    ) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._persist(send, read, attempts), self._loop)

    async def _persist(
        self, send: Callable[[], Awaitable[httpx2.Response]], read: Callable[[bytes], T], attempts: int
    ) -> T:
        grow = wait_exponential_jitter(self._server.backoff, _LONGEST_PAUSE, jitter=self._server.backoff)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.pause if isinstance(error, GaveUp) else 0.0
            return max(grow(state), min(asked, 2 * _LONGEST_PAUSE))

        retrying = AsyncRetrying(
            stop=stop_after_attempt(attempts), wait=pause, retry=retry_if_exception_type(GaveUp), reraise=True
        )
        async with self._slots:
            return await retrying(self._once, send, read)

    async def _once(self, send: Callable[[], Awaitable[httpx2.Response]], read: Callable[[bytes], T]) -> T:
        try:
            response = await send()
        except httpx2.TimeoutException as error:
            raise GaveUp(f"does not answer within {self._server.timeout:g} s") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise GaveUp(f"cannot be reached ({type(error).__name__})") from error
        status = response.status_code
        if status >= 500 or status in _AGAIN:
            raise GaveUp(f"answers {status}: {self._said(response)}", True, _seconds(response.headers))
        if status in {401, 403}:
            raise Rejected(status, f"it does not accept the key; set {KEY_VARIABLES[0]}")
        if status != 200:
            raise Rejected(status, self._said(response))
        try:
            return read(response.content)
        except ValueError as error:
            raise GaveUp("answers something that is no valid response", True) from error

    def _said(self, response: httpx2.Response) -> str:
        """Return the start of an answer as one harmless line; servers repeat keys in their errors."""
        text = response.content[:4000].decode("utf-8", "replace")
        if self._key:
            text = text.replace(self._key, "[key]")
        line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return line[:200] or "(nothing)"


def _seconds(headers: httpx2.Headers) -> float:
    """Return what Retry-After asks for, where it is a number; 0 elsewhere."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
