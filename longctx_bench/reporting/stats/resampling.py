"""Bootstrap weights and random sign flips, drawn once per sample size and shared by all cells."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 4_000
"""Bootstrap samples: the 2.5th percentile then lies at 2.25 to 2.75 (one standard error) of the exact distribution."""
SIGN_FLIPS = 10_000
"""Number of sign vectors, including the observed one."""
SEED = 20_404
"""Fixed, so that the same data always give the same interval and p-value."""
_QUARTER_FLIPS = np.array([(1, *signs) for signs in product((1, -1), repeat=3)], dtype=np.float32)
_NUM_DRAWN = SIGN_FLIPS // len(_QUARTER_FLIPS)
_BLOCK = 128


@lru_cache(maxsize=16)
def bootstrap_weights(n: int) -> NDArray[np.float32]:
    """Return the bootstrap weights of ``n`` examples: the count of each in each sample, divided by ``n``.

    ``values @ weights`` gives all bootstrap means at once.

    Returns:
        [n, RESAMPLES], each column a multinomial draw of n out of n; 16 kB per example, so for n up to a few thousand.
    """
    rng = np.random.default_rng((SEED, n))
    drawn = rng.integers(n, size=(RESAMPLES, n), dtype=np.int32) + n * np.arange(RESAMPLES, dtype=np.int32)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n)
    return np.ascontiguousarray(counts.T, dtype=np.float32) / np.float32(n)


def sign_flip_sums(differences: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sums of ``differences`` [k] under :data:`SIGN_FLIPS` vectors of signs, the first of them all +1.

    1,250 vectors are drawn. Each yields eight: every fourth difference keeps its sign, and each of the other three
    quarters keeps or flips its own, so that one product gives eight sums. These are random cosets of a subgroup of the
    sign flips, and one of them contains the observed signs. Under the null hypothesis every member is equally likely to
    have the largest sum, which is all that a random-flip test needs to be exact (compare Hemerik and Goeman 2018).
    """
    quarters = np.zeros((4, 1, -(-len(differences) // 4)), dtype=np.float32)
    quarters[:, 0].T.flat[: len(differences)] = differences
    sums = np.zeros((4, _NUM_DRAWN), dtype=np.float32)
    for start in range(0, quarters.shape[2], _BLOCK):
        part = quarters[:, :, start : start + _BLOCK]
        sums += np.matmul(part, _signs(start // _BLOCK)[:, : part.shape[2]])[:, 0]
    return (_QUARTER_FLIPS @ sums).ravel()


@lru_cache(maxsize=4)
def _signs(block: int) -> NDArray[np.float32]:
    """Return random signs for a block of differences in quarters, [4, _BLOCK, _NUM_DRAWN]; vector 0 is all +1."""
    rng = np.random.default_rng((SEED, 0, block))
    signs = rng.integers(2, size=(4, _BLOCK, _NUM_DRAWN), dtype=np.int8).astype(np.float32) * 2 - 1
    signs[:, :, 0] = 1
    return signs
