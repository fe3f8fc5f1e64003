"""The DroPE paper's models out of a stand-in for the hub: small ones in the published formats, under the real names."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from typing import Any

import click
import pytest
import torch
from helpers.document_blocks import blocks
from helpers.fake_hub import REFUSALS, RefusingHub, ServingHub, publish
from helpers.tiny_models import make_model, make_published, make_tokenizer

from longctx_bench import load, run
from longctx_bench.cli.main import cli
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import fetch, resolve_revision
from longctx_bench.core.specs import HubSource
from longctx_bench.registry import Registry
from longctx_bench.reporting.papers.paper_spec import read_paper
from longctx_bench.training.recipe import find_recipe, read_recipe

TIED: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 64, "tie_word_embeddings": True}
SMALL = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 2048, **TIED}
"""SmolLM-360M's proportions: 15 heads, 5 of keys and values, tied embeddings."""
LARGE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048, **TIED}
"""SmolLM-1.7B's: as many heads of keys and values as of queries."""
LLAMA: dict[str, Any] = {**LARGE, "tie_word_embeddings": False, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
MAIN = "5" * 40
"""The commit of the branches that no revision is known for."""
MODELS_YAML = """
smollm-1.7b:
  source: {hub: HuggingFaceTB/SmolLM-1.7B, revision: d7449ff7241c863f3e8accc475155f0f97afa011}
  original_length: 2048
  checkpoints:
    drope: {source: {hub: someone/SmolLM-1.7B-DroPE}}
"""


PAGE = (Path(__file__).parents[2] / "results" / "REPRODUCING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if not kind for line in text.replace("\\\n", "").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("longctx-bench ")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with the repositories that the page names."""
    folder, cache = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("hub")
    listed = Registry().models
    drope: dict[str, dict[str, Any]] = {
        "smollm-360m": {"attention_type": "qk_norm_nope", **SMALL},
        "smollm-1.7b": {"attention_type": "q_norm_nope", **LARGE},
        "llama2-7b": {"attention_type": "nope", "dtype": "float16", "bos": True, "shard": "60KB", **LLAMA},
    }
    for name, entries in drope.items():
        base = make_published(folder / name, **{**entries, "attention_type": None})
        source = listed[name].source
        assert isinstance(source, HubSource)
        publish(cache, source.hub, base, source.revision or MAIN, branch=None)
        own = listed[name].checkpoints.get("drope")
        hub_id = own.source.hub if own and isinstance(own.source, HubSource) else "someone/SmolLM-1.7B-DroPE"
        publish(cache, hub_id, make_published(folder / f"drope-{name}", **entries), MAIN)
    tinyllama = make_published(folder / "tinyllama", **SMALL)
    publish(cache, "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", tinyllama, MAIN)
    partial = {"max_position_embeddings": 2048, "partial_rotary_factor": 0.5}
    publish(cache, "microsoft/phi-2", _make_type(folder / "phi-2", "phi", **partial), MAIN)
    whole = {"max_position_embeddings": 32768, "num_key_value_heads": 2, "head_dim": 16}
    publish(cache, "Qwen/Qwen3-1.7B-Base", _make_type(folder / "qwen3", "qwen3", **whole), MAIN)
    return cache


def _make_type(folder: Path, model_type: str, **config: Any) -> Path:
    """Save a small random model of another type than Llama, with a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=0, **shape, **config
    )
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That cache, as the one of this process and of its children."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made))
    monkeypatch.setenv("HF_HUB_CACHE", str(made))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return made


@pytest.fixture
def baselines(tmp_path: Path) -> Path:
    """A folder of the user's own that says where SmolLM-1.7B's DroPE checkpoint is."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "models.yaml").write_text(MODELS_YAML)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("base", ["smollm-360m", "smollm-1.7b", "llama2-7b"])
def test_a_base_and_its_drope_checkpoint_run_from_the_hub(
    base: str, hub: Path, baselines: Path, essays: Path, tmp_path: Path, call: Any
) -> None:
    code, _, err = call(
        "run", "--model", f"{base},yarn-{base},drope-{base}", "--tasks", "niah", "--scale", "2x", "--limit", "1",
        "--device", "cpu", "--dtype", "float32", "--include-path", baselines, "--data", f"ruler-essays={essays}",
        "--out", tmp_path / "results",
    )  # fmt: skip
    assert code == 0, err
    cells = {
        method: json.loads((tmp_path / f"results/runs/{base}/{method}/niah/{length}/cell.json").read_text())
        for method in ("rope", "yarn", "drope")
        for length in [2 * Registry().models[base].original_length]
    }
    listed = Registry().models[base].source
    assert isinstance(listed, HubSource)
    assert cells["rope"]["spec"]["weights"]["revision"] == (listed.revision or MAIN)
    assert cells["yarn"]["spec"]["weights"] == cells["rope"]["spec"]["weights"]
    assert cells["drope"]["spec"]["weights"]["revision"] == MAIN, "a branch is recorded as the commit that it named"
    assert cells["drope"]["tuning"]["source"] == "paper"
    assert cells["rope"]["spec"]["digests"].keys() == {"essays"}, "the commit identifies the weights"


def test_every_listed_revision_is_a_commit_and_every_repository_of_the_paper_is_listed() -> None:
    models = Registry().models
    for name in ("smollm-360m", "smollm-1.7b", "llama2-7b"):
        source = models[name].source
        assert isinstance(source, HubSource)
        assert resolve_revision(source) == source, f"{name} is pinned"
    hubs = {n: models[n].checkpoints["drope"].source for n in ("smollm-360m", "llama2-7b")}
    assert {name: source.hub for name, source in hubs.items() if isinstance(source, HubSource)} == {
        "smollm-360m": "SakanaAI/SmolLM-360M-DroPE",
        "llama2-7b": "SakanaAI/Llama-2-7b-hf-DroPE",
    }


def test_the_checkpoint_that_is_not_known_says_how_to_give_or_make_one(call: Any) -> None:
    for command in (("run", "--model"), ("data", "pull")):
        code, _, err = call(*command, "drope-smollm-1.7b")
        assert code == 2
        assert len(err.splitlines()) == 1
        for part in ("has no drope checkpoint", "drope:FOLDER_OR_HUB_ID", "models.yaml", "train drope-smollm-1.7b`"):
            assert part in err


def test_weights_in_several_files_are_the_same_weights(hub: Path, tmp_path: Path) -> None:
    snapshot = fetch(HubSource(hub="SakanaAI/Llama-2-7b-hf-DroPE"))
    shards = json.loads((snapshot / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 2
    whole = make_published(tmp_path / "whole", "nope", dtype="float16", bos=True, **LLAMA)
    assert (whole / "model.safetensors").is_file()
    one, tokenizer = load("drope-llama2-7b", dtype="float32", device="cpu")
    other, _ = load(f"{whole}", dtype="float32", device="cpu")
    ids = tokenizer("One of the special magic numbers", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.inference_mode():
        assert torch.equal(one(ids).logits, other(ids).logits)


def test_a_missing_shard_is_one_clear_line(hub: Path, essays: Path, tmp_path: Path, call: Any) -> None:
    folder = make_published(tmp_path / "made", None, shard="60KB", **LLAMA)
    next(folder.glob("model-00002*")).unlink()
    publish(hub, "org/half", folder, "7" * 40)
    out = ("--out", tmp_path / "results", "--data", f"ruler-essays={essays}")
    code, _, err = call("run", "--model", "org/half", "--length", "512", "--limit", "1", "--device", "cpu", *out)
    assert code == 2
    assert [line for line in err.splitlines() if "failed" in line and "model-00002-of" in line]


def test_a_branch_that_moved_runs_again_and_keeps_the_old(hub: Path, essays: Path, tmp_path: Path) -> None:
    registry = Registry(local_data={"ruler-essays": essays})
    arguments: dict[str, Any] = {"length": [512], "limit": 2, "engine": "echo", "out": tmp_path, "registry": registry}
    for commit in ("1" * 40, "2" * 40, "2" * 40):
        if not (hub / "models--org--moving/snapshots" / commit).exists():
            publish(hub, "org/moving", make_model(tmp_path / commit), commit)
        run("org/moving", "niah", **arguments)
    (cell,) = tmp_path.glob("runs/*/rope/niah/512/cell.json")
    assert json.loads(cell.read_text())["spec"]["weights"]["revision"] == "2" * 40
    assert len(list((tmp_path / "superseded").rglob("records.jsonl"))) == 1


@pytest.mark.slow
def test_code_in_a_repository_is_never_run_nor_asked_about(hub: Path, tmp_path: Path) -> None:
    """A checkpoint that transformers knows runs on its classes; any other is refused, whatever stands on stdin."""
    folder = make_model(tmp_path / "made")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('remote code was run')\n")
    script = """
import sys
from longctx_bench import load
for name in sys.argv[1:]:
    try:
        print(type(load(name, device="cpu")[0]).__module__)
    except Exception as error:
        print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", script, "SakanaAI/SmolLM-360M-DroPE", str(folder)]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "the code of either would have ended it"
    known, unknown = done.stdout.splitlines()
    assert known == "longctx_bench.methods.modeling_drope"
    assert unknown.startswith("UserError")
    assert "it needs the repository's own code, which is never run" in unknown


def test_what_is_not_in_the_cache_is_one_clear_line(hub: Path, tmp_path: Path, call: Any) -> None:
    known = HubSource(hub="HuggingFaceTB/SmolLM-360M", revision="0" * 40)
    with pytest.raises(UserError, match="SmolLM-360M@00000000: not in the local cache and the hub cannot be reached"):
        fetch(known)
    code, _, err = call("run", "--model", "Qwen/Qwen2.5-0.5B", "--out", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    code, _, err = call("run", "--model", "qwen2.5-0.5b", "--length", "512", "--device", "cpu", "--out", tmp_path)
    assert code == 2
    assert "Qwen/Qwen2.5-0.5B@060db649: not in the local cache" in err


def test_a_repository_of_which_only_the_config_came_is_one_clear_line(hub: Path, tmp_path: Path, call: Any) -> None:
    """As a --dry-run leaves it, and a download that was cut off."""
    folder = make_published(tmp_path / "made", None, **SMALL)
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    publish(hub, "org/config-only", folder, "6" * 40)
    options = ("--length", "512", "--device", "cpu", "--out", tmp_path / "results")
    code, _, err = call("run", "--model", "org/config-only", *options)
    assert code == 2
    assert "no tokenizer files found" in err


@contextmanager
def served(handler: type[BaseHTTPRequestHandler], cache: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that takes a server of ours for the hub, and has nothing in its cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
    try:
        yield {key: value for key, value in os.environ.items() if key not in proxies} | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


START = [sys.executable, "-c", "from longctx_bench.cli.main import main; main()"]


@pytest.mark.slow
def test_a_repository_is_fetched_at_the_commit_that_its_branch_names(
    essays: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = make_published(tmp_path / "made", "qk_norm_nope", shard="30KB", **SMALL)
    handler = type("Handler", (ServingHub,), {"folder": folder})
    options = ["--length", "512", "--limit", "1", "--device", "cpu", "--data", f"ruler-essays={essays}"]
    command = [*START, "run", "--model", "org/served", *options, "--out", str(tmp_path / "results")]
    with served(handler, tmp_path / "cache") as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (cell,) = (tmp_path / "results").glob("runs/*/drope/niah/512/cell.json")
    assert json.loads(cell.read_text())["spec"]["weights"]["revision"] == ServingHub.commit
    got = {file.name for file in (tmp_path / "cache/models--org--served/snapshots" / ServingHub.commit).iterdir()}
    assert got == {file.name for file in folder.iterdir()} - {"drope.py"}, "code is not even fetched"
    # Without the hub, what was fetched is there, under the name of its branch.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    code, out, err = call(*command[len(START) :], "--dry-run")
    assert code == 0, err
    assert "done" in out


@pytest.mark.slow
def test_a_file_that_was_damaged_in_the_hubs_cache_is_named_and_fetched_again(tmp_path: Path) -> None:
    handler = type("Handler", (ServingHub,), {"folder": make_model(tmp_path / "made")})
    # A listed model: of any other, transformers reads the configuration, and its import takes six seconds.
    (tmp_path / "models.yaml").write_text("base: {source: {hub: org/served}, original_length: 256}")
    command = [*START, "data", "pull", "base", "--include-path", str(tmp_path)]
    with served(handler, tmp_path / "cache") as environment:
        done = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True)]
        weights = tmp_path / "cache/models--org--served/snapshots" / ServingHub.commit / "model.safetensors"
        content = weights.read_bytes()
        weights.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done += [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert weights.read_bytes() == content
    assert [f"{weights}: is damaged" in each.stderr for each in done] == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("gated", "gated on the hub; accept its licence at https://huggingface.co/org/gated, then log in"),
        ("private", "no such repository on the hub, or it needs a login"),
        ("missing", "no such repository on the hub, or it needs a login"),
        ("no-revision", "has no revision 0000000000000000000000000000000000000000 on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(repository: str, said: str, tmp_path: Path) -> None:
    assert repository in REFUSALS
    entry = f"base: {{source: {{hub: org/{repository}, revision: '{'0' * 40}'}}, original_length: 512}}"
    (tmp_path / "models.yaml").write_text(entry)
    command = [*START, "data", "pull", "base", "--include-path", str(tmp_path)]
    with served(RefusingHub, tmp_path / "cache") as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_parse_and_name_what_exists(
    command: str, hub: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(_checkpoint(hub), "results/models/drope-smollm-360m")
    placeholders = {"C": "0.1", "TEXT": "long.txt", "CHECKPOINT": str(_checkpoint(hub)), "PROOFS": "proofs.txt"}
    Path("paper").mkdir()
    (own,) = (text for kind, text in BLOCKS if kind == "yaml" and "$CHECKPOINT" in text)
    Path("paper/models.yaml").write_text(Template(own).substitute(placeholders))
    _write_files(placeholders)
    _, *words = shlex.split(Template(command).substitute(placeholders), comments=True)
    if words[0] == "run":
        code, out, err = call(*words, "--dry-run", "--device", "cpu")
        assert code == 0, err
        assert "cells, about" in out
        return
    found: click.Command = cli
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    parsed = found.make_context(command, words)
    # The bases of a figure are names of measured models, whatever listed them.
    registry = Registry(include_paths=parsed.params.get("include_paths", (Path("field"),)))
    for name in [*parsed.params.get("names", ()), *filter(None, [parsed.params.get("model")])]:
        assert name in registry.sources or registry.variant(name).name
    for name in filter(None, (parsed.params.get("bases") or "").split(",")):
        assert name in registry.models


def _write_files(placeholders: dict[str, str]) -> None:
    """Write the page's files for the folder ``field``, and texts."""
    Path("field").mkdir()
    for block in blocks("results/REPRODUCING.md"):
        if block.file is not None:
            Path(block.file).write_text(Template(block.text).substitute(placeholders))
    for text in ("long.txt", "field/proofs.txt"):
        Path(text).write_text("One of the special magic numbers. " * 100)


@pytest.mark.parametrize("paper", ["string", "lceg", "jet-long"])
def test_the_page_measures_what_a_paper_names(paper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each published task is one that the page's tasks or ours have, each of its bases one that the commands run."""
    monkeypatch.chdir(tmp_path)
    _write_files({"PROOFS": "proofs.txt"})
    registry = Registry(include_paths=(Path("field"),))
    published = read_paper(paper)
    parts = {part for tasks in published.spec.averages.values() for part in tasks}
    for task in parts | {number.task for number in published.numbers} - set(published.spec.averages):
        assert registry.select_tasks(task, None), task
    runs = " ".join(command for command in COMMANDS if "results/field" in command)
    for base in set(published.spec.bases) & set(registry.models):
        methods = {number.method for number in published.numbers if number.base == base}
        for method in methods:
            try:
                registry.variant(f"{method}-{base}")
            except UserError:
                assert method.endswith(("-32k", "-64k")), method
                continue
            if (method, base) != ("self-extend", "phi-2"):
                assert f"{method}-{base}" in runs, f"{method}-{base}"


def test_the_pages_score_counts_two_needles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_files({"PROOFS": "proofs.txt"})
    two_of_four = runpy.run_path("field/scores.py")["two_of_four"]
    answers = {"12": 0, "12, 56": 1, "78 56 34 12": 1, "": 0}
    assert {text: two_of_four(text, ("12", "34", "56", "78")) for text in answers} == answers


def _checkpoint(hub: Path) -> Path:
    return next((hub / "models--someone--SmolLM-1.7B-DroPE" / "snapshots").iterdir())


def test_the_pages_trainings_name_recipes_that_exist() -> None:
    trainings = [shlex.split(line) for line in LINES if line.startswith("torchrun")]
    assert len(trainings) == 3
    for words in trainings:
        recipe, out = words[words.index("longctx_bench.training") + 1 :]
        made = read_recipe(find_recipe(recipe), {"tokens": "31457280000"})
        assert made.batch % int(words[words.index("--nproc-per-node") + 1]) == 0
        assert Path(out).name == recipe


def test_the_pages_revisions_are_the_listed_ones() -> None:
    for name in ("smollm-360m", "smollm-1.7b", "llama2-7b"):
        source = Registry().models[name].source
        assert isinstance(source, HubSource)
        assert f"| `{name}` | `{source.hub}`" in PAGE
        assert f"`{(source.revision or '')[:8]}`, pinned" in PAGE
