"""LongBench's scores, quirks included: each equals the original's to the last digits of a float.

Source: https://github.com/THUDM/LongBench ``LongBench/metrics.py`` and ``LongBench/eval.py``.
"""

from __future__ import annotations

import logging
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.metrics.base import Metric, Scorer, never_final
from longctx_bench.metrics.rouge import MAX_STEPS_ZH, google_rouge_l, rouge_l

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBERS = re.compile(r"\d+")
_COMMENT_MARKS = ("`", "#", "//")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The Chinese signs that upstream removes, as ranges of code points; a few, such as U+300A and U+00B7, stay.
_SIGNS_ZH = (
    *((0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027)),
    *((0x3001, 0x3003), (0x300B, 0x3011), (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F)),
    *((0xFF01, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64)),
)
_PUNCTUATION_ZH = {**_PUNCTUATION, **{code: None for first, last in _SIGNS_ZH for code in range(first, last + 1)}}


def first_line(text: str) -> str:
    """Return the first line that is not empty, as LongBench cuts the predictions of trec, triviaqa, samsum and lsht."""
    return text.lstrip("\n").split("\n")[0]


def _first_line_done(text: str, references: Sequence[str]) -> bool:
    return "\n" in text.lstrip("\n")


def _best(score: Callable[[str, str], float], cut: Callable[[str], str] = str) -> Scorer:
    # Over references, starting from 0: no reference at all scores 0 too.
    def best(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
        return max((float(score(cut(text), reference)) for reference in references), default=0.0)

    return best


def _f1(found: list[str], expected: list[str]) -> float:
    common = (Counter(found) & Counter(expected)).total()
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    # Punctuation goes first and leaves no gap: "a-b" is the word "ab", and "a." loses its stop, then its article.
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _words_zh(text: str) -> list[str]:
    bare = ("".join(word.lower().translate(_PUNCTUATION_ZH).split()) for word in _segmented(text))
    return [word for word in bare if word]


def _segmented(text: str) -> list[str]:
    return list(_jieba().cut(text, cut_all=False))


@lru_cache(maxsize=1)
def _jieba() -> Any:
    try:
        # Its regular expressions are strings with stray backslashes, of which newer Pythons warn at each import.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ImportError as error:
        raise UserError(
            "LongBench's Chinese scores need the package 'jieba': pip install 'longctx-bench[longbench]'"
        ) from error
    # It announces on stderr that it loads its dictionary.
    jieba.setLogLevel(logging.WARNING)
    return jieba


def qa_f1(prediction: str, reference: str) -> float:
    """Return the F1 of two bags of words, without case, punctuation and English articles."""
    return _f1(_words(prediction), _words(reference))


def qa_f1_zh(prediction: str, reference: str) -> float:
    """Return the F1 of two bags of Chinese words, cut by jieba, without case and punctuation.

    Raises:
        UserError: the package jieba is missing.
    """
    return _f1(_words_zh(prediction), _words_zh(reference))


def rouge_l_zh(prediction: str, reference: str) -> float:
    """Return rouge's ROUGE-L of two texts whose words jieba has separated.

    Raises:
        UserError: the package jieba is missing.
    """
    return rouge_l(" ".join(_segmented(prediction)), " ".join(_segmented(reference)), MAX_STEPS_ZH)


def _share_of_numbers(prediction: str, wanted: str) -> float:
    numbers = _NUMBERS.findall(prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def count(prediction: str, reference: str) -> float:
    """Return the share of the numbers in the prediction that are the reference, digit for digit."""
    return _share_of_numbers(prediction, reference)


def retrieval(prediction: str, reference: str) -> float:
    """Return the share of the numbers in the prediction that are the number of the reference's paragraph.

    Raises:
        UserError: the reference names no paragraph.
    """
    return _share_of_numbers(prediction, _number_after("Paragraph ", reference))


def retrieval_zh(prediction: str, reference: str) -> float:
    """Return the same where the reference is Chinese.

    Raises:
        UserError: the reference names no paragraph.
    """
    return _share_of_numbers(prediction, _number_after("段落", reference))


def _number_after(mark: str, reference: str) -> str:
    found = re.search(rf"{mark}(\d+)", reference)
    if not found:
        raise UserError(f"the reference {reference!r} holds no '{mark}' with a number after it")
    return found[1]


def code_similarity(prediction: str, reference: str) -> float:
    """Return how alike the first line of code and the reference are, in hundredths.

    Equals ``fuzz.ratio`` of fuzzywuzzy 0.18.0, which without python-Levenshtein uses the standard library's difflib.
    """
    line = next(filter(_is_code, prediction.lstrip("\n").split("\n")), "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


def _is_code(line: str) -> bool:
    return not any(mark in line for mark in _COMMENT_MARKS)


def _code_line_done(text: str, references: Sequence[str]) -> bool:
    return any(map(_is_code, text.lstrip("\n").split("\n")[:-1]))


def classification(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Return 1 over the number of class names in the text's first line, or 0 when no reference is among them.

    Raises:
        UserError: ``classes`` is empty.
    """
    if not classes:
        raise UserError("longbench_classification needs the names of all classes with each example")
    line = first_line(text)
    return max((_share_of_classes(line, reference, classes) for reference in references), default=0.0)


def _share_of_classes(line: str, reference: str, classes: Sequence[str]) -> float:
    named = [name for name in classes if name in line]
    place = 0
    while place < len(named):
        if named[place] in reference and named[place] != reference:
            # A name within the right name does not count against it. Upstream removes it from the list that it walks:
            # the next one takes its place and is never looked at.
            named.remove(named[place])
        place += 1
    return 1.0 / len(named) if reference in named else 0.0


def _metric(
    name: str, score: Scorer, upstream: str, is_final: Callable[[str, Sequence[str]], bool] = never_final
) -> Metric:
    return Metric(f"longbench_{name}", score, is_final, False, f"THUDM/LongBench LongBench/metrics.py {upstream}")


LONGBENCH_METRICS = (
    _metric("qa_f1", _best(qa_f1), "qa_f1_score"),
    _metric("qa_f1_first_line", _best(qa_f1, first_line), "qa_f1_score of eval.py's first line", _first_line_done),
    _metric("qa_f1_zh", _best(qa_f1_zh), "qa_f1_zh_score"),
    _metric("rouge_l", _best(rouge_l), "rouge_score"),
    _metric("rouge_l_first_line", _best(rouge_l, first_line), "rouge_score of eval.py's first line", _first_line_done),
    _metric("rouge_l_zh", _best(rouge_l_zh), "rouge_zh_score"),
    _metric("classification", classification, "classification_score of eval.py's first line", _first_line_done),
    _metric("retrieval", _best(retrieval), "retrieval_score"),
    _metric("retrieval_zh", _best(retrieval_zh), "retrieval_zh_score"),
    _metric("count", _best(count), "count_score"),
    _metric("code_sim", _best(code_similarity), "code_sim_score", _code_line_done),
    Metric("google_rouge_l", _best(google_rouge_l), never_final, False, "google-research rouge_score rougeL"),
)
