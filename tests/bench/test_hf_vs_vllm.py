from __future__ import annotations

import multiprocessing
import re
import sys
from importlib.util import find_spec

import pytest

from bench import hf_vs_vllm


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_there_is_named_and_the_other_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "--shapes tiny --lengths 24,48 --tokens 96 --new-tokens 3 --dtype float32 --device cpu"
    monkeypatch.setattr(sys, "argv", ["engines", *asked.split()])
    # Both processes are forked from one that has imported what takes seconds to import.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["bench.hf_vs_vllm", "longctx_bench.engines.hf.engine"])
    monkeypatch.setattr(hf_vs_vllm, "get_context", lambda method: processes)
    hf_vs_vllm.main()
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"tiny, float32, 24 tokens: hf [0-9.]+ examples/s", said[0])
    assert re.fullmatch(r"tiny, float32, 48 tokens: hf [0-9.]+ examples/s", said[1])
    assert said[2].startswith("tiny: vllm: --engine vllm needs vLLM: ")
    assert len(said) == 3
