"""``ruler@paper``: common words, frequent words and question answering."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.ruler import prompt_templates, word_lists
from longctx_bench.benchmarks.ruler_upstream.base import (
    SHORT,
    UpstreamBenchmark,
    UpstreamError,
    UpstreamRun,
    UpstreamSample,
    percent,
)
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import Source

_COMMON = 10
_WORD_LETTERS = 6
_ZETA_2 = math.pi**2 / 6
"""Riemann's zeta at upstream's alpha of 2.0, to the last bit what scipy.special.zeta gives."""


class UpstreamCommonWords(UpstreamBenchmark):
    """scripts/data/synthetic/common_words_extraction.py: a numbered list, after one worked example.

    Its faults: at 4,096 tokens the task itself changes, from 6 repetitions against 1 to 30 against 3; the order
    of the list depends on its length and the seed alone, so that the common words stand at the same places in
    prompts of one size; a prompt that comes out too long loses ten words; below some 800 tokens it never ends.

    Beyond the 8,166 wonderwords upstream draws from json/english_words.json, which its repository holds as a
    Git LFS pointer; ``english_words`` takes that file from whoever has it.
    """

    id: ClassVar[str] = "ruler-upstream-common-words"
    references_from_data: ClassVar[bool] = False

    common_repeats: int = Field(default=30, ge=1)
    uncommon_repeats: int = Field(default=3, ge=1)
    english_words: Source | None = None

    def title(self) -> str:
        """Name the task in messages."""
        return "cwe"

    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Draw samples as sys_word_pair_random does."""
        draw = partial(self._draw, run, run.shuffled(word_lists.all_words()))
        per_word = run.size(draw(4096)) / 4096
        upper_bound = max(int(run.length // per_word) * 2, 20)
        words = run.largest(lambda words: run.size(draw(words)), 10, upper_bound)
        while True:
            yield run.fitting(draw, words, 10)

    def _draw(self, run: UpstreamRun, pool: list[str], words: int) -> UpstreamSample:
        """Draw one sample as generate_input_output does: the worked example first."""
        if run.length < SHORT:
            example, answers = self._list(run, pool, 20, 3, 1)
            listed, outputs = self._list(run, pool, words, 6, 1)
        else:
            example, answers = self._list(run, pool, 40, 10, 3)
            listed, outputs = self._list(run, pool, words, self.common_repeats, self.uncommon_repeats)
        shot = (
            f"{prompt_templates.CWE_PROMPT.format(context=example)}{prompt_templates.CWE_ANSWER} {_numbered(answers)}\n"
        )
        return UpstreamSample(
            shot + prompt_templates.CWE_PROMPT.format(context=listed), prompt_templates.CWE_ANSWER, tuple(outputs)
        )

    def expected_completion(self, references: Sequence[str]) -> str:
        """Number the words as the worked example does."""
        return _numbered(list(references))

    def _list(self, run: UpstreamRun, pool: list[str], words: int, common: int, uncommon: int) -> tuple[str, list[str]]:
        """Draw a list and its most common words as get_example does."""
        drawn = run.sample(pool if words <= len(pool) else self._english(run), words)
        common_words, others = drawn[:_COMMON], drawn[_COMMON:]
        return _numbered(run.shuffled(common_words * common + others * uncommon)), common_words

    def _english(self, run: UpstreamRun) -> list[str]:
        if self.english_words is None:
            raise ContextTooShort(
                f"{run.what} at {run.length}: needs more words than wonderwords has, from RULER's english_words.json "
                f"(Git LFS); name that file in the task's 'english_words', or drop '@paper'"
            )
        return _english_words(fetch(self.english_words))


class UpstreamFrequentWords(UpstreamBenchmark):
    """scripts/data/synthetic/freq_words_extraction.py: coded words with Zipf-like counts, alpha 2.0.

    Its faults: sizes go in steps of a 32nd of the length, from one search on other words; the order of the
    text depends on its size and the seed alone.
    """

    id: ClassVar[str] = "ruler-upstream-frequent-words"
    references_from_data: ClassVar[bool] = False

    def title(self) -> str:
        """Name the task in messages."""
        return "fwe"

    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Draw samples as sys_kwext does."""
        budget = run.length - run.new_tokens
        if budget < 50:
            raise UpstreamError("fails on prompts of fewer than 50 tokens")
        _, words = self._draw(run, budget, 0)
        while True:
            yield self._draw(run, budget, words)[0]

    def _draw(self, run: UpstreamRun, budget: int, words: int) -> tuple[UpstreamSample, int]:
        """Draw a vocabulary and size its text as generate_input_output does; 0 words or fewer: grow it."""
        coded = self._vocabulary(run, budget // 50)
        step = budget // 32
        if words > 0:
            draft = self._text(run, coded, words)
            while run.size(draft) > budget:
                if words <= 0:
                    raise UpstreamError("tries for ever (not even a text without words fits)")
                words -= step
                draft = self._text(run, coded, words)
            return draft, words
        words = budget // _WORD_LETTERS
        while run.size(self._text(run, coded, words)) < budget:
            words += step
        words -= step
        return self._text(run, coded, words), words

    def expected_completion(self, references: Sequence[str]) -> str:
        """Join the words as the question names them: one after another."""
        return ", ".join(references)

    def _vocabulary(self, run: UpstreamRun, size: int) -> list[str]:
        def letters() -> str:
            return "".join(run.rng.choices(string.ascii_lowercase, k=_WORD_LETTERS))

        words = [letters() for _ in range(size)]
        while len(set(words)) < size:
            words.append(letters())
        coded = run.shuffled(sorted(set(words)))
        coded[0] = "..."
        return coded

    def _text(self, run: UpstreamRun, coded: list[str], words: int) -> UpstreamSample:
        counts = words * (np.arange(1, len(coded) + 1) ** -2.0) / _ZETA_2
        repeated = [word for word, times in zip(coded, counts.astype(int), strict=True) for _ in range(times)]
        prompt = prompt_templates.FWE_PROMPT.format(context=" ".join(run.shuffled(repeated)))
        return UpstreamSample(prompt, prompt_templates.FWE_ANSWER, tuple(coded[1:4]))


class UpstreamQuestionAnswering(UpstreamBenchmark):
    """scripts/data/synthetic/qa.py: SQuAD or HotpotQA questions, in the file's order, over numbered documents.

    Its faults: the number of documents is searched with the first question and used for all, and drops by ten
    when a prompt is too long, hence prompts of half the length and less; the order of the documents depends on
    their number and the seed alone, so that SQuAD's gold document, always the first before shuffling, has one
    place per number of documents; a HotpotQA question keeps its own ten documents, so that a number that drops
    below ten can never be drawn and the script never ends.
    """

    id: ClassVar[str] = "ruler-upstream-question-answering"

    documents: Source
    format: Literal["squad", "hotpotqa"]

    def title(self) -> str:
        """Name the task in messages."""
        return f"qa ({self.format})"

    def samples(self, run: UpstreamRun) -> Iterator[UpstreamSample]:
        """Draw samples as generate_samples does."""
        collection = _collection(fetch(self.documents), self.format)
        first = partial(_ask, run, collection, 0)
        per_document = run.size(first(10)) / 10
        upper_bound = max(int((run.length / per_document) * 3), 20)
        documents = run.largest(lambda documents: run.size(first(documents)), 10, upper_bound)
        for index in count():
            if index >= len(collection.questions):
                raise UpstreamError(f"tries for ever (there are only {index} questions)")
            yield run.fitting(partial(_ask, run, collection, index), documents, 10)


@dataclass(frozen=True)
class _Question:
    text: str
    answers: tuple[str, ...]
    required: list[int]
    """Documents that come with the question; all are in the prompt."""
    more: list[int]
    """The other documents of the same article."""
    gold: frozenset[int]
    """Those that hold the answer."""


@dataclass(frozen=True)
class _Collection:
    questions: list[_Question]
    documents: list[str]


def _ask(run: UpstreamRun, collection: _Collection, index: int, number: int) -> UpstreamSample:
    """Draw the documents of one question as generate_input_output does."""
    question, total = collection.questions[index], len(collection.documents)
    required, more = question.required, question.more
    if number >= total:
        chosen = [index % total for index in range(number)]
    elif number - len(required) > len(more):
        used = {*required, *more}
        others = [document for document in range(total) if document not in used]
        chosen = required + more + run.sample(others, max(0, number - len(required) - len(more)))
    else:
        chosen = required + run.sample(more, number - len(required))
    ordered = run.shuffled(chosen)
    blocks = [prompt_templates.DOCUMENT.format(i=i, document=collection.documents[d]) for i, d in enumerate(ordered, 1)]
    context = "\n\n".join(blocks)
    starts, start = [], 0
    for document, block in zip(ordered, blocks, strict=True):
        if document in question.gold:
            starts.append(percent(start, context))
        start += len(block) + len("\n\n")
    prompt = prompt_templates.QA_PROMPT.format(context=context, query=question.text)
    return UpstreamSample(prompt, prompt_templates.QA_ANSWER, question.answers, tuple(starts))


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


@lru_cache(maxsize=1)
def _english_words(path: Path) -> list[str]:
    try:
        return [str(word) for word in json.loads(path.read_text(encoding="utf-8")).values()]
    except (OSError, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not RULER's english_words.json: expected a JSON object of words") from error


@lru_cache(maxsize=2)
def _collection(path: Path, kind: Literal["squad", "hotpotqa"]) -> _Collection:
    """Read questions and documents in the order of read_squad and read_hotpotqa.

    Raises:
        UserError: the file is not that dataset's JSON.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _squad(data) if kind == "squad" else _hotpotqa(data)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a {kind} file ({type(error).__name__}: {error})") from error


def _squad(data: Any) -> _Collection:
    documents = sorted({paragraph["context"] for article in data["data"] for paragraph in article["paragraphs"]})
    number = {document: index for index, document in enumerate(documents)}
    questions = []
    for article in data["data"]:
        article_documents = [number[paragraph["context"]] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            gold = number[paragraph["context"]]
            more = [document for document in article_documents if document != gold]
            for qa in paragraph["qas"]:
                if not qa["is_impossible"]:
                    answers = tuple(answer["text"] for answer in qa["answers"])
                    questions.append(_Question(qa["question"], answers, [gold], more, frozenset([gold])))
    return _Collection(questions, documents)


def _hotpotqa(data: Any) -> _Collection:
    def document(title: str, paragraph: list[str]) -> str:
        return f"{title}\n{''.join(paragraph)}"

    documents = sorted({document(*entry) for row in data for entry in row["context"]})
    number = {text: index for index, text in enumerate(documents)}
    questions = []
    for row in data:
        titled = [(title, number[document(title, paragraph)]) for title, paragraph in row["context"]]
        supporting = {title for title, _ in row["supporting_facts"]}
        gold = frozenset(index for title, index in titled if title in supporting)
        questions.append(_Question(row["question"], (row["answer"],), [index for _, index in titled], [], gold))
    return _Collection(questions, documents)
