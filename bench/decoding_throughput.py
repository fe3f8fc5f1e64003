"""``python -m bench.decoding_throughput``: answers a second, and what drafts, batches and sharing add."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.results import keep
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.types import Example, Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.metrics import get_metric
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.runner.request_builder import RequestBuilder
from longctx_bench.store.run_store import ResultStore

_NEEDLE = re.compile(r"One of the special magic numbers for (\S+) is: (\d+)\.")
_QUESTIONS = 8


def questions(example: Example, encoder: PromptEncoder, request: Request) -> tuple[list[Example], list[Request]]:
    """Return an example whose haystack is needles with eight other questions, each with its right answer."""
    needles = _NEEDLE.findall(example.prompt)
    [own] = [key for key, value in needles if value == example.references[0]]
    asked, examples = [], []
    for place, (key, value) in enumerate(needles[:: max(1, len(needles) // _QUESTIONS)][:_QUESTIONS]):
        context, last = example.prompt.rsplit("\n", 1)
        prompt, prefix = f"{context}\n{last.replace(own, key)}", example.answer_prefix.replace(own, key)
        name = f"{example.id}-{place}"
        examples.append(replace(example, id=name, prompt=prompt, answer_prefix=prefix, references=(value,)))
        draft = tuple(encoder.continuation(prompt, prefix, value))
        ids = encoder.encode(prompt, prefix)
        asked.append(replace(request, example_id=name, input_ids=ids, drafts=(draft,)))
    return examples, asked


def measure(model: str, length: int, examples: int, device: str, dtype: str) -> Iterator[str]:
    """Answer the same requests one by one, in batches, and in batches with drafts; yield a line for each load."""
    registry = Registry()
    variant = registry.variant(model)
    tasks = registry.select_tasks("niah,niah_multikey_2")
    spec = RunSpec((variant,), tasks, lengths=(length,), limit=examples)
    resolved = variant.resolve()
    folder = resolved.folder
    engine = HFEngine(device, dtype)
    engine.load(folder)
    cache = RequestBuilder(registry, spec)
    with TemporaryDirectory() as nowhere:
        cells = plan(spec, engine, ResultStore(Path(nowhere)), registry)
    for planned in cells:
        contestant = resolved.at(length)
        known, asked = cache.examples(planned, folder), cache.requests(planned, folder, resolved.base)
        what = f"{planned.task.name}, one question a context"
        if planned.task.name == "niah_multikey_2":
            encoder = PromptEncoder(load_tokenizer(folder))
            sets = [questions(*pair) for pair in ((e, encoder, r) for e, r in zip(known, asked, strict=True))]
            known, asked = [e for own, _ in sets for e in own], [r for _, own in sets for r in own]
            what = f"{planned.task.name}, {_QUESTIONS} questions a context"
        named = f"{model}, {length} tokens, {what}"
        yield f"{named}: {_compared(engine, contestant, known, asked, named)}"


def _compared(
    engine: HFEngine, contestant: ModelUnderTest, known: list[Example], asked: list[Request], what: str
) -> str:
    references = {example.id: example.references for example in known}
    rule = get_metric("string_match_all")

    def settled(name: str, text: str) -> bool:
        return rule.is_final(text, references[name])

    def answers(batches: Sequence[Sequence[Request]]) -> dict[str, str]:
        return {item.example_id: item.text for batch in batches for item in engine.generate(batch, contestant, settled)}

    bare = [replace(request, drafts=()) for request in asked]
    ways: dict[str, Callable[[], dict[str, str]]] = {
        "one by one": lambda: answers([[request] for request in bare]),
        "in batches": lambda: answers(engine.batches(bare, contestant.method.per_prompt)),
        "with drafts": lambda: answers(engine.batches(asked, contestant.method.per_prompt)),
    }
    answers([[bare[0]]])
    seconds, texts = {}, {}
    for name, way in ways.items():
        began = perf_counter()
        texts[name] = way()
        seconds[name] = perf_counter() - began
    first = seconds["one by one"]
    keep(f"{what}, one by one", first / seconds["with drafts"])
    same = sum(texts["one by one"][name] == text for name, text in texts["with drafts"].items())
    right = sum(rule.score(text, references[name]) == 1 for name, text in texts["with drafts"].items())
    ratios = ", ".join(f"{name} {len(asked) / took:.2f}/s ({first / took:.2f}x)" for name, took in seconds.items())
    return f"{ratios}; {right} of {len(asked)} right, {same} the same text"


def main() -> None:
    """Measure a grid of needles, and several questions on one haystack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="drope-tiny")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    for line in measure(chosen.model, chosen.length, chosen.examples, chosen.device, chosen.dtype):
        print(line, flush=True)


if __name__ == "__main__":
    main()
