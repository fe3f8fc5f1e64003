"""The openai engine against a real HTTP server: the same tokens, and nothing lost or twice whatever it does."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.completion_server import Served, serving

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines import make_engine
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.engines.hf.export import export_checkpoint
from longctx_bench.engines.openai_api.config import ServerConfig
from longctx_bench.engines.openai_api.engine import OpenAIEngine
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rope_scaling import NTK, PI, Crop, DynamicNTK, RoPE, YaRN
from longctx_bench.models.checkpoint import read_config
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

REQUESTS = [
    Request(str(place), [2 + (place * 7 + step * 11) % 500 for step in range(20 + 13 * place)], 12)
    for place in range(9)
]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Served:
    return Served(tiny_folder)


@pytest.fixture
def served(model: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The tiny model behind HTTP, well again for every test."""
    for name in ("LONGCTX_BENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    model.takes_ids = model.takes_extras = model.says_why = True
    model.key = model.cuts_to = None
    model.room, model.fault, model.asked = 4096, lambda number: None, []
    model.at_once = model.most_at_once = 0
    with serving(model):
        yield model


def server(served: Served, **settings: Any) -> ServerConfig:
    return ServerConfig(served.url, **{"concurrency": 4, "backoff": 0.01, "timeout": 20.0, **settings})


def loaded(served: Served, folder: Path, **settings: Any) -> OpenAIEngine:
    engine = OpenAIEngine(server(served, **settings))
    engine.load(folder)
    return engine


def contestant(folder: Path, method: Any = None) -> ModelUnderTest:
    return ModelUnderTest(BaseModelInfo("tiny", 256, read_config(folder)), method or RoPE(), 512)


def written(engine: Any, folder: Path, requests: list[Request] = REQUESTS) -> dict[str, tuple[str, int, str]]:
    found = {}
    for batch in engine.batches(requests, False):
        for item in engine.generate(batch, contestant(folder), lambda *_: False):
            assert item.example_id not in found
            found[item.example_id] = (item.text, item.new_tokens, item.finish_reason)
    return found


def by_hf(folder: Path, requests: list[Request] = REQUESTS) -> dict[str, tuple[str, int, str]]:
    engine = HFEngine("cpu", "float32", 200)
    engine.load(folder)
    return written(engine, folder, requests)


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> dict[str, tuple[str, int, str]]:
    return by_hf(tiny_folder)


@pytest.mark.slow
def test_the_tokens_are_those_of_the_transformers_engine(served: Served, tiny_folder: Path, expected: Any) -> None:
    engine = loaded(served, tiny_folder)
    assert written(engine, tiny_folder) == expected
    described = engine.settings()
    assert (described["prompts"], described["served_model"]) == ("token ids", "tiny-served")
    assert all(isinstance(body["prompt"], list) and body["temperature"] == 0 for body in served.asked)
    assert 1 < served.most_at_once <= 4
    assert len(served.asked) == 1 + len(REQUESTS), "one to get to know it, and each request once"


@pytest.mark.slow
@pytest.mark.parametrize("extras", [True, False])
def test_a_server_without_token_ids_gets_text(
    served: Served, tiny_folder: Path, extras: bool, tiny_encoder: Any
) -> None:
    served.takes_ids, served.takes_extras = False, extras
    engine = loaded(served, tiny_folder)
    texts = ["Some special magic numbers are hidden.", "The grass is green. The sky is blue. Here we go."]
    requests = [Request(text, tiny_encoder.tokenizer.encode(text), 10) for text in texts]
    before = len(served.asked)
    assert written(engine, tiny_folder, requests) == by_hf(tiny_folder, requests)
    assert {body["prompt"] for body in served.asked[before:]} == set(texts)
    assert engine.settings()["prompts"] == "text"
    with pytest.raises(UserError, match="takes no token ids"):
        list(engine.loglikelihood(requests, contestant(tiny_folder)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "refuses", "passes over"])
def test_stop_tokens_end_the_text_whether_the_server_knows_them_or_not(
    served: Served, tiny_folder: Path, kind: str, expected: Any
) -> None:
    served.takes_extras, served.says_why = kind != "refuses", kind == "vllm"
    known = {request.example_id: request for request in REQUESTS}
    # Half a character at the end of a token does not come back from its text.
    name, text = next((name, text) for name, (text, _, _) in expected.items() if "\ufffd" not in text[2:])
    ids = served.tokenizer.encode(text, add_special_tokens=False)
    for least in (0, 1):
        request = Request(name, known[name].input_ids, 12, frozenset(ids[5:6]), least)
        assert by_hf(tiny_folder, [request])[name][2] == "stop"
        assert written(loaded(served, tiny_folder), tiny_folder, [request]) == by_hf(tiny_folder, [request])
    assert ("stop_token_ids" in served.asked[-1]) == (kind != "refuses")


@pytest.mark.slow
def test_losses_are_those_of_the_transformers_engine(served: Served, tiny_folder: Path) -> None:
    requests = [Request(str(place), REQUESTS[place].input_ids, 0, scored=8) for place in (2, 4)]
    hf = HFEngine("cpu", "float32")
    hf.load(tiny_folder)
    engine = loaded(served, tiny_folder)
    for request in requests:
        [wanted] = hf.loglikelihood([request], contestant(tiny_folder))
        [found] = engine.loglikelihood([request], contestant(tiny_folder))
        assert list(found.losses) == pytest.approx(list(wanted.losses), abs=1e-4)
        assert found.greedy == wanted.greedy
    served.echo = lambda ids: {"token_logprobs": [None]}  # type: ignore[method-assign]
    try:
        with pytest.raises(UserError, match="gives no log-probabilities of prompts"):
            list(engine.loglikelihood(requests[:1], contestant(tiny_folder)))
    finally:
        del served.echo  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "500", "503", "garbage", "cut", "hang"])
def test_what_passes_by_itself_is_asked_again(served: Served, tiny_folder: Path, fault: str, expected: Any) -> None:
    chance = random.Random(1)
    ill = {number for number in range(2, 60) if chance.random() < (0.15 if fault == "hang" else 0.5)} | {3}
    served.fault = lambda number: fault if number in ill else None
    engine = loaded(served, tiny_folder, timeout=0.5 if fault == "hang" else 20.0, attempts=12)
    assert written(engine, tiny_folder) == expected
    assert len(served.asked) > 1 + len(REQUESTS)


def test_what_does_not_pass_ends_in_one_line_after_the_last_attempt(served: Served, tiny_folder: Path) -> None:
    engine = loaded(served, tiny_folder, attempts=3, concurrency=1)
    served.fault = lambda number: "500"
    with pytest.raises(UserError, match="answers 500: .*, 3 times; what was measured is kept, run the same command"):
        written(engine, tiny_folder)
    assert len(served.asked) == 1 + 3
    served.fault = lambda number: "400"
    with pytest.raises(UserError, match="takes no completions: answers 400"):
        engine.load(tiny_folder)


def run_niah(served: Served, model: str | Path, out: Path, essays: Path, **settings: Any) -> Any:
    registry = Registry(local_data={"ruler-essays": essays})
    return run(
        str(model), "niah_single_1", length=[512], limit=12, engine="openai", out=out, registry=registry,
        server=server(served, **settings),
    )  # fmt: skip


@pytest.mark.slow
def test_a_server_that_dies_costs_nothing_that_was_stored(
    served: Served, tiny_folder: Path, tmp_path: Path, essays: Path
) -> None:
    records = "runs/tiny/rope/niah_single_1/512/records.jsonl"
    run_niah(served, tiny_folder, tmp_path / "whole", essays)
    port, whole = int(served.url.rpartition(":")[2]), (tmp_path / "whole" / records).read_bytes()
    served.asked = []
    served.fault = lambda number: "dead" if number == 8 else None
    with pytest.raises(UserError, match="cannot be reached .* what was measured is kept"):
        run_niah(served, tiny_folder, tmp_path / "died", essays, attempts=2)
    kept = [json.loads(line)["id"] for line in (tmp_path / "died" / records).read_text().splitlines()]
    assert 0 < len(kept) < 12
    served.asked, served.fault = [], lambda number: None
    with serving(served, port):
        run_niah(served, tiny_folder, tmp_path / "died", essays)
    assert len(served.asked) == 1 + 12 - len(kept), "what was stored is not asked again"
    assert (tmp_path / "died" / records).read_bytes() == whole


@pytest.mark.slow
def test_half_of_all_requests_failing_leaves_every_record_once(
    served: Served, tiny_folder: Path, tmp_path: Path, essays: Path
) -> None:
    faults = ["500", "garbage", "429", "cut"]
    served.fault = lambda number: faults[number // 2 % 4] if number % 2 else None
    run_niah(served, tiny_folder, tmp_path, essays, attempts=20)
    lines = (tmp_path / "runs/tiny/rope/niah_single_1/512/records.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["id"] for line in lines) == {f"{place:06d}": 1 for place in range(12)}


@pytest.mark.slow
def test_the_key_is_sent_and_never_kept_or_shown(
    served: Served, tiny_folder: Path, tmp_path: Path, essays: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    served.key = "sk-very-secret"
    monkeypatch.setenv("OPENAI_API_KEY", served.key)
    arguments = ("run", "--engine", "openai", "--base-url", served.url, "--model", tiny_folder, "--tasks",
                 "niah_single_1", "--length", "512", "--limit", "3", "--data", f"ruler-essays={essays}", "--out",
                 tmp_path)  # fmt: skip
    said = call(*arguments)
    assert said[0] == 0, said
    served.fault = lambda number: "400"
    failed = call(*arguments, "--overwrite")
    assert (failed[0], "[key]" in failed[2]) == (2, True)
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"127.0.0.1" in kept
    for text in (*said[1:], *failed[1:], kept.decode()):
        assert "very-secret" not in text
    monkeypatch.setenv("LONGCTX_BENCH_API_KEY", "another")
    code, _, err = call(*arguments, "--overwrite")
    assert (code, "does not accept the key; set LONGCTX_BENCH_API_KEY" in err) == (2, True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost", "expected http://HOST:PORT"),
        ("http://host:port", "expected http://HOST:PORT"),
        ("ftp://host", "expected http://HOST:PORT"),
        ("http://me:secret@host/v1", "set the API key in LONGCTX_BENCH_API_KEY"),
        ("http://host/v1?api_key=secret", "set the API key in LONGCTX_BENCH_API_KEY"),
        ("http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_a_bad_address_is_one_line(
    tiny_folder: Path, tmp_path: Path, essays: Path, call: Any, url: str, said: str
) -> None:
    code, _, err = call(
        "run", "--engine", "openai", "--base-url", url, "--model", tiny_folder, "--tasks", "niah_single_1", "--length",
        "512", "--limit", "1", "--data", f"ruler-essays={essays}", "--out", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert "secret" not in err


@pytest.mark.parametrize("method", [PI(), NTK(), DynamicNTK(), YaRN(factor=2.0)])
def test_a_method_that_the_server_would_have_to_apply_is_refused(
    served: Served, tiny_folder: Path, method: Any
) -> None:
    engine = loaded(served, tiny_folder)
    with pytest.raises(UserError, match=f"cannot apply {type(method).__name__}; write it into a checkpoint"):
        list(engine.generate(REQUESTS[:1], contestant(tiny_folder, method), lambda *_: False))
    assert len(served.asked) == 1
    assert list(engine.generate(REQUESTS[:1], contestant(tiny_folder, Crop()), lambda *_: False))


def test_a_server_that_reads_something_else_is_found_out(served: Served, tiny_folder: Path) -> None:
    served.room = 100
    with pytest.raises(UserError, match="takes 100 tokens and 1.. are needed"):
        written(loaded(served, tiny_folder), tiny_folder)
    served.room = 4096
    engine = loaded(served, tiny_folder)
    served.cuts_to = 64
    with pytest.raises(UserError, match="read 64 tokens of a prompt of 124; it cuts prompts"):
        written(engine, tiny_folder)
    with pytest.raises(UserError, match="serves one model"):
        engine.load(tiny_folder.parent)
    with pytest.raises(UserError, match=r"lists these models: 'tiny-served'; name one of them with --model-name"):
        loaded(served, tiny_folder, model_name="other")


def test_options_that_do_not_go_together_are_refused(served: Served) -> None:
    with pytest.raises(UserError, match="needs --base-url"):
        make_engine("openai")
    with pytest.raises(UserError, match="--dtype.*openai"):
        make_engine("openai", dtype="float32", server=server(served))
    with pytest.raises(UserError, match="goes with --engine openai"):
        make_engine("echo", server=server(served))


@pytest.mark.slow
def test_an_exported_method_behind_a_server_gives_its_own_tokens(
    tiny_folder: Path, tmp_path: Path, essays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yarn = ModelUnderTest(BaseModelInfo("tiny", 256, read_config(tiny_folder)), YaRN(), 512)
    export_checkpoint(yarn, "yarn", tiny_folder, tmp_path / "served")
    with serving(Served(tmp_path / "served")) as served:
        run_niah(served, tmp_path / "served", tmp_path / "out", essays)
    registry = Registry(local_data={"ruler-essays": essays})
    run(
        f"yarn:{tiny_folder}", "niah_single_1", length=[512], limit=12, dtype="float32", device="cpu",
        out=tmp_path / "out", registry=registry,
    )  # fmt: skip
    lines = [
        (tmp_path / f"out/runs/{name}/yarn/niah_single_1/512/records.jsonl").read_text().splitlines()
        for name in ("served", "tiny")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert json.loads(ours)["hash"] == json.loads(theirs)["hash"]
        # The transformers engine stops as soon as the score is settled.
        assert json.loads(ours)["text"].startswith(json.loads(theirs)["text"])
