"""Word lists for RULER's keys and lists (wonderwords 3.0.1, MIT), and random uuids."""

from __future__ import annotations

import random
from functools import lru_cache
from importlib import resources


def _words(name: str) -> list[str]:
    text = resources.files(__package__).joinpath("words", f"{name}.txt").read_text(encoding="utf-8")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@lru_cache(maxsize=1)
def adjectives() -> tuple[str, ...]:
    """Return the adjectives, in the list's order."""
    return tuple(_words("adjectives"))


@lru_cache(maxsize=1)
def nouns() -> tuple[str, ...]:
    """Return the nouns, in the list's order."""
    return tuple(_words("nouns"))


@lru_cache(maxsize=1)
def all_words() -> tuple[str, ...]:
    """Return nouns, adjectives and verbs together, each once, sorted."""
    return tuple(sorted({*nouns(), *adjectives(), *_words("verbs")}))


def adjective_noun(rng: random.Random) -> str:
    """Draw a key such as ``lucky-window``."""
    return f"{rng.choice(adjectives())}-{rng.choice(nouns())}"


def uuid4(rng: random.Random) -> str:
    """Draw a version-4 uuid, formatted as by ``uuid.UUID`` from 128 random bits."""
    digits = f"{rng.getrandbits(128):032x}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
