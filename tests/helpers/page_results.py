"""A small run's folder to make pages from: two methods, three lengths, prompts kept, and text that means harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longctx_bench.core.types import Cell
from longctx_bench.reporting.html import html_page
from longctx_bench.reporting.results import read_cells
from longctx_bench.store.run_store import ResultStore

HOSTILE = (
    "<script>alert(1)</script></script><!-- \"double\" 'single' & <img src=x onerror=alert(2)> "
    "\u202egnp.exe\u202c \u200f a\u2028b \x1b[31m {{ 7 * 7 }} `${alert(3)}` end"
)
EVIL_METHOD = "<img src=x onerror=alert(4)>"
EXAMPLES = 22


def hash_of(length: int, place: int) -> str:
    return f"{length:08d}{place:024d}"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_cell(folder: Path, cell: Cell, records: list[dict[str, Any]], **details: Any) -> None:
    """Write a finished cell; its records get the fields that they do not name."""
    usual = {"metric": "string_match_all", "prompt_tokens": 480, "new_tokens": 8, "finish_reason": "eos"}
    whole = [
        {"id": f"{place:06d}", "hash": hash_of(cell.length, place), **usual, **record}
        for place, record in enumerate(records)
    ]
    path = ResultStore(folder).path(cell)
    write_lines(path / "records.jsonl", whole)
    summary = {
        "cell": vars(cell),
        "original_length": 512,
        "metric": whole[0]["metric"],
        "score": sum(record["score"] for record in whole) / len(whole),
        "n": len(whole),
        "prompt_tokens": 480 * len(whole),
        "new_tokens": 8 * len(whole),
        "seconds": 1.0,
        "finished": "2026-01-01T00:00:00+00:00",
        "factor": cell.length / 512,
        "factor_source": "derived",
        "tuning": {"scalar": "attention_factor", "value": 1.15, "source": "retrieval"},
        "spec_hash": "abcdef",
        "spec": {
            "seed": 42,
            "dtype": "float32",
            "engine": "hf",
            "chat_template": False,
            "task": {"name": cell.task, "params": {"depth_grid": 11 if cell.task == "niah" else None}},
        },
        "engine": {"engine": "hf", "device": "a made-up device", "dtype": "float32"},
        "environment": {"git": {"commit": "0123456789abcdef", "dirty": True}, "packages": {"torch": "9.9.9"}},
    }
    (path / "cell.json").write_text(json.dumps(summary | details), encoding="utf-8")


def needle_record(place: int, score: float, text: str) -> dict[str, Any]:
    return {"score": score, "text": text, "references": [f"{7_000_000 + place}"], "depths": [place % 11 * 10.0]}


def write_prompts(folder: Path, length: int, number: int = EXAMPLES) -> None:
    """Keep the prompts' beginnings and ends: every second needle lies in the hidden part."""
    lines = []
    for place in range(number):
        needle = f"The special magic number for keen-{place} is: {7_000_000 + place}."
        lines.append(
            {
                "hash": hash_of(length, place),
                "begin": f"Beginning {place}. " + (f"Some talk. {needle} More talk." if place % 2 else "Only talk."),
                "end": f"The end of {place}.",
                "hidden": 4321,
                "needles": [] if place % 2 else [needle],
                "answer_prefix": " The number is",
                "n_tokens": 480,
            }
        )
    write_lines(folder / "prompts" / "tiny" / "niah" / f"{length}.jsonl", lines)


def write_run(folder: Path) -> Path:
    """Write the run: rope fails two thirds beyond 512 and writes harmful text, yarn is right or half right."""
    for length in (512, 1024, 2048):
        rope, yarn = [], []
        for place in range(EXAMPLES):
            right = length == 512 or place % 3 == 0
            rope.append(needle_record(place, float(right), f" {7_000_000 + place}" if right else HOSTILE))
            yarn.append(needle_record(place, 0.5 if place % 3 == 1 else 1.0, f" {7_000_000 + place} it is"))
        write_cell(folder, Cell("tiny", "rope", "niah", length), rope)
        write_cell(folder, Cell("tiny", "yarn", "niah", length), yarn)
        write_prompts(folder, length)
    losses = [
        {"score": 3.0 + place / 10, "metric": "token_loss", "curve": [[0, 4.0], [16, 3.0], [32, 2.5]], "new_tokens": 0}
        for place in range(5)
    ]
    write_cell(folder, Cell("tiny", "rope", "perplexity_last", 1024), losses)
    # Nothing keeps prompts of this one; its name comes from someone's YAML.
    write_cell(folder, Cell("tiny", EVIL_METHOD, "other", 512), [needle_record(0, 0.0, HOSTILE)])
    return folder


def page_of(folder: Path, examples: int | None = None) -> str:
    return html_page(read_cells(folder), ResultStore(folder), examples)
