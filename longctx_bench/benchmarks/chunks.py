"""Token ids of long texts out of the ids of their words, where a tokenizer allows it: several times as fast."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

_MOST = 1 << 18
"""Words that are remembered; random ones, as uuids are, would fill the memory."""
_LONGEST = 64
"""Characters of the longest word that is remembered."""

_CUT = re.compile(r"(?<=\S) ")


class Chunks:
    """A tokenizer that reads a text word by word and remembers the words, for texts made of few different ones.

    Exact, not an estimate: byte-level BPE merges within the pieces that GPT-2's pattern cuts, and none of those pieces
    goes on behind a space that follows something else than a space. So a text is cut before each of those, and what the
    cuts give is what the whole gives, token by token.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a tokenizer for which :func:`cuts_at_spaces` holds."""
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._first: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str) -> list[tuple[int, ...]]:
        """Return the ids of each word, without special tokens."""
        first, *words = text.split(" ")
        known = self._known
        missing = set(words).difference(known)
        if not _whole(first) or not all(map(_whole, missing)):
            # Behind white space a space is no place to cut. Few texts have two in a row, and this takes longer.
            first, *words = _CUT.split(text)
            missing = set(words).difference(known)
        fresh: dict[str, tuple[int, ...]] = {}
        if missing:
            fresh = dict(zip(missing, self._read([f" {word}" for word in missing]), strict=True))
        ids = [fresh[word] if word in fresh else known[word] for word in words] if fresh else [known[w] for w in words]
        beginning = self._first.get(first)
        if beginning is None:
            # Prompts of a task begin alike.
            [beginning] = self._read([first])
            self._first = {first: beginning}
        if len(known) > _MOST:
            # Not emptied: another thread may be reading it.
            self._known = known = {}
        known.update((word, read) for word, read in fresh.items() if _whole(word) and len(word) <= _LONGEST)
        return [beginning, *ids]

    def _read(self, texts: list[str]) -> list[tuple[int, ...]]:
        read = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [tuple(ids) for ids in read["input_ids"]]


def _whole(word: str) -> bool:
    """Tell whether a space behind a word is a place to cut."""
    return bool(word) and not word[-1].isspace()


def flat(parts: Sequence[Sequence[int]]) -> list[int]:
    """Join the words' ids."""
    return list(chain.from_iterable(parts))


def cuts_at_spaces(tokenizer: Any) -> bool:
    """Tell whether a tokenizer is one of those that :class:`Chunks` reads exactly: byte-level BPE with GPT-2's pattern.

    What is not known to be one is not: its texts are read as a whole, as ever.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "split_special_tokens", False):
        return False
    try:
        found = json.loads(backend.to_str())
    except (TypeError, ValueError):
        return False
    model, cut = found["model"], found["pre_tokenizer"] or {}
    steps = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
    *before, last = steps
    return bool(
        (found["normalizer"] or {}).get("type") in (None, "NFC")
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and last.get("type") == "ByteLevel"
        and last.get("use_regex", True)
        and not last.get("add_prefix_space")
        and all(step.get("type") == "Digits" for step in before)
        and not any(" " in token["content"] for token in found["added_tokens"])
        and not any(token[rule] for token in found["added_tokens"] for rule in ("lstrip", "rstrip", "single_word"))
    )
