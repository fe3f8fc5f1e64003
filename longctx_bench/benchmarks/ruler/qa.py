"""RULER's question answering: the documents that hold the answer among documents that do not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from longctx_bench.benchmarks.base import Benchmark, ContextTooShort, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch
from longctx_bench.core.specs import Source
from longctx_bench.core.types import Example

WINDOW = 256
"""Prompts are made of whole documents: they lie in (L - WINDOW, L] tokens."""
_MISSES = 200
"""Documents in a row that are tried for a gap before the gap is left."""


@dataclass(frozen=True)
class Question:
    """A question with its documents, as indices into the collection."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    """Documents needed to answer; always in the prompt."""
    near: tuple[int, ...]
    """Documents on the same subject: the first distractors."""


class QuestionAnswering(Benchmark):
    """SQuAD or HotpotQA questions over numbered documents, filled up with distractors (RULER, section 3)."""

    id: ClassVar[str] = "ruler-question-answering"

    documents: Source
    format: Literal["squad", "hotpotqa"]

    def examples(
        self, encoder: PromptEncoder, length: int, max_new_tokens: int, n: int, seed: int
    ) -> Iterator[Example]:
        """Yield examples as :meth:`Benchmark.examples` says; the window is ``WINDOW`` tokens.

        Questions come in an order shuffled by the seed; one whose gold documents do not fit is passed over.
        """
        questions, documents = read_collection(fetch(self.documents), self.format)
        writer = _Writer(encoder, documents, length - max_new_tokens)
        order = list(range(len(questions)))
        random.Random(f"qa {seed}").shuffle(order)
        made = turn = 0
        while made < n:
            before = made
            for place in order:
                if made == n:
                    return
                filled = writer.fill(questions[place], random.Random(f"qa {seed} {turn} {place}"))
                if filled is not None:
                    yield self._example(encoder, questions[place], filled, max_new_tokens, made)
                    made += 1
            turn += 1
            if made == before:
                raise ContextTooShort(
                    f"qa ({self.format}) at {length}: no question's documents fit; choose a larger length"
                )

    def _example(
        self, encoder: PromptEncoder, question: Question, filled: _Filled, max_new_tokens: int, index: int
    ) -> Example:
        return Example(
            id=example_id(index),
            prompt=filled.prompt,
            answer_prefix=prompt_templates.QA_ANSWER,
            references=question.answers,
            depths=filled.depths,
            n_tokens=filled.n_tokens,
            max_new_tokens=max_new_tokens,
        )


@dataclass(frozen=True)
class _Filled:
    prompt: str
    n_tokens: int
    depths: tuple[float, ...]


class _Writer:
    """Fills prompts for one encoder and budget, remembering how long each document is."""

    def __init__(self, encoder: PromptEncoder, documents: tuple[str, ...], budget: int) -> None:
        self._encoder = encoder
        self._documents = documents
        self._budget = budget
        self._sizes: dict[int, int] = {}

    def fill(self, question: Question, rng: random.Random) -> _Filled | None:
        """Return the prompt, or None when the gold documents alone do not fit."""
        chosen = list(question.gold)
        filled = self._write(question, chosen, rng.random())
        if filled.n_tokens > self._budget:
            return None
        order = rng.random()
        distractors = self._distractors(question, rng)
        free = self._budget - filled.n_tokens
        while free >= WINDOW:
            before = len(chosen)
            chosen += self._take(distractors, free)
            filled = self._write(question, chosen, order)
            while filled.n_tokens > self._budget:
                # Sizes are measured document by document; together they may take a few tokens more.
                chosen.pop()
                filled = self._write(question, chosen, order)
            if len(chosen) == before:
                break
            free = self._budget - filled.n_tokens
        return filled

    def _distractors(self, question: Question, rng: random.Random) -> Iterator[int]:
        """Yield documents on the same subject first, then any others, in random order, round and round."""
        used = {*question.gold, *question.near}
        yield from rng.sample(question.near, len(question.near))
        tried = set(used)
        total = len(self._documents)
        while len(tried) < total:
            document = rng.randrange(total)
            if document not in tried:
                tried.add(document)
                yield document
        others = [document for document in range(total) if document not in question.gold]
        while others:
            yield from rng.sample(others, len(others))

    def _take(self, distractors: Iterator[int], free: int) -> list[int]:
        taken: list[int] = []
        misses = 0
        while free >= WINDOW // 4 and misses < _MISSES:
            document = next(distractors, None)
            if document is None:
                break
            if self._size(document) <= free:
                taken.append(document)
                free -= self._size(document)
            else:
                misses += 1
        return taken

    def _size(self, document: int) -> int:
        if document not in self._sizes:
            numbered = prompt_templates.DOCUMENT.format(i=100, document=self._documents[document])
            self._sizes[document] = self._encoder.size(numbered + "\n\n")
        return self._sizes[document]

    def _write(self, question: Question, chosen: list[int], order: float) -> _Filled:
        # Every example has its own order: upstream's fixed one ties the gold document's depth to the length.
        places = list(range(len(chosen)))
        random.Random(order).shuffle(places)
        ordered = [chosen[place] for place in places]
        blocks = [prompt_templates.DOCUMENT.format(i=i, document=self._documents[d]) for i, d in enumerate(ordered, 1)]
        context = "\n\n".join(blocks)
        starts = [sum(len(block) + 2 for block in blocks[: ordered.index(gold)]) for gold in question.gold]
        prompt = prompt_templates.QA_PROMPT.format(context=context, query=question.text)
        depths = tuple(round(100 * start / len(context), 2) for start in sorted(starts))
        return _Filled(prompt, self._encoder.count(prompt, prompt_templates.QA_ANSWER), depths)


@lru_cache(maxsize=2)
def read_collection(path: Path, kind: Literal["squad", "hotpotqa"]) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """Read SQuAD 2.0 or HotpotQA (distractor) JSON into questions and the collection of all their documents.

    Raises:
        UserError: the file is not that dataset's JSON.
    """
    try:
        data = msgspec.json.decode(path.read_bytes())
        return _squad(data) if kind == "squad" else _hotpotqa(data)
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a {kind} file ({type(error).__name__}: {error})") from error


def _squad(data: Any) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    documents = sorted({paragraph["context"] for article in data["data"] for paragraph in article["paragraphs"]})
    number = {document: index for index, document in enumerate(documents)}
    questions = []
    for article in data["data"]:
        article_documents = {number[paragraph["context"]] for paragraph in article["paragraphs"]}
        for paragraph in article["paragraphs"]:
            gold = number[paragraph["context"]]
            near = tuple(sorted(article_documents - {gold}))
            for asked in paragraph["qas"]:
                if not asked["is_impossible"]:
                    answers = tuple(answer["text"] for answer in asked["answers"])
                    questions.append(Question(asked["question"], answers, (gold,), near))
    return tuple(questions), tuple(documents)


def _hotpotqa(data: Any) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    contexts = [[(title, f"{title}\n{''.join(paragraph)}") for title, paragraph in row["context"]] for row in data]
    documents = sorted({text for context in contexts for _, text in context})
    number = {text: index for index, text in enumerate(documents)}
    questions = []
    for row, context in zip(data, contexts, strict=True):
        supporting = {title for title, _ in row["supporting_facts"]}
        own = {title: number[text] for title, text in context}
        gold = tuple(sorted(index for title, index in own.items() if title in supporting))
        near = tuple(sorted(index for title, index in own.items() if title not in supporting))
        questions.append(Question(row["question"], (row["answer"],), gold, near))
    return tuple(questions), tuple(documents)
