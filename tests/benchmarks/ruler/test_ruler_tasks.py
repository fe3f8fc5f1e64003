"""Examples of all tasks: exact length, purity, wording, depths, answers."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.haystack import essay_words, excerpt, excerpt_sentences, fit_to_budget, split_sentences
from longctx_bench.benchmarks.niah import grid_depth
from longctx_bench.benchmarks.ruler.aggregation import FrequentWords, _shuffle, _zeta
from longctx_bench.benchmarks.ruler.word_lists import uuid4
from longctx_bench.core.types import Example
from longctx_bench.registry import Registry

REGISTRY = Registry()
TASKS = [*REGISTRY.groups["ruler"], "niah", "niah_grid", "niah_multikey"]


def examples(task: str, encoder: Any, length: int, n: int = 2, seed: int = 42) -> list[Example]:
    spec = REGISTRY.tasks[task]
    return list(REGISTRY.benchmark(spec).examples(encoder, length, spec.max_new_tokens, n, seed))


@pytest.mark.slow
@pytest.mark.parametrize("length", [512, 640, 1000, 1024, 2048, 4096, 8192, 16384, 32768])
@pytest.mark.parametrize("family", ["smollm2", "mistral"])
@pytest.mark.parametrize("task", TASKS)
def test_length_is_exact(task: str, family: str, length: int, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(f"{family}_encoder")
    window = 256 if task.startswith("qa") else 64
    for example in examples(task, encoder, length, n=3 if length <= 8192 else 1):
        assert encoder.count(example.prompt, example.answer_prefix) == example.n_tokens
        assert length - window < example.n_tokens + example.max_new_tokens <= length
        assert example.prompt.count("\ufffd") == 0


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_pure_functions_of_their_index(task: str, smollm2_encoder: Any) -> None:
    three, five = examples(task, smollm2_encoder, 1024, 3), examples(task, smollm2_encoder, 1024, 5)
    assert [e.hash for e in three] == [e.hash for e in five[:3]]
    assert len({e.hash for e in five}) == 5
    assert not {e.hash for e in five} & {e.hash for e in examples(task, smollm2_encoder, 1024, 5, seed=43)}


@pytest.mark.parametrize("task", [task for task in TASKS if task.startswith("niah")])
def test_needles_stand_where_the_example_says(task: str, smollm2_encoder: Any) -> None:
    for example in examples(task, smollm2_encoder, 2048, 6):
        asked = [reference for reference in example.references if reference in example.prompt]
        assert asked == list(example.references)
        starts = [match.start() for match in re.finditer("One of the special magic", example.prompt)]
        assert len(starts) >= len(example.depths)
        context = example.prompt.split("afterwards.\n", 1)[1].rsplit("\nWhat", 1)[0]
        if task in {"niah", "niah_grid"}:
            place = 100 * context.index("One of the special") / len(context)
            assert abs(place - example.depths[0]) < 4
        else:
            found = {round(100 * m.start() / len(context), 2) for m in re.finditer("One of the special", context)}
            assert set(example.depths) <= found


def test_a_grid_hides_all_depths_in_one_text(smollm2_encoder: Any) -> None:
    made = examples("niah_grid", smollm2_encoder, 1024, 22)
    needle = re.compile(r" ?One of the special magic numbers for \S+ is: \d+\.")
    texts = [needle.sub("", example.prompt.split("afterwards.\n", 1)[1].rsplit("\nWhat", 1)[0]) for example in made]
    # A word more or less, where a needle takes fewer tokens or more.
    assert len({text.strip()[:2000] for text in texts[:11]}) == 1
    assert texts[0][:500] != texts[11][:500]
    assert len({example.references for example in made}) == 22
    assert sorted(example.depths for example in made[:11]) == sorted(example.depths for example in made[11:])


def test_niah_goes_over_the_grid(smollm2_encoder: Any) -> None:
    depths = [example.depths[0] for example in examples("niah", smollm2_encoder, 512, 12)]
    assert depths[:3] == [50.0, 10.0, 80.0]
    assert sorted(depths[:11]) == [10.0 * place for place in range(11)]
    assert depths[11] == depths[0]
    for points in range(2, 60):
        assert len({grid_depth(index, points) for index in range(7, 7 + points)}) == points


def test_wording_follows_the_number_of_values(smollm2_encoder: Any) -> None:
    [single] = examples("niah_single_2", smollm2_encoder, 512, 1)
    assert single.prompt.startswith("A special magic number is hidden within the following text.")
    assert re.search(r" The special magic number for \S+ mentioned in the provided text is$", single.answer_prefix)
    [several] = examples("niah_multiquery", smollm2_encoder, 640, 1)
    assert several.prompt.startswith("Some special magic numbers are hidden within the following text.")
    assert len(several.references) == 4
    assert several.answer_prefix.count(",") == 3
    assert ", and " in several.answer_prefix


def test_variable_tracking_chains(smollm2_encoder: Any) -> None:
    for example in examples("vt", smollm2_encoder, 1024, 4):
        task = example.prompt.split("Memorize and track")[-1]
        value = re.search(r"assigned the value (\d{5})", task)
        assert value is not None
        names = [re.search(rf"VAR (\w+) = {value[1]}", task)[1]]  # type: ignore[index]
        while following := re.search(rf"VAR (\w+) = VAR {names[-1]} ", task):
            names.append(following[1])
        assert tuple(names) == example.references
        assert list(example.depths) == sorted(example.depths)


@pytest.mark.parametrize("length", [512, 1024, 4096])
def test_common_words_are_the_most_common(length: int, smollm2_encoder: Any) -> None:
    for example in examples("cwe", smollm2_encoder, length, 3):
        listed = example.prompt.split("Memorize the ones that appear most often.\n")[-1].split("\nQuestion:")[0]
        words = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", listed)
        counts = Counter(words).most_common(11)
        assert {word for word, _ in counts[:10]} == set(example.references)
        assert counts[9][1] > counts[10][1]


@pytest.mark.parametrize("length", [512, 1024, 8192])
def test_frequent_words_are_unique_answers(length: int, smollm2_encoder: Any) -> None:
    for example in examples("fwe", smollm2_encoder, length, 3):
        coded = example.prompt.split("coded words. ")[1].split("\nQuestion:")[0].split()
        ranked = Counter(word for word in coded if word != "...").most_common(4)
        assert [word for word, _ in ranked[:3]] == list(example.references)
        assert ranked[0][1] > ranked[1][1] > ranked[2][1] > ranked[3][1]


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_gold_documents_are_there_at_changing_depths(task: str, smollm2_encoder: Any) -> None:
    made = examples(task, smollm2_encoder, 2048, 12)
    assert len({example.depths for example in made}) >= 10
    for example in made:
        assert len(example.depths) == (1 if task == "qa_1" else 2)
        numbers = [int(number) for number in re.findall(r"Document (\d+):\n", example.prompt)]
        assert numbers == list(range(1, len(numbers) + 1))
    if task == "qa_1":
        assert all(any(answer in example.prompt for answer in example.references) for example in made)


@pytest.mark.slow
def test_a_task_that_cannot_fit_says_so(smollm2_encoder: Any) -> None:
    with pytest.raises(ContextTooShort, match=r"vt at 128: the shortest prompt takes \d+ tokens, 98 are"):
        examples("vt", smollm2_encoder, 128, 1)
    with pytest.raises(ContextTooShort, match="no question's documents fit"):
        examples("qa_2", smollm2_encoder, 120, 1)


def test_a_collection_without_distractors_ends(smollm2_encoder: Any, tmp_path: Path) -> None:
    paragraph = {"context": "The mill stood by the river. " * 20}
    paragraph["qas"] = [{"question": "Where?", "is_impossible": False, "answers": [{"text": "by the river"}]}]  # type: ignore[assignment]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    registry = Registry(local_data={"ruler-squad": file})
    spec = registry.tasks["qa_1"]
    [example] = registry.benchmark(spec).examples(smollm2_encoder, 4096, spec.max_new_tokens, 1, 42)
    assert example.prompt.count("Document ") == 1


class Words:
    """An encoder of one token a word, so that a document is as long in a prompt as by itself."""

    def size(self, text: str) -> int:
        return len(text.split())

    def count(self, prompt: str, answer_prefix: str) -> int:
        return self.size(prompt) + self.size(answer_prefix)


def test_a_prompt_may_fill_its_budget_to_the_last_token(tmp_path: Path) -> None:
    asked = {"question": "Where?", "is_impossible": False, "answers": [{"text": "by the river"}]}
    paragraphs = [{"context": "gold " * 20, "qas": [asked]}, {"context": "other " * 298, "qas": []}]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph]} for paragraph in paragraphs]}))
    registry = Registry(local_data={"ruler-squad": file})
    spec = registry.tasks["qa_1"]

    def example(budget: int) -> Example:
        length = budget + spec.max_new_tokens
        return next(iter(registry.benchmark(spec).examples(Words(), length, spec.max_new_tokens, 1, 42)))  # type: ignore[arg-type]

    alone = example(299).n_tokens
    # "Document 2:" and its words.
    both = alone + 2 + 298
    for budget, taken in ((alone, alone), (both - 1, alone), (both, both), (both + 1, both)):
        assert example(budget).n_tokens == taken
    with pytest.raises(ContextTooShort):
        example(alone - 1)


def test_sentences_give_the_words_back() -> None:
    text = 'He said: "No." Then left! (Why?) 3 of them stayed e.g. here. end'
    assert " ".join(split_sentences(text)) == text
    assert split_sentences(text)[1:3] == ["Then left!", "(Why?)"]


def test_excerpt_goes_round() -> None:
    assert excerpt(("a", "b", "c"), 2, 7) == "c a b c a b c"


@pytest.mark.parametrize("per_unit", [0.3, 1.2, 7.0, 30.0])
def test_fit_lands_in_the_window_from_any_guess(per_unit: float) -> None:
    calls = 0

    def tokens(units: int) -> int:
        nonlocal calls
        calls += 1
        return 100 + int(per_unit * units)

    for guess in (1, 50, 100_000):
        calls = 0
        found = fit_to_budget(tokens, 5000, 64, 0, guess, "test")
        assert 5000 - 64 < found.tokens <= 5000
        assert tokens(found.units) == found.tokens
        assert calls < 12


def test_an_excerpts_sentences_are_those_of_the_whole(tmp_path: Path) -> None:
    for text in ('One. "Two three!" (Four five.) Six? seven 8. Nine... "ten." Last word.', "one. Two three", "No end"):
        file = tmp_path / f"{len(text)}.txt"
        file.write_text(text)
        words = essay_words(file)
        for start in range(2 * len(words)):
            for count in range(1, 3 * len(words)):
                expected = split_sentences(excerpt(words, start, count))
                assert excerpt_sentences(file, start, count) == expected


def test_quicker_draws_are_those_of_the_standard_library() -> None:
    for seed in range(300):
        one, other = random.Random(seed), random.Random(seed)
        assert uuid4(one) == str(uuid.UUID(int=other.getrandbits(128), version=4))
        mixed, expected = [str(number) for number in range(seed)], [str(number) for number in range(seed)]
        _shuffle(mixed, one)
        other.shuffle(expected)
        assert (mixed, one.getstate()) == (expected, other.getstate())


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_zeta_is_scipys(alpha: float) -> None:
    from scipy.special import zeta

    assert _zeta(alpha) == float(zeta(alpha))


def test_coded_words_have_three_letters_at_least() -> None:
    assert FrequentWords(word_length=3).word_length == 3
    with pytest.raises(ValidationError, match="word_length"):
        FrequentWords(word_length=2)
