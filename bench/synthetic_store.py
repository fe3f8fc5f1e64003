"""A result store of any size with invented scores, in the form that a run leaves: for timings and for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longctx_bench.core.types import Cell
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import SCHEMA_VERSION, parse_spec, to_builtins

_CONTEXT = 512
_METHODS = ("rope", "crop", "drope", "longrope", "ntk", "nope", "pi", "rnope-swa", "yarn", "yarn-retrieval")
_WORDS = ("amber", "brisk", "cedar", "delta", "ember", "fjord", "gale", "harbour", "islet", "juniper", "kelp", "north")


class _Kind(NamedTuple):
    """What the examples of a task look like."""

    name: str
    metric: str
    needles: int
    levels: int
    """Scores are multiples of 1 / levels; 0 where they are losses."""
    words: int
    """Of each generation."""


_TASKS = (
    _Kind("niah", "string_match_all", 1, 1, 2),
    _Kind("niah_multikey", "string_match_all", 4, 1, 2),
    _Kind("niah_multiquery", "string_match_all", 4, 4, 12),
    _Kind("vt", "string_match_all", 5, 5, 10),
    _Kind("cwe", "string_match_all", 0, 10, 20),
    _Kind("fwe", "string_match_all", 0, 3, 6),
    _Kind("qa_1", "string_match_part", 1, 1, 8),
    _Kind("hotpotqa", "longbench_qa_f1", 0, 1000, 8),
    _Kind("multi_news", "longbench_rouge_l", 0, 1000, 160),
    _Kind("perplexity", "token_loss", 0, 0, 0),
)


def make_store(
    folder: Path, contestants: int = 100, tasks: int = 10, lengths: int = 10, examples: int = 100, seed: int = 0
) -> int:
    """Write finished cells below ``folder`` and return the number of their records.

    The contestants are ten methods on as many bases as it takes; methods of one base share their examples and so
    their hashes. Scores fall with the length, differently for each method; everything is a function of ``seed``.
    Lengths are 512 x 1, 2, 4 ...; the tasks have one needle on a grid of depths, several needles, graded scores,
    long generations and losses, and repeat when more than ten are wanted.

    Raises:
        UserError: the folder cannot be written.
    """
    store = ResultStore(folder)
    rng = np.random.default_rng(seed)
    kinds = [_TASKS[place % len(_TASKS)] for place in range(tasks)]
    for base in range(-(-contestants // len(_METHODS))):
        methods = _METHODS[: contestants - base * len(_METHODS)]
        for place, kind in enumerate(kinds):
            name = kind.name if place < len(_TASKS) else f"{kind.name}_{place // len(_TASKS) + 1}"
            for length in (_CONTEXT << doubled for doubled in range(lengths)):
                prompts = _prompts(kind, examples, length, rng)
                for method in methods:
                    _write_cell(store, Cell(f"base-{base}", method, name, length), kind, prompts, rng)
    return contestants * tasks * lengths * examples


class _Prompt(NamedTuple):
    head: str
    """The record up to its score."""
    references: str
    tail: str
    """From ``depths`` to ``prompt_tokens``."""


def _prompts(kind: _Kind, n: int, length: int, rng: np.random.Generator) -> list[_Prompt]:
    hashes = rng.bytes(16 * n).hex()
    depths = np.sort(rng.uniform(0, 100, (n, kind.needles)).round(2), axis=1)
    if kind.needles == 1:
        depths[:, 0] = np.arange(n) % 11 * 10.0
    numbers = rng.integers(1_000_000, 9_999_999, n).tolist()
    words = _text(rng, 2 * kind.words)
    made = []
    for place, (own, number) in enumerate(zip(depths.tolist(), numbers, strict=True)):
        head = f'{{"id": "{place:06d}", "hash": "{hashes[32 * place : 32 * place + 32]}", "score": '
        references = f'"references": ["{number}{words}"]' if kind.words > 20 else f'"references": ["{number}"]'
        made.append(_Prompt(head, references, f'"depths": {own}, "prompt_tokens": {length - place % 50}'))
    return made


def _write_cell(
    store: ResultStore, cell: Cell, kind: _Kind, prompts: Sequence[_Prompt], rng: np.random.Generator
) -> None:
    folder = store.path(cell)
    folder.mkdir(parents=True, exist_ok=True)
    scores = _scores(cell, kind, len(prompts), rng)
    middle, texts = f', "metric": "{kind.metric}", ', [_text(rng, kind.words) for _ in range(8)]
    if kind.levels:
        end = f', "new_tokens": {max(8, 2 * kind.words)}, "finish_reason": "settled"}}\n'
        lines = [
            f'{p.head}{score}{middle}"text": " {texts[place % 8]}", {p.references}, {p.tail}{end}'
            for place, (p, score) in enumerate(zip(prompts, scores.tolist(), strict=True))
        ]
    else:
        curve = [[at * cell.length // 32, round(float(loss), 5)] for at, loss in enumerate(rng.normal(3, 0.3, 32))]
        end = f'"scored": {cell.length}, "curve": {curve}, "prompt_tokens": {cell.length}, "new_tokens": 0}}\n'
        lines = [f"{p.head}{score}{middle}{end}" for p, score in zip(prompts, scores.tolist(), strict=True)]
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "cell.json").write_text(json.dumps(_cell(cell, kind, scores), indent=2) + "\n", encoding="utf-8")


def _scores(cell: Cell, kind: _Kind, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    scale, strength = cell.length / _CONTEXT, 1 + _METHODS.index(cell.method)
    if not kind.levels:
        return rng.normal(2.5 + np.log2(scale) / strength, 0.3, n)
    return rng.binomial(kind.levels, 1 / (1 + (scale / (2 * strength)) ** 2), n) / kind.levels


def _text(rng: np.random.Generator, words: int) -> str:
    return " ".join(_WORDS[index] for index in rng.integers(0, len(_WORDS), words))


def _cell(cell: Cell, kind: _Kind, scores: NDArray[np.float64]) -> dict[str, Any]:
    """Return a ``cell.json`` with the keys and about the size of a run's."""
    n, factor = len(scores), cell.length / _CONTEXT
    described: dict[str, Any] = {
        "model": {"name": cell.model, "source": {"embedded": cell.model}, "original_length": _CONTEXT,
                  "licence": "Apache-2.0", "native_method": "rope"},
        "weights": {"embedded": cell.model},
        "method": {"name": cell.method, "id": "rope", "params": {"factor": None}},
        "task": {"name": cell.task, "benchmark": "needle-in-a-haystack", "grid": "depth_grid", "metric": kind.metric,
                 "max_new_tokens": 128, "protocol": "longctx-bench",
                 "params": {"haystack": "essay", "keys": 1, "depth_grid": 11 if kind.needles == 1 else None}},
        "digests": {"weights": "0" * 16},
        "length": cell.length,
        "seed": 42,
        "chat_template": False,
        "engine": "synthetic",
        "dtype": "none",
    }  # fmt: skip
    spec = parse_spec({"schema_version": SCHEMA_VERSION, "spec": described})
    return {
        "schema_version": SCHEMA_VERSION,
        "cell": {"model": cell.model, "method": cell.method, "task": cell.task, "length": cell.length},
        "original_length": _CONTEXT,
        "metric": kind.metric,
        "score": float(scores.mean()),
        "n": n,
        "exhausted": False,
        "prompt_tokens": n * cell.length,
        "new_tokens": n * max(8, 2 * kind.words) if kind.levels else 0,
        "seconds": round(1e-4 * n * cell.length, 3),
        "factor": factor,
        "factor_source": "derived",
        "applied": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "tuning": None,
        "spec_hash": spec.hash,
        "spec": to_builtins(spec),
        "engine": {"engine": "synthetic", "device": "none", "dtype": "none", "batch_tokens": 16384},
        "environment": {"longctx_bench": "synthetic", "git": None, "python": "3", "packages": {}},
        "finished": "2026-01-01T00:00:00+00:00",
    }
