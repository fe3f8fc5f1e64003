"""A book out of a Project Gutenberg file: without header, licence and hard line breaks."""

from __future__ import annotations

import re
from itertools import chain, pairwise

import numpy as np

_MARKER = re.compile(
    r"^[ *]*(START|END) OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)(?:[^*\n]*\n){0,3}?[^*\n]*\*\*\*.*$",
    re.MULTILINE,
)
_SMALL_PRINT = re.compile(r"^.*\*END\W*THE SMALL PRINT!.*$", re.MULTILINE)
"""Ends the header of the files of the nineties, which have no marker."""
_LAST_LINES = re.compile(
    r"^ *\**(?:End of (?:the |this )?|The )?Project Gutenberg(?:'s|\u2019s| e(?:book|text) of| of)", re.I
)
_CREDITS = re.compile(
    r"project gutenberg|pgdp\.net|gutenberg\.(?:org|net)"
    r"|^ *(?:\[?(?:this )?e-?(?:text|book)|produced|transcribed|scanned)[\w ]* (?:by|from|was) ",
    re.IGNORECASE,
)
_CREDITS_AMONG = 12
"""Paragraphs at each end of a book among which credits are looked for; further in, the words are the author's."""
_NOT_FREE = ("copyrighted project gutenberg", "by world library")
"""A few files are licensed for personal use alone."""
_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_OPENING = "\"'\u201c\u2018_"
_WORD = re.compile(r"[a-z]+")
_FREQUENT = frozenset(("the", "of", "and", "to"))
_LEAST_FREQUENT = 0.07
"""Share of these four among the words of English; 15 % in prose, 9 % in terse verse, under 1 % in other languages."""
SMALLEST = 8_000
"""Characters below which a file is a fragment."""


def decoded(data: bytes) -> str | None:
    """Return a file's text, or None where it is not text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    odd = sum(text.count(character) for character in "\0\ufffd\x01\x02\x03\x04\x05\x06")
    if odd > len(text) // 1000:
        return None
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def is_free(text: str) -> bool:
    """Say whether a file does not name a copyright of its own."""
    beginning = text[:40_000].lower()
    return not any(words in beginning for words in _NOT_FREE)


def is_english(text: str) -> bool:
    """Say whether a text's frequent words are English."""
    words = _WORD.findall(text[len(text) // 4 : len(text) // 4 + 400_000].lower())
    return sum(map(_FREQUENT.__contains__, words)) > _LEAST_FREQUENT * len(words)


def cleaned(text: str) -> str:
    """Return the book that a file holds: paragraphs of one line each, a blank line between them, verse as it is."""
    kept = list(chain.from_iterable(map(_without_credits, _volumes(text))))
    lengths = [len(line) for part in kept for line in part.split("\n")]
    if not lengths:
        return ""
    # Lines reach the width of the page where a typesetter broke them; a verse or a table rarely does.
    width = float(np.percentile(lengths, 90))
    return "\n\n".join(_unwrapped(part, width) for part in kept).strip()


def _volumes(text: str) -> list[str]:
    """Return what stands between header and licence; a file may hold several volumes, each with its own."""
    markers = list(_MARKER.finditer(text))
    if any(marker[1] == "START" for marker in markers):
        bounds = [*(marker.start() for marker in markers[1:]), len(text)]
        pairs = zip(markers, bounds, strict=True)
        return [text[marker.end() : bound] for marker, bound in pairs if marker[1] == "START"]
    small_print = list(_SMALL_PRINT.finditer(text, 0, 40_000))
    first = small_print[-1].end() if small_print else 0
    return [text[first : markers[0].start() if markers else len(text)]]


def _without_credits(volume: str) -> list[str]:
    """Return a volume's paragraphs but for who produced the file and that it ends here."""
    lines = volume.split("\n")
    # The last line may stand before the marker or, in old files, before the licence itself.
    for index in range(max(len(lines) * 2 // 3, len(lines) - 400), len(lines)):
        if _LAST_LINES.match(lines[index]):
            volume = "\n".join(lines[:index])
            break
    paragraphs = [part.rstrip() for part in _BLANK.split(volume) if part.strip()]
    ends = {*range(_CREDITS_AMONG), *range(len(paragraphs) - _CREDITS_AMONG, len(paragraphs))}
    return [part for index, part in enumerate(paragraphs) if index not in ends or not _CREDITS.search(part)]


def _unwrapped(paragraph: str, width: float) -> str:
    """Join a paragraph's lines where they were broken for want of room."""
    lines = paragraph.split("\n")
    if len(lines) == 1 or any(line[:1] in " \t" for line in lines[1:]):
        return paragraph
    if len(lines) > 2 and all(line[:1].isupper() or line[:2].strip(_OPENING)[:1].isupper() for line in lines):
        return paragraph
    # In prose the next line's first word had no room left; pages set by hand leave up to a word more.
    room = width - 8
    full = sum(len(line) + 1 + len(after.split(" ", 1)[0]) > room for line, after in pairwise(lines))
    if full < 0.7 * (len(lines) - 1):
        return paragraph
    return " ".join(line.strip() for line in lines)
