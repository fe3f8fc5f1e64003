"""Token ids of long texts out of the ids of their words, where a tokenizer allows it: many times as fast."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

_LINE = 2048
"""Characters of a line above which it is cut into sentences, and of the longest sentence that is remembered."""
_SENTENCE = 32
"""Characters of a sentence below which a line is no prose but a list, whose items come in ever new orders."""
_WORD = 64
"""Characters of the longest word that is remembered."""
_MOST = 1 << 16
"""Words that are remembered, and pieces of words; random ones, as uuids are, would fill the memory."""
_MOST_TEXT = 1 << 22
"""Characters of all sentences that are remembered."""

_CUT = re.compile(r"(?<=\S) ")

Tokens = tuple[int, ...]


class CachedBPE:
    """A tokenizer that reads a text sentence by sentence and word by word, and remembers both.

    Exact, not an estimate: byte-level BPE merges within the pieces that GPT-2's pattern cuts, and none of those pieces
    goes on behind white space that follows something else. So a text is cut into lines, these into sentences and words,
    each with the space or line break before it, and what the cuts give is what the whole gives, token by token. A plain
    word is cut into the pattern's own pieces, because random keys and numbers are new words of few different pieces.
    """

    def __init__(self, tokenizer: Any, cut: Callable[[str], list[str]]) -> None:
        """Wrap a tokenizer; :meth:`from_tokenizer` finds out whether that is exact."""
        self._tokenizer = tokenizer
        self._cut = cut
        # None of them is ever emptied, because another thread may be reading it: a new one takes its place.
        self._sentences: dict[str, Tokens] = {}
        self._words: dict[str, Tokens] = {}
        self._pieces: dict[str, Tokens] = {}
        self._held = 0

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> CachedBPE | None:
        """Wrap a tokenizer that can be read word by word, byte-level BPE with GPT-2's pattern; give None for another.

        What is not known to be one is not: its texts are read as a whole, as ever.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or getattr(tokenizer, "split_special_tokens", False):
            return None
        try:
            layout = msgspec.json.decode(backend.to_str(), type=_Layout)
        except (TypeError, msgspec.MsgspecError):
            return None
        return cls(tokenizer, _plain_pieces(layout)) if _cuts_at_white_space(layout) else None

    def ids(self, text: str) -> list[Tokens]:
        """Return the ids of each sentence or word, without special tokens."""
        sentences = list(_sentences(text))
        known = self._sentences
        missing = list(set(sentences).difference(known))
        if not missing:
            return list(map(known.__getitem__, sentences))
        fresh = dict(zip(missing, self._by_words(missing), strict=True))
        ids: list[Tokens] = []
        for sentence in sentences:
            if sentence in fresh:
                ids += fresh[sentence]
            else:
                ids.append(known[sentence])
        kept = {sentence: _joined(words) for sentence, words in fresh.items() if len(sentence) <= _LINE}
        self._held += sum(map(len, kept))
        if self._held > _MOST_TEXT:
            self._sentences, self._held = {}, 0
        self._sentences.update(kept)
        return ids

    def _by_words(self, sentences: list[str]) -> list[list[Tokens]]:
        """Return the ids of each word of each sentence; all that are new are read at once."""
        rows = [sentence.split(" ") for sentence in sentences]
        openings = [row.pop(0) for row in rows]
        known = self._words
        missing = set(chain.from_iterable(rows)).difference(known)
        torn = {word for word in missing if not _whole(word)}
        for place, (opening, row) in enumerate(zip(openings, rows, strict=True)):
            # Behind white space a space is no place to cut. Few texts have two in a row, and this takes longer.
            if opening[-1:].isspace() or (torn and not torn.isdisjoint(row[:-1])):
                openings[place], *rows[place] = _CUT.split(sentences[place])
                missing.update(set(rows[place]).difference(known))
        begin = list(set(openings))
        read = iter(self._by_pieces([*(f" {word}" for word in missing), *begin]))
        fresh = dict(zip(missing, read, strict=False))
        begun = dict(zip(begin, read, strict=True))
        self._words = _with(known, ((word, ids) for word, ids in fresh.items() if _whole(word)))
        found = _found(rows, known, fresh)
        return [[begun[opening], *words] for opening, words in zip(openings, found, strict=True)]

    def _by_pieces(self, words: list[str]) -> list[Tokens]:
        """Return the ids of each word, put together from those of its pieces."""
        cut = list(map(self._cut, words))
        known = self._pieces
        missing = list(set(chain.from_iterable(cut)).difference(known))
        fresh: dict[str, Tokens] = {}
        if missing:
            read = self._tokenizer(missing, add_special_tokens=False, return_attention_mask=False, verbose=False)
            fresh = dict(zip(missing, map(tuple, read["input_ids"]), strict=True))
            self._pieces = _with(known, fresh.items())
        return list(map(_joined, _found(cut, known, fresh)))


def _sentences(text: str) -> Iterator[str]:
    """Cut a text where white space follows something else: into lines, and long ones into sentences."""
    lines: list[str] = []
    for line in text.split("\n"):
        if not lines:
            lines.append(line)
        elif _whole(lines[-1]):
            lines.append(f"\n{line}")
        else:
            lines[-1] += f"\n{line}"
    for line in lines:
        if len(line) <= _LINE or not 0 < _SENTENCE * line.count(". ") < len(line):
            yield line
            continue
        first, *others, last = line.split(". ")
        yield f"{first}."
        for other in others:
            yield f" {other}."
        yield f" {last}"


def _whole(text: str) -> bool:
    """Tell whether white space behind a text is a place to cut."""
    return bool(text) and not text[-1].isspace()


def _joined(parts: Iterable[Tokens]) -> Tokens:
    return tuple(chain.from_iterable(parts))


def _found(rows: list[list[str]], known: dict[str, Tokens], fresh: dict[str, Tokens]) -> list[list[Tokens]]:
    """Look up what is known and what was just read, most of which is known by now."""
    try:
        return [list(map(known.__getitem__, row)) for row in rows]
    except KeyError:
        return [[fresh[word] if word in fresh else known[word] for word in row] for row in rows]


def _with(known: dict[str, Tokens], fresh: Iterable[tuple[str, Tokens]]) -> dict[str, Tokens]:
    """Return a memory with what is to be remembered of what was read: a new one when it is full."""
    memory = {} if len(known) > _MOST else known
    memory.update((word, ids) for word, ids in fresh if len(word) <= _WORD)
    return memory


def flatten(parts: Iterable[Sequence[int]]) -> list[int]:
    """Join the words' ids."""
    return list(chain.from_iterable(parts))


class _Added(msgspec.Struct):
    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Model(msgspec.Struct):
    type: str | None = None
    dropout: float | None = None


class _Layout(msgspec.Struct):
    """What a tokenizer's own description says, but for its vocabulary."""

    model: _Model
    added_tokens: list[_Added]
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """By what a text is cut before anything is merged."""
        cut = self.pre_tokenizer or {}
        steps: list[dict[str, Any]] = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
        return steps


def _cuts_at_white_space(layout: _Layout) -> bool:
    *before, last = layout.steps
    return bool(
        (layout.normalizer or {}).get("type") in (None, "NFC")
        and layout.model.type == "BPE"
        and not layout.model.dropout
        and last.get("type") == "ByteLevel"
        and last.get("use_regex", True)
        and not last.get("add_prefix_space")
        and all(step.get("type") == "Digits" for step in before)
        and not any(sign in token.content for token in layout.added_tokens for sign in " \n")
        and not any(token.lstrip or token.rstrip or token.single_word for token in layout.added_tokens)
    )


def _plain_pieces(layout: _Layout) -> Callable[[str], list[str]]:
    """Return what cuts a plain word, the space before it included, into the pattern's pieces, and leaves others whole.

    Plain are ASCII letters, marks and single line breaks, and digits where the tokenizer takes each by itself. Not so
    apostrophes, which the pattern joins with letters, and whatever special tokens are written with.
    """
    taken = {"'", *chain.from_iterable(token.content for token in layout.added_tokens)}
    marks = re.escape("".join(sorted(set(string.punctuation) - taken)))
    single = any(step.get("individual_digits") for step in layout.steps) and not taken.intersection(string.digits)
    if not marks:
        return lambda word: [word]
    run = f"[A-Za-z{marks}{'0-9' if single else ''}]+"
    plain = re.compile(rf" ?{run}(?:\n{run})*").fullmatch
    pieces = re.compile(rf" ?[A-Za-z]+| ?[{marks}]+|[0-9]|\n| ").findall
    return lambda word: pieces(word) if plain(word) else [word]
