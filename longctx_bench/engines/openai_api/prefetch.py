"""Prefetch: send the next requests while the current response is processed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from longctx_bench.core.types import Request

T = TypeVar("T")


class RequestPrefetcher(Generic[T]):
    """Keeps ``width`` requests of a known order in flight, while responses are taken one at a time.

    Every response is stored as soon as its turn comes, so that a server that dies loses none that was stored.
    """

    def __init__(self, order: Sequence[Request] = (), width: int = 1) -> None:
        self._order = list(order)
        self._index_of = {id(request): index for index, request in enumerate(self._order)}
        self._width = width
        self._in_flight: dict[int, Future[T]] = {}

    def results(self, batch: Sequence[Request], send: Callable[[Request], Future[T]]) -> Iterator[T]:
        """Yield the responses to a batch in its order; an exception of any of them cancels all requests in flight."""
        index = self._index_of.get(id(batch[-1]))
        following = [] if index is None else self._order[index + 1 : index + self._width]
        try:
            for request in (*batch, *following):
                if id(request) not in self._in_flight:
                    self._in_flight[id(request)] = send(request)
            for request in batch:
                yield self._in_flight.pop(id(request)).result()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the requests in flight."""
        for future in self._in_flight.values():
            future.cancel()
        self._in_flight.clear()
