"""The vLLM engine against the transformers engine, on real models; skipped where vLLM is not installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import make_model, make_tokenizer

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL, Generation, Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import NTK, PI, Llama3, RoPE, YaRN
from longctx_bench.methods.scalar_schedule import ScalarSchedule
from longctx_bench.models.variant import ModelUnderTest

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make vllm")

SHARP = ScalarSchedule(table={1.0: 1.0, 2.0: 1.4})
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def engines() -> tuple[Any, HFEngine]:
    """Both engines in fp32 on the CPU."""
    from longctx_bench.engines.vllm_backend.engine import VLLMEngine

    return VLLMEngine(dtype="float32"), HFEngine(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose heads are 32 wide, which vLLM's attention takes."""
    return make_model(tmp_path_factory.mktemp("vllm") / "llama", **SHAPE)


def make_drope(folder: Path, kind: str, attention_type: str, softmax_scale: float | None) -> Path:
    """Save a random model in the published DroPE format, its norms not the identity."""
    from longctx_bench.methods.modeling_drope import DROPE_MODEL_TYPES

    tokenizer = make_tokenizer()
    config_class, model_class = DROPE_MODEL_TYPES[kind]
    torch.manual_seed(1)
    config = config_class(  # type: ignore[call-arg]
        **SHAPE, vocab_size=len(tokenizer), attention_type=attention_type, softmax_scale=softmax_scale,
        initializer_range=0.2, eos_token_id=1, bos_token_id=0, pad_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = model_class(config)
    for name, weight in model.named_parameters():
        if "_norm" in name or name.endswith("bias"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests(count: int = 4, new: int = 12, least: int = 0) -> list[Request]:
    generator = torch.Generator().manual_seed(7)
    sizes = [300 + 37 * index for index in range(count)]
    rows = [torch.randint(2, 500, (size,), generator=generator).tolist() for size in sizes]
    return [Request(f"{place:06d}", tuple(ids), new, min_new_tokens=least) for place, ids in enumerate(rows)]


def never(example_id: str, text: str) -> bool:
    return False


def contestant(folder: Path, method: Method, length: int = 512) -> ModelUnderTest:
    return ModelUnderTest(BaseModelInfo("small", 256, json.loads((folder / "config.json").read_text())), method, length)


def answers(engine: Any, folder: Path, method: Method, asked: list[Request], settled: Any = never) -> list[Generation]:
    engine.load(folder)
    found = [
        item
        for batch in engine.batches(asked, False)
        for item in engine.generate(batch, contestant(folder, method), settled)
    ]
    return sorted(found, key=lambda item: item.example_id)


def same(mine: list[Generation], theirs: list[Generation]) -> bool:
    said = [(item.example_id, item.text, item.new_tokens, item.prompt_tokens, item.finish_reason) for item in mine]
    return said == [
        (item.example_id, item.text, item.new_tokens, item.prompt_tokens, item.finish_reason) for item in theirs
    ]


METHODS = [RoPE(), PI(), NTK(), YaRN(), Llama3(), NoPE(), NoPE(temperature=SHARP)]


@pytest.mark.parametrize("method", METHODS, ids=[*(type(m).__name__ for m in METHODS[:-1]), "NoPE-sharpened"])
def test_greedy_text_is_that_of_transformers(llama: Path, engines: tuple[Any, HFEngine], method: Method) -> None:
    ours, reference = engines
    assert same(answers(ours, llama, method, requests()), answers(reference, llama, method, requests()))


@pytest.mark.parametrize(
    ("kind", "attention_type", "softmax_scale", "method"),
    [
        ("llama_drope", "qk_norm_nope", None, DroPE()),
        ("llama_drope", "q_norm_nope", 0.3, DroPE(temperature=SHARP)),
        ("qwen2_drope", "k_norm_nope", None, DroPE(temperature=SHARP)),
        ("qwen2_drope", "qk_norm_nope", 0.3, DroPE()),
    ],
)
def test_published_drope_runs_by_the_plug_in(
    tmp_path: Path, engines: tuple[Any, HFEngine], kind: str, attention_type: str, softmax_scale: float, method: DroPE
) -> None:
    ours, reference = engines
    folder = make_drope(tmp_path / kind, kind, attention_type, softmax_scale)
    found = answers(ours, folder, method, requests())
    assert ours.collective_rpc("architecture").endswith("DropeForCausalLM")
    assert ours.collective_rpc("rotary_table", [1]) is None
    assert same(found, answers(reference, folder, method, requests()))


def test_answers_leave_when_their_score_is_settled(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, reference = engines
    whole = answers(ours, llama, RoPE(), requests())
    wanted = {item.example_id: item.text[:5] for item in whole}

    def settled(example_id: str, text: str) -> bool:
        return wanted[example_id] in text

    found = answers(ours, llama, RoPE(), requests(), settled)
    assert {item.finish_reason for item in found} == {"settled"}
    assert all(item.new_tokens < other.new_tokens for item, other in zip(found, whole, strict=True))
    assert same(found, answers(reference, llama, RoPE(), requests(), settled))


def test_end_tokens_end_an_answer_but_not_before_its_least_length(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, reference = engines
    plain = answers(ours, llama, RoPE(), requests())
    text_ids = make_tokenizer().encode(plain[0].text, add_special_tokens=False)
    ours.eos_token_ids = frozenset(text_ids)
    reference.core.runner.eos_token_ids = frozenset(text_ids)
    try:
        ended = answers(ours, llama, RoPE(), requests())
        assert "eos" in {item.finish_reason for item in ended}
        assert same(ended, answers(reference, llama, RoPE(), requests()))
        later = answers(ours, llama, RoPE(), requests(least=4))
        assert all(item.new_tokens >= 5 for item in later)
        assert same(later, answers(reference, llama, RoPE(), requests(least=4)))
    finally:
        ours.eos_token_ids = frozenset({1})
        reference.core.runner.eos_token_ids = frozenset({1})


def test_one_vllm_engine_a_cell(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, _ = engines
    answers(ours, llama, YaRN(), requests())
    kept = ours.llm
    answers(ours, llama, YaRN(), requests(2))
    assert ours.llm is kept
    answers(ours, llama, NTK(), requests(2))
    assert ours.llm is not kept


def test_a_factor_of_each_prompts_own_is_refused(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, _ = engines
    ours.load(llama)
    [batch] = ours.batches(requests(), False)
    with pytest.raises(UserError, match="--length natural"):
        list(ours.generate(batch, contestant(llama, PI(), NATURAL), never))
    assert len(list(ours.generate(batch, contestant(llama, RoPE(), NATURAL), never))) == 4
