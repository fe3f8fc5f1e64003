"""The DroPE paper's models out of a stand-in for the hub: small ones in the published formats, under the real names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import REFUSALS, RefusingHub, publish
from made_models import make_model, make_published

from longctx_bench import load, run
from longctx_bench.data import fetch, pinned
from longctx_bench.errors import UserError
from longctx_bench.registry import Registry
from longctx_bench.specs import HubSource

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with the six repositories."""
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
    return cache


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


@pytest.mark.parametrize("base", ["smollm-360m", "smollm-1.7b", "llama2-7b"])
def test_a_base_and_its_drope_checkpoint_run_from_the_hub(
    base: str, hub: Path, baselines: Path, essays: Path, tmp_path: Path, call: Any
) -> None:
    code, _, err = call(
        "run", "--model", f"{base},yarn-{base},drope-{base}", "--tasks", "niah", "--scale", "2x", "--limit", "1",
        "--device", "cpu", "--dtype", "float32", "--baselines", baselines, "--data", f"ruler-essays={essays}",
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
        assert pinned(source) == source, f"{name} is pinned"
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
    assert known == "longctx_bench.methods.checkpoint_format"
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


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process whose hub refuses everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RefusingHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
    own = {key: value for key, value in os.environ.items() if key not in proxies}
    yield own | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "empty"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("gated", "gated on the hub; accept its licence at https://huggingface.co/org/gated, then log in"),
        ("private", "no such repository on the hub, or it needs a login"),
        ("missing", "no such repository on the hub, or it needs a login"),
        ("no-revision", "has no revision 0000000000000000000000000000000000000000 on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(
    repository: str, said: str, refusing: dict[str, str], tmp_path: Path
) -> None:
    assert repository in REFUSALS
    entry = f"base: {{source: {{hub: org/{repository}, revision: '{'0' * 40}'}}, original_length: 512}}"
    (tmp_path / "models.yaml").write_text(entry)
    start = [sys.executable, "-c", "from longctx_bench.cli.main import main; main()"]
    command = [*start, "data", "pull", "base", "--baselines", str(tmp_path)]
    done = subprocess.run(command, env=refusing, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
