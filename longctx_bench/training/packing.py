"""Which tokens a step sees: rows of packed text and retrieval sequences, a pure function of seed and step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from longctx_bench.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]


class PackedText:
    """Token arrays cut into rows of ``length + 1`` tokens, neighbours sharing one, so every token is predicted once."""

    def __init__(self, arrays: Sequence[Tokens], length: int) -> None:
        """Cut; the tail of an array that fills no row is left out."""
        self.arrays = arrays
        self.length = length
        counts = [max(0, (len(array) - 1) // length) for array in arrays]
        self._ends: list[int] = np.cumsum(counts).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> Tokens:
        """Return row ``index``: ``[length + 1]`` token ids."""
        which = bisect_right(self._ends, index)
        start = (index - (self._ends[which - 1] if which else 0)) * self.length
        return self.arrays[which][start : start + self.length + 1]


class Batches:
    """The sequences of every step. Stateless: a resumed run asks for the next step and gets what it would have had."""

    def __init__(
        self,
        text: PackedText,
        batch: int,
        seed: int,
        pool: Tokens | None = None,
        retrieval_share: float = 0.0,
        digits: Sequence[int] = (),
    ) -> None:
        """Take rows from ``text``, and ``retrieval_share`` of them from ``pool`` (``[n, length + 1]``).

        Each time a row of the pool is drawn, its ``digits`` (token ids) are permuted: the same exercise has other
        numbers, and an answer cannot be learnt by heart.

        Raises:
            UserError: the text is smaller than one batch.
        """
        if len(text) < batch:
            raise UserError(
                f"the data has {len(text)} sequences of {text.length} tokens, one step takes {batch}: "
                f"give more text or a smaller tokens_per_step"
            )
        self.text = text
        self.batch = batch
        self.seed = seed
        self.pool = pool
        self._digits = np.asarray(digits, dtype=np.int64)
        self.retrieval_share = retrieval_share if pool is not None else 0.0
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def step(self, index: int, first: int = 0, count: int | None = None) -> NDArray[np.int64]:
        """Return sequences ``first`` to ``first + count`` of step ``index``: ``[count, length + 1]`` token ids."""
        rng = np.random.default_rng([self.seed, 1, index])
        exercise = rng.random(self.batch) < self.retrieval_share
        chosen = rng.integers(0, len(self.pool) if self.pool is not None else 1, self.batch)
        count = self.batch - first if count is None else count
        rows = np.empty((count, self.text.length + 1), dtype=np.int64)
        for place in range(first, first + count):
            if exercise[place] and self.pool is not None:
                rows[place - first] = self._renumbered(self.pool[chosen[place]], index, place)
            else:
                epoch, position = divmod(index * self.batch + place, len(self.text))
                rows[place - first] = self.text.row(int(self._order(epoch)[position]))
        return rows

    def temperatures(self, index: int, low: float, high: float, heads: int) -> NDArray[np.float32]:
        """Return step ``index``'s factors of the attention logits: ``[batch, heads]``, log-uniform from low to high."""
        drawn = np.random.default_rng([self.seed, 3, index]).uniform(np.log(low), np.log(high), (self.batch, heads))
        return np.exp(drawn).astype(np.float32)

    def _renumbered(self, row: Tokens, step: int, place: int) -> Tokens:
        if not len(self._digits):
            return row
        table = np.arange(int(max(row.max(), self._digits.max())) + 1, dtype=row.dtype)
        table[self._digits] = np.random.default_rng([self.seed, 2, step, place]).permutation(self._digits)
        return table[row]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.text))
