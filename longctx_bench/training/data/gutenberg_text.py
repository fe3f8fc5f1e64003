"""Extraction of a book from a Project Gutenberg file: no header, licence or hard line breaks."""

from __future__ import annotations

import re
from itertools import chain, pairwise

import numpy as np

_MARKER = re.compile(
    r"^[ *]*(START|END) OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)(?:[^*\n]*\n){0,3}?[^*\n]*\*\*\*.*$",
    re.MULTILINE,
)
_SMALL_PRINT = re.compile(r"^.*\*END\W*THE SMALL PRINT!.*$", re.MULTILINE)
"""End of the header in files of the 1990s, which have no start marker."""
_CLOSING_LINE = re.compile(
    r"^ *\**(?:End of (?:the |this )?|The )?Project Gutenberg(?:'s|\u2019s| e(?:book|text) of| of)", re.I
)
_CREDITS = re.compile(
    r"project gutenberg|pgdp\.net|gutenberg\.(?:org|net)"
    r"|^ *(?:\[?(?:this )?e-?(?:text|book)|produced|transcribed|scanned)[\w ]* (?:by|from|was) ",
    re.IGNORECASE,
)
_CREDIT_PARAGRAPHS = 12
"""Credits are removed from this many paragraphs at each end of a book; further in, the words are the author's."""
_NOT_FREE = ("copyrighted project gutenberg", "by world library")
"""Marks of the few files that are licensed for personal use only."""
_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_OPENING = "\"'\u201c\u2018_"
_WORD = re.compile(r"[a-z]+")
_FREQUENT_WORDS = frozenset(("the", "of", "and", "to"))
_MIN_FREQUENT_SHARE = 0.07
"""Minimum share of these four words in English: 15 % in prose, 9 % in terse verse, below 1 % in other languages."""
MIN_CHARACTERS = 8_000
"""A shorter file is a fragment."""


def decode_book(data: bytes) -> str | None:
    """Return a file's text, or None if it is not text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    num_control = sum(text.count(character) for character in "\0\ufffd\x01\x02\x03\x04\x05\x06")
    if num_control > len(text) // 1000:
        return None
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def is_free(text: str) -> bool:
    """Whether a file does not claim a copyright."""
    beginning = text[:40_000].lower()
    return not any(words in beginning for words in _NOT_FREE)


def is_english(text: str) -> bool:
    """Whether a text is English, by its most frequent words."""
    words = _WORD.findall(text[len(text) // 4 : len(text) // 4 + 400_000].lower())
    return sum(map(_FREQUENT_WORDS.__contains__, words)) > _MIN_FREQUENT_SHARE * len(words)


def extract_book(text: str) -> str:
    """Return the book in a file: one line per paragraph, a blank line between paragraphs, verse unchanged."""
    kept = list(chain.from_iterable(map(_without_credits, _volumes(text))))
    lengths = [len(line) for part in kept for line in part.split("\n")]
    if not lengths:
        return ""
    # Hard-wrapped lines reach the page width; verse and tables rarely do.
    width = float(np.percentile(lengths, 90))
    return "\n\n".join(_unwrapped(part, width) for part in kept).strip()


def _volumes(text: str) -> list[str]:
    """Return the texts between header and licence; a file may hold several volumes, each with its own header."""
    markers = list(_MARKER.finditer(text))
    if any(marker[1] == "START" for marker in markers):
        bounds = [*(marker.start() for marker in markers[1:]), len(text)]
        pairs = zip(markers, bounds, strict=True)
        return [text[marker.end() : bound] for marker, bound in pairs if marker[1] == "START"]
    small_print = list(_SMALL_PRINT.finditer(text, 0, 40_000))
    first = small_print[-1].end() if small_print else 0
    return [text[first : markers[0].start() if markers else len(text)]]


def _without_credits(volume: str) -> list[str]:
    """Return a volume's paragraphs without the credits of the file's producers and its closing line."""
    lines = volume.split("\n")
    # The closing line precedes the end marker or, in old files, the licence itself.
    for index in range(max(len(lines) * 2 // 3, len(lines) - 400), len(lines)):
        if _CLOSING_LINE.match(lines[index]):
            volume = "\n".join(lines[:index])
            break
    paragraphs = [part.rstrip() for part in _BLANK.split(volume) if part.strip()]
    ends = {*range(_CREDIT_PARAGRAPHS), *range(len(paragraphs) - _CREDIT_PARAGRAPHS, len(paragraphs))}
    return [part for index, part in enumerate(paragraphs) if index not in ends or not _CREDITS.search(part)]


def _unwrapped(paragraph: str, width: float) -> str:
    """Join a paragraph's lines if they were hard-wrapped."""
    lines = paragraph.split("\n")
    if len(lines) == 1 or any(line[:1] in " \t" for line in lines[1:]):
        return paragraph
    if len(lines) > 2 and all(line[:1].isupper() or line[:2].strip(_OPENING)[:1].isupper() for line in lines):
        return paragraph
    # In wrapped prose the next line's first word would not have fitted; hand-set pages leave up to a word more.
    room = width - 8
    full = sum(len(line) + 1 + len(after.split(" ", 1)[0]) > room for line, after in pairwise(lines))
    if full < 0.7 * (len(lines) - 1):
        return paragraph
    return " ".join(line.strip() for line in lines)
