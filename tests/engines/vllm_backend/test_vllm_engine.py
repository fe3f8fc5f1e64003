"""The vLLM engine against the transformers engine, on real models; skipped where vLLM is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import make_model, make_tokenizer

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL, Generation, Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.methods import METHODS
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.jet_long import JetLong
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rope_scaling import NTK, PI, Llama3, RoPE, YaRN
from longctx_bench.methods.scalar_schedule import ScalarSchedule
from longctx_bench.methods.self_extend import SelfExtend
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


def make_qwen2(folder: Path) -> Path:
    """Save a random Qwen2, its biases not zero."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(2)
    config = Qwen2Config(
        **SHAPE, vocab_size=len(tokenizer), initializer_range=0.2, eos_token_id=1, bos_token_id=0, pad_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(weight, -0.5, 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests(count: int = 4, new: int = 12, least: int = 0, sizes: Sequence[int] = ()) -> list[Request]:
    generator = torch.Generator().manual_seed(7)
    sizes = sizes or [300 + 37 * index for index in range(count)]
    rows = [torch.randint(2, 500, (size,), generator=generator).tolist() for size in sizes]
    return [Request(f"{place:06d}", tuple(ids), new, min_new_tokens=least) for place, ids in enumerate(rows)]


def never(example_id: str, text: str) -> bool:
    return False


def contestant(folder: Path, method: Method, length: int = 512) -> ModelUnderTest:
    return ModelUnderTest(BaseModelInfo("small", 256, json.loads((folder / "config.json").read_text())), method, length)


def answers(
    engine: Any, folder: Path, method: Method, asked: list[Request], settled: Any = never, length: int = 512
) -> list[Generation]:
    engine.load(folder)
    found = [
        item
        for batch in engine.batches(asked, method.per_prompt or length == NATURAL)
        for item in engine.generate(batch, contestant(folder, method, length), settled)
    ]
    return sorted(found, key=lambda item: item.example_id)


def same(mine: list[Generation], theirs: list[Generation]) -> bool:
    said = [(item.example_id, item.text, item.new_tokens, item.prompt_tokens, item.finish_reason) for item in mine]
    return said == [
        (item.example_id, item.text, item.new_tokens, item.prompt_tokens, item.finish_reason) for item in theirs
    ]


BY_CONFIG = [RoPE(), PI(), NTK(), YaRN(), Llama3(), NoPE(), NoPE(temperature=SHARP)]
BY_DISTANCE = ["self-extend", "jet-long", "rerope", "leaky-rerope", "string", "lm-infinite", "streaming-llm", "dca"]


@pytest.mark.parametrize("method", BY_CONFIG, ids=[*(type(m).__name__ for m in BY_CONFIG[:-1]), "NoPE-sharpened"])
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


@pytest.mark.parametrize("name", BY_DISTANCE)
def test_methods_by_distance_run_by_the_plug_in(llama: Path, engines: tuple[Any, HFEngine], name: str) -> None:
    ours, reference = engines
    method = METHODS[name]()
    found = answers(ours, llama, method, requests())
    assert ours.collective_rpc("architecture") == "LlamaBandedForCausalLM"
    assert ours.collective_rpc("rotary_table", [1]) is None
    assert same(found, answers(reference, llama, method, requests()))
    assert not same(found, answers(reference, llama, RoPE(), requests()))


def test_methods_by_distance_run_on_qwen2(tmp_path: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, reference = engines
    folder = make_qwen2(tmp_path / "qwen2")
    found = answers(ours, folder, SelfExtend(), requests())
    assert ours.collective_rpc("architecture") == "Qwen2BandedForCausalLM"
    assert same(found, answers(reference, folder, SelfExtend(), requests()))


def test_prompts_in_chunks_are_read_alike(
    llama: Path, engines: tuple[Any, HFEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm

    ours, reference = engines
    method = SelfExtend(window=40)
    monkeypatch.setattr(vllm, "LLM", partial(vllm.LLM, max_num_batched_tokens=72, max_num_seqs=4))
    found = answers(ours, llama, method, requests())
    assert ours.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens == 72
    assert same(found, answers(reference, llama, method, requests()))


def test_what_prompts_share_is_read_once(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, reference = engines
    method = SelfExtend(window=48)
    shared = [Request(f"{index}", (*requests(1)[0].input_ids[:290], 5 + index, 9), 12) for index in range(3)]
    expected = answers(reference, llama, method, shared)
    # In the first block of 128 tokens that is not shared, distances of the last queries lie in both bands.
    assert same(answers(ours, llama, method, shared), expected)
    prompts = [{"prompt_token_ids": list(request.input_ids)} for request in shared]
    outputs = ours.llm.generate(prompts, [ours._sampling(request) for request in shared], use_tqdm=False)
    assert [output.num_cached_tokens for output in outputs] == [256, 256, 256]
    assert same(answers(ours, llama, method, shared), expected)


@pytest.mark.parametrize(("method", "length"), [(JetLong(), 768), (SelfExtend(window=100), NATURAL)])
def test_bands_follow_each_prompt(llama: Path, engines: tuple[Any, HFEngine], method: Method, length: int) -> None:
    ours, reference = engines
    asked = requests(sizes=[600, 100, 470, 230, 700, 60])
    found = answers(ours, llama, method, asked, length=length)
    assert same(found, answers(reference, llama, method, asked, length=length))
    ours.load(llama)
    groups = ours._groups(asked, contestant(llama, method, length))
    kinds = {None: {1, 3, 5}, "LlamaBandedForCausalLM": {0, 2, 4}} if method.per_prompt else {}
    for kind, members in kinds.items():
        of_kind = [group for group in groups if group.key.hf_overrides.get("architectures", [None]) == [kind]]
        assert {index for group in of_kind for index in group.indices} == members
    batch = [asked[index] for index in (3, 0, 2)]
    ours.batches(batch, method.per_prompt)
    in_order = [item.example_id for item in ours.generate(batch, contestant(llama, method, length), never)]
    assert in_order == [request.example_id for request in batch]


def test_up_to_its_training_context_a_model_is_left_alone(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, _ = engines
    answers(ours, llama, JetLong(), requests(sizes=[100, 200]), length=256)
    assert ours.collective_rpc("architecture") == "LlamaForCausalLM"


def test_wrong_parameters_are_one_line(llama: Path, engines: tuple[Any, HFEngine]) -> None:
    ours, _ = engines
    with pytest.raises(UserError, match="window of 300 tokens is longer than the training context of 256"):
        answers(ours, llama, SelfExtend(window=300), requests())


_IN_ANOTHER_PROCESS = """
import sys, json
from pathlib import Path
from engines.vllm_backend import test_vllm_engine as here
from longctx_bench.engines.vllm_backend.engine import VLLMEngine
if __name__ == "__main__":
    engine = VLLMEngine(dtype="float32")
    found = here.answers(engine, Path(sys.argv[1]), here.SelfExtend(), here.requests())
    print(json.dumps([type(engine.llm.llm_engine.engine_core).__name__, *(item.text for item in found)]))
"""


@pytest.mark.slow
def test_the_plug_in_is_active_in_vllms_own_processes(
    llama: Path, engines: tuple[Any, HFEngine], tmp_path: Path
) -> None:
    script = tmp_path / "main.py"
    script.write_text(_IN_ANOTHER_PROCESS)
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, str(script), str(llama)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    reference = answers(engines[1], llama, SelfExtend(), requests())
    assert json.loads(ran.stdout.splitlines()[-1]) == ["SyncMPClient", *(item.text for item in reference)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self-extend-tiny", "jet-long-tiny"])
def test_parity_certifies_them(call: Any, tmp_path: Path, name: str) -> None:
    options = ("--length", "1024", "--limit", "4", "--new-tokens", "8", "--fp64-prompts", "1", "--format", "json")
    code, out, said = call("parity", name, *options, "--out", tmp_path)
    assert code == 0, said
    [row] = json.loads(out)
    assert row["passed"]
    assert row["first_token_difference"] < 1e-3
