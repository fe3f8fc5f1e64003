"""Sequence packing and batches: rows of packed text and retrieval sequences, a pure function of seed and step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longctx_bench.core.errors import UserError
from longctx_bench.training.recipe import VirtualLength

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]


class PackedText:
    """Token arrays cut into rows of ``length + 1`` tokens; neighbours share one, so every token is predicted once."""

    def __init__(self, arrays: Sequence[Tokens], length: int) -> None:
        """Cut the arrays; a tail that fills no row is left out."""
        self.arrays = arrays
        self.length = length
        counts = [max(0, (len(array) - 1) // length) for array in arrays]
        self._ends: list[int] = np.cumsum(counts).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int, shift: float = 0.0) -> Tokens:
        """Return row ``index``: ``[length + 1]`` token ids.

        ``shift``, in [0, 1), moves the cuts by that share of a row: what stands before the first cut of an array is
        left out, and its last row, where the array ends too early, begins within the row before it.
        """
        which = bisect_right(self._ends, index)
        start = (index - (self._ends[which - 1] if which else 0)) * self.length + int(shift * self.length)
        array = self.arrays[which]
        start = min(start, len(array) - self.length - 1)
        return array[start : start + self.length + 1]


class RetrievalPool(NamedTuple):
    """Retrieval sequences as token ids."""

    rows: Tokens
    """``[count, length + 1]``: an exercise, EOS, then ordinary text up to the row's end."""
    haystack: NDArray[np.bool_]
    """``[count, length + 1]``: which tokens are the text that the needles of a row are hidden in."""
    values_per_key: NDArray[np.integer[Any]]
    """``[count]``: values of each key of the exercise."""


class Batches:
    """The sequences of every step. Stateless: a resumed run gets the same steps as an uninterrupted one."""

    def __init__(
        self,
        text: PackedText,
        batch: int,
        seed: int,
        pool: RetrievalPool | None = None,
        retrieval_share: float = 0.0,
        digits: Sequence[int] = (),
        random_crops: bool = False,
    ) -> None:
        """Take rows from ``text``, and ``retrieval_share`` of them from ``pool``.

        Each time a row of the pool is drawn, its ``digits`` (token ids) are permuted: the same exercise has other
        numbers, and an answer cannot be memorised. With ``random_crops`` each pass over the text is cut into rows
        at other places.

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
        self._random_crops = random_crops
        self._shift = lru_cache(maxsize=2)(self._drawn_shift)

    def step(self, index: int, first: int = 0, count: int | None = None) -> NDArray[np.int64]:
        """Return sequences ``first`` to ``first + count`` of step ``index``: ``[count, length + 1]`` token ids."""
        exercise, chosen = self._drawn(index)
        count = self.batch - first if count is None else count
        rows = np.empty((count, self.text.length + 1), dtype=np.int64)
        for place in range(first, first + count):
            if exercise[place] and self.pool is not None:
                rows[place - first] = self._renumbered(self.pool.rows[chosen[place]], index, place)
            else:
                epoch, position = divmod(index * self.batch + place, len(self.text))
                rows[place - first] = self.text.row(int(self._order(epoch)[position]), self._shift(epoch))
        return rows

    def key_bias(
        self, index: int, virtual: VirtualLength, first: int = 0, count: int | None = None
    ) -> NDArray[np.float32]:
        """Return what step ``index`` adds to the attention logits of its keys: ``[count, length]``, nats, at least 0.

        A sequence draws ln r uniformly from [0, ln factor] with probability ``share``; which of its keys are raised,
        and by how much, :class:`longctx_bench.training.recipe.VirtualLength` says.
        """
        exercise, chosen = self._drawn(index)
        count = self.batch - first if count is None else count
        length = self.text.length
        rng = np.random.default_rng([self.seed, 4, index])
        logits = rng.uniform(0.0, np.log(virtual.factor), self.batch) * (rng.random(self.batch) < virtual.share)
        spans = rng.integers(1, 4, self.batch)
        ends = np.sort(rng.integers(0, length + 1, (self.batch, 3, 2)), axis=2)
        bias = np.zeros((count, length), dtype=np.float32)
        for place in range(first, first + count):
            row = bias[place - first]
            haystack = None
            if exercise[place] and self.pool is not None:
                if self.pool.values_per_key[chosen[place]] > 1 and not virtual.several_values:
                    continue
                haystack = self.pool.haystack[chosen[place], :length]
            if virtual.by == "distance":
                row[:] = _bias_by_distance(float(logits[place]), length, haystack)
            elif haystack is not None:
                row[haystack] = logits[place]
            else:
                for start, end in ends[place, : spans[place]]:
                    row[start:end] = logits[place]
        return bias

    def temperatures(self, index: int, low: float, high: float, heads: int) -> NDArray[np.float32]:
        """Return step ``index``'s factors of the attention logits: ``[batch, heads]``, log-uniform from low to high."""
        drawn = np.random.default_rng([self.seed, 3, index]).uniform(np.log(low), np.log(high), (self.batch, heads))
        return np.exp(drawn).astype(np.float32)

    def _drawn(self, index: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return which sequences of a step are exercises, and which row of the pool each of them is."""
        rng = np.random.default_rng([self.seed, 1, index])
        exercise = rng.random(self.batch) < self.retrieval_share
        return exercise, rng.integers(0, len(self.pool.rows) if self.pool is not None else 1, self.batch)

    def _renumbered(self, row: Tokens, step: int, place: int) -> Tokens:
        if not len(self._digits):
            return row
        table = np.arange(int(max(row.max(), self._digits.max())) + 1, dtype=row.dtype)
        table[self._digits] = np.random.default_rng([self.seed, 2, step, place]).permutation(self._digits)
        return table[row]

    def _drawn_shift(self, epoch: int) -> float:
        return float(np.random.default_rng([self.seed, 5, epoch]).random()) if self._random_crops else 0.0

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.text))


_SLOPES = np.linspace(1e-6, 12.0, 4096)
_LOG_FACTORS = np.log(np.expm1(_SLOPES) / _SLOPES)


def _bias_by_distance(log_factor: float, length: int, haystack: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Return a row's bias, [length]: see :class:`longctx_bench.training.recipe.VirtualLength`, by distance.

    Args:
        log_factor: ln r.
        length: tokens.
        haystack: [length], of an exercise; None of ordinary text.
    """
    if log_factor <= 0:
        return np.zeros(length)
    slope = float(np.interp(log_factor, _LOG_FACTORS, _SLOPES))
    bias = slope * (1 - np.arange(length) / length)
    if haystack is not None and haystack.any():
        questions = int(np.flatnonzero(haystack)[-1]) + 1
        # Needles and instruction stand once for whoever asks.
        bias[:questions][~haystack[:questions]] = bias[min(questions, length - 1)]
    return bias
