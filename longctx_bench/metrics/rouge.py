"""ROUGE-L in two implementations: the package rouge 1.0.1, which LongBench uses, and Google's rouge-score.

The two differ: rouge splits sentences at every full stop, keeps case and punctuation and counts each distinct word
once, over the union of all pairs of sentences; rouge-score lowers case, keeps ``a-z0-9`` alone and counts every word of
one longest common subsequence.

rouge retraces the common subsequence of two sentences by recursion, one frame per step, and LongBench takes any
exception for a score of 0. So long sentences score 0 there, and must score 0 here, wherever this code is called from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Found by running LongBench's eval.py as a script on sentences of growing length, under Python 3.11 and its default
# recursion limit of 1000: the steps of the path, the one that ends it included, that still gave a score.
MAX_STEPS = 991
# LongBench's Chinese score calls the English one, which costs a frame.
MAX_STEPS_ZH = MAX_STEPS - 1

# The last mismatch looks its neighbours up in a dict, where comparing integers that are not the same object takes one
# more level than the frame that follows. CPython has one object for each integer up to this one.
_LARGEST_SHARED_INT = 256


def rouge_l(prediction: str, reference: str, max_steps: int = MAX_STEPS) -> float:
    """Return ROUGE-L's F-measure as rouge 1.0.1 does with ``exclusive=True``, in [0, 1].

    Args:
        prediction: the model's text; words are what white space separates, sentences what full stops separate.
        reference: the text to compare with.
        max_steps: the longest path through the table of two sentences that does not end in 0.

    Source: https://github.com/pltrdy/rouge ``rouge_l_summary_level``.
    """
    predicted, expected = _sentences(prediction), _sentences(reference)
    if not predicted or not expected:
        return 0.0
    union: set[str] = set()
    for reference_sentence in expected:
        for sentence in predicted:
            common = _common_words(reference_sentence, sentence, max_steps)
            if common is None:
                return 0.0
            union |= common
    precision = len(union) / len({word for sentence in predicted for word in sentence})
    recall = len(union) / len({word for sentence in expected for word in sentence})
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    # White space between two full stops is a sentence of one empty word, which counts as a word.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _common_words(reference: list[str], prediction: list[str], max_steps: int) -> set[str] | None:
    """Return the words on rouge's path through the table of two sentences, or None where rouge runs out of stack.

    Of several longest common subsequences it is the path that decides, so ties are broken as there: a step to the left
    unless the cell above is greater.
    """
    if min(len(reference), len(prediction)) + 1 > max_steps:
        return None
    table = _lcs_table(reference, prediction)
    words: set[str] = set()
    row, column, steps = len(reference), len(prediction), 1
    while row and column:
        if reference[row - 1] == prediction[column - 1]:
            words.add(reference[row - 1])
            row, column = row - 1, column - 1
        elif table[row - 1, column] > table[row, column - 1]:
            row -= 1
        else:
            column -= 1
            if not column and row > _LARGEST_SHARED_INT:
                steps += 1
        steps += 1
    return words if steps <= max_steps else None


def _lcs_table(first: list[str], second: list[str]) -> NDArray[np.int16]:
    """Return the lengths of the longest common subsequences of all pairs of prefixes.

    Returns:
        Shape (words of ``first`` + 1, words of ``second`` + 1).
    """
    import numpy as np

    numbers: dict[str, int] = {}
    rows = [numbers.setdefault(word, len(numbers)) for word in first]
    columns = np.array([numbers.setdefault(word, len(numbers)) for word in second])
    # No length exceeds the shorter sentence, which the stack keeps below a thousand words.
    table = np.zeros((len(first) + 1, len(second) + 1), np.int16)
    for row, word in enumerate(rows, 1):
        above = table[row - 1]
        # A cell is the greatest of the one above, the one to its left and, at a match, the diagonal one plus 1. The
        # left neighbour is the only one in the same row, so a running maximum takes it in.
        np.maximum.accumulate(np.maximum(above[1:], above[:-1] + (columns == word)), out=table[row, 1:])
    return table


def google_rouge_l(prediction: str, reference: str) -> float:
    """Return ROUGE-L's F-measure as Google's rouge-score does without stemming, in [0, 1].

    Raises:
        UserError: the package is missing.

    Source: https://github.com/google-research/google-research/tree/master/rouge ``rougeL``.
    """
    return float(_google_scorer().score(reference, prediction)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _google_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError(
            "google_rouge_l needs the package 'rouge-score': pip install 'longctx-bench[longbench]'"
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=False)
