"""Asking ahead: while one answer is waited for and stored, the next requests are already under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from longctx_bench.core.types import Request

T = TypeVar("T")


class RequestPrefetcher(Generic[T]):
    """Keeps ``width`` requests of a known order under way, though answers are taken one at a time.

    So every answer is stored as soon as its turn comes, and a server that dies costs no answer that was stored.
    """

    def __init__(self, order: Sequence[Request] = (), width: int = 1) -> None:
        self._order = list(order)
        self._places = {id(request): place for place, request in enumerate(self._order)}
        self._width = width
        self._waiting: dict[int, Future[T]] = {}

    def results(self, batch: Sequence[Request], ask: Callable[[Request], Future[T]]) -> Iterator[T]:
        """Yield the answers to a batch in its order; whatever an answer raises ends all that is under way."""
        place = self._places.get(id(batch[-1]))
        following = [] if place is None else self._order[place + 1 : place + self._width]
        try:
            for request in (*batch, *following):
                if id(request) not in self._waiting:
                    self._waiting[id(request)] = ask(request)
            for request in batch:
                yield self._waiting.pop(id(request)).result()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Forget what is under way."""
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
