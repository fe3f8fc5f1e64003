"""Made-up sentences to train small models on."""

from __future__ import annotations

import random

WORDS = ("the", "a", "river", "house", "old", "man", "went", "saw", "light", "under", "over", "quiet", "and", "slowly")


def sentences(seed: int, count: int) -> str:
    rng = random.Random(seed)
    made = (" ".join(rng.choices(WORDS, k=rng.randint(4, 9))).capitalize() + "." for _ in range(count))
    return " ".join(made)
