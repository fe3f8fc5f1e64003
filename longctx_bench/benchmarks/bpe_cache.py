"""BPE cache: encode long texts faster by caching the token ids of sentences, words and pre-tokens."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

_MAX_LINE = 2048
"""Lines of more characters are split into sentences; longer sentences are not cached."""
_MIN_SENTENCE = 32
"""Lines with a shorter average sentence are lists, whose items recur in ever new orders: they are not split."""
_MAX_WORD = 64
"""Longer words (in characters) are not cached."""
_MAX_ENTRIES = 1 << 16
"""Maximum number of cached words, and of cached pre-tokens; random words such as uuids would fill the memory."""
_MAX_SENTENCE_CHARS = 1 << 22
"""Maximum total characters of cached sentences."""

_CUT = re.compile(r"(?<=\S) ")

Tokens = tuple[int, ...]


class CachedBPE:
    """A tokenizer that encodes text by sentence and word and caches their ids.

    Exact, not an estimate: byte-level BPE merges only within the pre-tokens of GPT-2's pattern, and no pre-token
    continues after white space that follows a non-space character. So a text is split into lines, these into sentences
    and words, each with the space or line break before it, and the concatenated ids equal those of the whole text.
    A plain word is further split into its pre-tokens, because random keys and numbers are new words made of few
    different pre-tokens.
    """

    def __init__(self, tokenizer: Any, cut: Callable[[str], list[str]]) -> None:
        """Wrap a tokenizer; :meth:`from_tokenizer` checks whether that is exact."""
        self._tokenizer = tokenizer
        self._cut = cut
        # Never cleared in place, because another thread may be reading: a full cache is replaced by a new dict.
        self._sentences: dict[str, Tokens] = {}
        self._words: dict[str, Tokens] = {}
        self._pre_tokens: dict[str, Tokens] = {}
        self._cached_chars = 0

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> CachedBPE | None:
        """Wrap a tokenizer if it is byte-level BPE with GPT-2's pattern; return None for any other.

        Texts of other tokenizers are encoded whole.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or getattr(tokenizer, "split_special_tokens", False):
            return None
        try:
            layout = msgspec.json.decode(backend.to_str(), type=_Layout)
        except (TypeError, msgspec.MsgspecError):
            return None
        return cls(tokenizer, _plain_pre_tokens(layout)) if _cuts_at_white_space(layout) else None

    def ids(self, text: str) -> list[Tokens]:
        """Return the ids of a text in order, one tuple per sentence or word, without special tokens."""
        sentences = list(_sentences(text))
        cached = self._sentences
        missing = list(set(sentences).difference(cached))
        if not missing:
            return list(map(cached.__getitem__, sentences))
        fresh = dict(zip(missing, self._by_words(missing), strict=True))
        ids: list[Tokens] = []
        for sentence in sentences:
            if sentence in fresh:
                ids += fresh[sentence]
            else:
                ids.append(cached[sentence])
        cacheable = {sentence: _concat(words) for sentence, words in fresh.items() if len(sentence) <= _MAX_LINE}
        self._cached_chars += sum(map(len, cacheable))
        if self._cached_chars > _MAX_SENTENCE_CHARS:
            self._sentences, self._cached_chars = {}, 0
        self._sentences.update(cacheable)
        return ids

    def _by_words(self, sentences: list[str]) -> list[list[Tokens]]:
        """Return the ids of each word of each sentence; new words are encoded in one call."""
        rows = [sentence.split(" ") for sentence in sentences]
        openings = [row.pop(0) for row in rows]
        cached = self._words
        missing = set(chain.from_iterable(rows)).difference(cached)
        trailing_space = {word for word in missing if not _ends_without_space(word)}
        for index, (opening, row) in enumerate(zip(openings, rows, strict=True)):
            # A space after white space is not a boundary. Two in a row are rare, and this path is slower.
            if opening[-1:].isspace() or (trailing_space and not trailing_space.isdisjoint(row[:-1])):
                openings[index], *rows[index] = _CUT.split(sentences[index])
                missing.update(set(rows[index]).difference(cached))
        first_words = list(set(openings))
        encoded = iter(self._by_pre_tokens([*(f" {word}" for word in missing), *first_words]))
        fresh = dict(zip(missing, encoded, strict=False))
        first_ids = dict(zip(first_words, encoded, strict=True))
        self._words = _updated(cached, ((word, ids) for word, ids in fresh.items() if _ends_without_space(word)))
        looked_up = _look_up(rows, cached, fresh)
        return [[first_ids[opening], *ids] for opening, ids in zip(openings, looked_up, strict=True)]

    def _by_pre_tokens(self, words: list[str]) -> list[Tokens]:
        """Return the ids of each word, concatenated from those of its pre-tokens."""
        cut = list(map(self._cut, words))
        cached = self._pre_tokens
        missing = list(set(chain.from_iterable(cut)).difference(cached))
        fresh: dict[str, Tokens] = {}
        if missing:
            encoded = self._tokenizer(missing, add_special_tokens=False, return_attention_mask=False, verbose=False)
            fresh = dict(zip(missing, map(tuple, encoded["input_ids"]), strict=True))
            self._pre_tokens = _updated(cached, fresh.items())
        return list(map(_concat, _look_up(cut, cached, fresh)))


def _sentences(text: str) -> Iterator[str]:
    """Split a text into lines, and long lines into sentences, at white space after a non-space character."""
    lines: list[str] = []
    for line in text.split("\n"):
        if not lines:
            lines.append(line)
        elif _ends_without_space(lines[-1]):
            lines.append(f"\n{line}")
        else:
            lines[-1] += f"\n{line}"
    for line in lines:
        if len(line) <= _MAX_LINE or not 0 < _MIN_SENTENCE * line.count(". ") < len(line):
            yield line
            continue
        first_sentence, *middle_sentences, last_sentence = line.split(". ")
        yield f"{first_sentence}."
        for sentence in middle_sentences:
            yield f" {sentence}."
        yield f" {last_sentence}"


def _ends_without_space(text: str) -> bool:
    """Whether white space after this text is a boundary."""
    return bool(text) and not text[-1].isspace()


def _concat(parts: Iterable[Tokens]) -> Tokens:
    return tuple(chain.from_iterable(parts))


def _look_up(rows: list[list[str]], cached: dict[str, Tokens], fresh: dict[str, Tokens]) -> list[list[Tokens]]:
    """Return cached or freshly encoded ids; most are cached by now."""
    try:
        return [list(map(cached.__getitem__, row)) for row in rows]
    except KeyError:
        return [[fresh[word] if word in fresh else cached[word] for word in row] for row in rows]


def _updated(cached: dict[str, Tokens], fresh: Iterable[tuple[str, Tokens]]) -> dict[str, Tokens]:
    """Return the cache with the fresh entries added; a new one when it is full."""
    cache = {} if len(cached) > _MAX_ENTRIES else cached
    cache.update((word, ids) for word, ids in fresh if len(word) <= _MAX_WORD)
    return cache


def flatten(chunks: Iterable[Sequence[int]]) -> list[int]:
    """Concatenate chunks of ids."""
    return list(chain.from_iterable(chunks))


class _Added(msgspec.Struct):
    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Model(msgspec.Struct):
    type: str | None = None
    dropout: float | None = None


class _Layout(msgspec.Struct):
    """The settings in a ``tokenizer.json``, without the vocabulary."""

    model: _Model
    added_tokens: list[_Added]
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The pre-tokenizers, in order."""
        cut = self.pre_tokenizer or {}
        steps: list[dict[str, Any]] = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
        return steps


def _cuts_at_white_space(layout: _Layout) -> bool:
    *earlier_steps, last_step = layout.steps
    return bool(
        (layout.normalizer or {}).get("type") in (None, "NFC")
        and layout.model.type == "BPE"
        and not layout.model.dropout
        and last_step.get("type") == "ByteLevel"
        and last_step.get("use_regex", True)
        and not last_step.get("add_prefix_space")
        and all(step.get("type") == "Digits" for step in earlier_steps)
        and not any(sign in token.content for token in layout.added_tokens for sign in " \n")
        and not any(token.lstrip or token.rstrip or token.single_word for token in layout.added_tokens)
    )


def _plain_pre_tokens(layout: _Layout) -> Callable[[str], list[str]]:
    """Return a function that splits a plain word (with the space before it) into pre-tokens and keeps others whole.

    Plain words consist of ASCII letters, punctuation and single line breaks, and digits if the tokenizer splits them
    one by one. Excluded are apostrophes, which the pattern joins with letters, and characters of special tokens.
    """
    excluded = {"'", *chain.from_iterable(token.content for token in layout.added_tokens)}
    marks = re.escape("".join(sorted(set(string.punctuation) - excluded)))
    splits_digits = any(step.get("individual_digits") for step in layout.steps) and not excluded.intersection(
        string.digits
    )
    if not marks:
        return lambda word: [word]
    run = f"[A-Za-z{marks}{'0-9' if splits_digits else ''}]+"
    is_plain = re.compile(rf" ?{run}(?:\n{run})*").fullmatch
    split_pre_tokens = re.compile(rf" ?[A-Za-z]+| ?[{marks}]+|[0-9]|\n| ").findall
    return lambda word: split_pre_tokens(word) if is_plain(word) else [word]
