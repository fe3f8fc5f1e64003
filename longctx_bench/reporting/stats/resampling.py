"""The random numbers of all resampling, drawn once and shared, so that a thousand cells cost a thousand products."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 4_000
"""Bootstrap samples: the 2.5th percentile is then the percentile 2.25 to 2.75 (one standard error) of endless ones."""
SIGN_FLIPS = 10_000
"""Sign vectors, the observed one among them."""
SEED = 20_404
"""The same data give the same interval and the same p, today and elsewhere."""
_TURNS = np.array([(1, *signs) for signs in product((1, -1), repeat=3)], dtype=np.float32)
_DRAWN = SIGN_FLIPS // len(_TURNS)
_BLOCK = 128


@lru_cache(maxsize=16)
def bootstrap_weights(n: int) -> NDArray[np.float32]:
    """Return how often each of ``n`` examples is drawn in each bootstrap sample, divided by ``n``.

    A product of n values with them is all bootstrap means at once.

    Returns:
        [n, RESAMPLES], each column a multinomial draw of n out of n; 16 kB an example, so for n of some thousands at
        most.
    """
    rng = np.random.default_rng((SEED, n))
    drawn = rng.integers(n, size=(RESAMPLES, n), dtype=np.int32) + n * np.arange(RESAMPLES, dtype=np.int32)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n)
    return np.ascontiguousarray(counts.T, dtype=np.float32) / np.float32(n)


def sign_flip_sums(differences: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sums of ``differences`` [k] under :data:`SIGN_FLIPS` vectors of signs, the first of them all +1.

    1,250 vectors are drawn, and of each all eight are taken that arise when every fourth difference keeps its sign and
    each of the other three quarters keeps or turns its own: one product gives eight sums. These are random cosets of a
    subgroup of the sign flips, and the observed signs are in one of them: where signs are arbitrary, no member is
    likelier than another to have the largest sum, which is all that a test over random flips needs to be exact
    (compare Hemerik and Goeman 2018).
    """
    quarters = np.zeros((4, 1, -(-len(differences) // 4)), dtype=np.float32)
    quarters[:, 0].T.flat[: len(differences)] = differences
    sums = np.zeros((4, _DRAWN), dtype=np.float32)
    for start in range(0, quarters.shape[2], _BLOCK):
        part = quarters[:, :, start : start + _BLOCK]
        sums += np.matmul(part, _signs(start // _BLOCK)[:, : part.shape[2]])[:, 0]
    return (_TURNS @ sums).ravel()


@lru_cache(maxsize=4)
def _signs(block: int) -> NDArray[np.float32]:
    """Return +1 or -1 for a block of examples in quarters and each vector drawn, [4, _BLOCK, _DRAWN]."""
    rng = np.random.default_rng((SEED, 0, block))
    signs = rng.integers(2, size=(4, _BLOCK, _DRAWN), dtype=np.int8).astype(np.float32) * 2 - 1
    signs[:, :, 0] = 1
    return signs
