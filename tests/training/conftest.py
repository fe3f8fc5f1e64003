"""A small corpus of made-up sentences, a tokenizer trained on it, and a recipe that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.training_text import sentences

from longctx_bench.training.data.tokenizer_training import train_tokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train.txt").write_text("\0".join(sentences(seed, 200) for seed in range(4)), encoding="utf-8")
    (folder / "held.txt").write_text(sentences(99, 200), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prose() -> Callable[[int, int], str]:
    """Make text out of a seed and a number of sentences."""
    return sentences


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> Any:
    return train_tokenizer((corpus / "train.txt").read_text(encoding="utf-8").split("\0"), 420, 64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def small(corpus: Path, tmp_path: Path) -> Any:
    """Write a recipe of a one-million-parameter model, changed as asked; return its path."""

    def write(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "kind": "pretrain",
            "positions": "rope",
            "shape": {"hidden_size": 160, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab_size": 420},
            "corpus": str(corpus),
            "data": [{"path": "train.txt"}],
            "validation": {"path": "held.txt"},
            "validation_tokens": 256,
            "sequence_length": 64,
            "tokens": 6 * 256,
            "tokens_per_step": 256,
            "micro_batch": 2,
            "lr": 1e-3,
            "warmup_steps": 2,
            "precision": "fp32",
            "compile": False,
            "evaluate_every": 4,
            "checkpoint_every": 2,
        } | changes
        values = {key: value for key, value in values.items() if value is not None}
        path = tmp_path / f"recipe{len(list(tmp_path.glob('recipe*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write
