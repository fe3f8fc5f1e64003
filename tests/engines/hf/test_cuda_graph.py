from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from longctx_bench.core.types import Request
from longctx_bench.engines.hf import cuda_graph
from longctx_bench.engines.hf.cuda_graph import CudaGraphDecoder, decode_attention_kernel, supports_cuda_graph
from longctx_bench.engines.hf.engine import apply_method
from longctx_bench.engines.hf.engine_core import EngineCore
from longctx_bench.engines.hf.kv_cache import KVCache
from longctx_bench.engines.hf.model_runner import DecodeStep, ModelRunner, Step
from longctx_bench.engines.hf.prefill_scheduler import num_padded_tokens, split_by_token_budget
from longctx_bench.engines.hf.scheduler import SchedulerConfig
from longctx_bench.engines.request_state import RequestState
from longctx_bench.methods import METHODS
from longctx_bench.methods.banded import far_band, near_band
from longctx_bench.methods.banded_attention import BandedRotation, supports_capture, use_banded_attention
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.mrrope import MrRoPEPro
from longctx_bench.methods.rope_scaling import RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest

pytestmark = pytest.mark.slow

EOS = 54
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))


@pytest.fixture(scope="module", params=["cpu", CUDA])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3, bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return made.to(request.param)


def never(example_id: str, text: str) -> bool:
    return False


def _ids(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(6, 60, (length,), generator=generator).tolist()) for length in lengths]


def _generated(model: PreTrainedModel, ids: Sequence[int], new: int) -> list[int]:
    asked = torch.tensor([list(ids)], device=model.device)
    whole = model.generate(asked, max_new_tokens=new, do_sample=False)  # type: ignore[operator]
    return whole[0, len(ids) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("replayed", [True, False], ids=["graph", "drafts"])
@pytest.mark.parametrize("pool", [None, 1, 140, 300])
@pytest.mark.parametrize("idle", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("least", [0, 7])
def test_tokens_are_those_of_generate(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, idle: float, least: int, pool: int | None, replayed: bool
) -> None:
    """On a CPU the step runs each time; where there is a GPU, it is captured there."""
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    prompts = _ids(30, 25, 30, 41, 3, 12)
    prompts.append((*prompts[3][:35], *_ids(6)[0]))
    answers = [_generated(model, ids, 40 - 5 * place) for place, ids in enumerate(prompts)]
    requests = []
    for place, (ids, expected) in enumerate(zip(prompts, answers, strict=True)):
        # Right drafts, wrong ones, and none.
        draft = [(tuple(expected[:9]),), ((*expected[:2], 7, 7),), ()][place % 3]
        requests.append(Request(str(place), ids, 40 - 5 * place, min_new_tokens=least, drafts=draft))
    config = SchedulerConfig(64, idle, async_scheduling=replayed, cuda_graph=replayed)
    core = EngineCore(ModelRunner(model, frozenset([EOS])), tokenizer, config)
    batch_tokens: list[int] = []
    execute = core.runner.execute

    def watched(step: Step) -> Any:
        if isinstance(step, DecodeStep) and step.batch.graph is None:
            several = len(step.batch.states) > 1
            batch_tokens.append(num_padded_tokens(step.batch.unfinished()) * several)
        return execute(step)

    monkeypatch.setattr(core.runner, "execute", watched)
    found = [(each.text, len(each.tokens), each.finish_reason) for each in core.generate(requests, never, 10**6, pool)]
    for expected, (text, count, why) in zip(answers, found, strict=True):
        if least and EOS in expected[:least]:
            continue
        assert text == " ".join(map(str, expected))
        assert (count, why) == (len(expected), "eos" if expected[-1] == EOS else "length")
    assert {why for _, _, why in found} == {"eos", "length"}, "both ends are tried"
    assert pool is None or max(batch_tokens) <= pool, "no more than was allowed is held"


@pytest.mark.parametrize(
    "method", [MrRoPEPro(), YaRN(query_scale="log-n"), RoPE(query_scale="llama4")], ids=lambda method: repr(method)[:40]
)
def test_lists_of_factors_and_scaled_queries_are_in_the_step(model: PreTrainedModel, method: Method) -> None:
    """The step asks nothing of the positions that a captured one could not answer; queries go on growing in it."""
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    prompts = _ids(30, 9, 17)
    shape = {"head_dim": 8, "hidden_size": 48, "num_attention_heads": 6, "rope_theta": 10000.0}
    who = ModelUnderTest(BaseModelInfo("small", 16, shape), method, 96)
    plain = [_generated(model, ids, 40) for ids in prompts]
    config = SchedulerConfig(64, 0.5, async_scheduling=True, cuda_graph=True)
    with apply_method(model, who, 96):
        answers = [_generated(model, ids, 40) for ids in prompts]
        core = EngineCore(ModelRunner(model, frozenset([EOS])), tokenizer, config)
        assert core.runner.has_stable_keys
        requests = [Request(str(place), ids, 40) for place, ids in enumerate(prompts)]
        found = [each.text for each in core.generate(requests, never, 10**6)]
    assert found == [" ".join(map(str, answer)) for answer in answers]
    assert answers != plain


@pytest.mark.parametrize("name", ["self-extend", "leaky-rerope", "jet-long", "lm-infinite", "streaming-llm", "dca"])
def test_bands_move_with_the_step(model: PreTrainedModel, name: str) -> None:
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    prompts = _ids(30, 9, 17)
    who = ModelUnderTest(BaseModelInfo("small", 16, model.config.to_dict()), METHODS[name](), 96)
    plain = [_generated(model, ids, 40) for ids in prompts]
    with apply_method(model, who, 96):
        assert supports_capture(model)
        config = SchedulerConfig(64, 0.5, async_scheduling=False, cuda_graph=False)
        requests = [Request(str(place), ids, 40) for place, ids in enumerate(prompts)]
        answers = []
        for request in requests:
            core = EngineCore(ModelRunner(model, frozenset([EOS])), tokenizer, config)
            answers += [each.text for each in core.generate([request], never, 10**6)]
        config = SchedulerConfig(64, 0.5, async_scheduling=True, cuda_graph=True)
        core = EngineCore(ModelRunner(model, frozenset([EOS])), tokenizer, config)
        found = [each.text for each in core.generate(requests, never, 10**6)]
    assert found == answers
    assert answers != [" ".join(map(str, answer)) for answer in plain]


def test_maps_of_positions_that_need_the_host_are_not_captured(model: PreTrainedModel) -> None:
    table = torch.arange(96) // 2
    maps: list[tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = [
        (lambda i: i // 2, True),
        (lambda i: torch.where(i > 8, i.double().log(), 1.0), True),
        (lambda i: i // 2 if int(i.max()) > 8 else i, False),
        (lambda i: torch.tensor([0, 1, 2], device=i.device)[i // 3], False),
        (lambda i: i.new_tensor([0, 1, 2])[i // 3], False),
        (lambda i: table.to(i.device)[i], False),
    ]
    for number, (position_map, is_captured) in enumerate(maps):
        bands = near_band(8), far_band(8, key=position_map)
        with use_banded_attention(model, BandedRotation(bands, [1.0, 0.5, 0.1, 0.01])):
            assert supports_capture(model) == is_captured, number
    assert not supports_capture(model)


@pytest.mark.parametrize("lengths", [(30,), (30, 25, 41)], ids=["one", "several"])
def test_while_it_is_decoded_a_prompt_is_held_once(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "")
    config = SchedulerConfig(1, 0.5, async_scheduling=True, cuda_graph=True)
    core = EngineCore(ModelRunner(model, frozenset()), tokenizer, config)
    caches: list[KVCache] = []
    allocated: list[int] = []
    execute = core.runner.execute

    def watched(step: Step) -> Any:
        if isinstance(step, DecodeStep):
            allocated.append(sum(cache.is_allocated for cache in [*caches, step.batch.cache]))
        else:
            caches.append(step.cache)
        return execute(step)

    monkeypatch.setattr(core.runner, "execute", watched)
    core.generate([Request(str(place), ids, 5) for place, ids in enumerate(_ids(*lengths))], never, 10**6)
    assert len(caches) == len(lengths)
    assert set(allocated) == {1}, "only the running batch's cache, at each step"


def test_windows_have_no_common_length_and_are_decoded_in_step() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=60, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3, eos_token_id=EOS, pad_token_id=0, use_sliding_window=True,
        sliding_window=8, max_window_layers=1,
    )  # fmt: skip
    own = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    requests = [Request(str(place), ids, 20) for place, ids in enumerate(_ids(30, 30, 30, 30))]
    core = EngineCore(ModelRunner(own, frozenset([EOS])), tokenizer, SchedulerConfig(64))
    for request, state in zip(requests, core.generate(requests, never, 10**6, 100), strict=True):
        assert state.text == " ".join(map(str, _generated(own, request.input_ids, 20)))


@torch.inference_mode()
def test_afterwards_the_cache_is_an_ordinary_one_without_the_step_nobody_asked_for(model: PreTrainedModel) -> None:
    (ids,) = _ids(30)
    expected = _generated(model, ids, 8)
    cache = KVCache(model.config, 50)
    here = model.device
    first = model(torch.tensor([ids], device=here), past_key_values=cache, use_cache=True).logits[0, -1].argmax()
    decoder = CudaGraphDecoder(model, cache, torch.ones(1, 30, dtype=torch.bool, device=here), [int(first)], 7)
    steps = [decoder.step() for _ in range(5)]
    found = [int(first), *(step.tolist()[0][0] for step in steps[:4])]
    assert found == expected[:5]
    kv_mask = decoder.close(num_steps=4)
    assert cache.num_tokens == 34 == kv_mask.shape[1]
    assert bool(kv_mask.all())
    logits = model(torch.tensor([found[-1:]], device=here), past_key_values=cache, use_cache=True).logits
    assert int(logits[0, -1].argmax()) == expected[5]


def test_models_that_read_the_attentions_name_themselves_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SimpleNamespace(IMPLEMENTATION="longctx_bench_one_query", one_query_attention=lambda *_: None)
    monkeypatch.setattr(cuda_graph, "flash_decoding", kernel)
    own: Any = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="sdpa"),
        device=torch.device("cuda"),
        _supports_attention_backend=False,
    )
    with decode_attention_kernel(own):
        assert own.config._attn_implementation == "sdpa"
    own._supports_attention_backend = True
    with decode_attention_kernel(own):
        assert own.config._attn_implementation == "longctx_bench_one_query"
    assert own.config._attn_implementation == "sdpa"
    monkeypatch.setattr(cuda_graph, "flash_decoding", None)
    with decode_attention_kernel(own):
        assert own.config._attn_implementation == "sdpa", "without Triton, torch's own"


@pytest.mark.parametrize(("tokens", "sizes"), [(1, [1, 1, 1, 1]), (80, [2, 1, 1]), (120, [3, 1]), (10**6, [4])])
def test_rows_are_parted_in_order_by_what_they_hold_when_padded(tokens: int, sizes: list[int]) -> None:
    states = [RequestState(Request(str(place), ids, 10)) for place, ids in enumerate(_ids(30, 20, 30, 40))]
    found = split_by_token_budget(states, tokens)
    assert [len(part) for part in found] == sizes
    assert [state for part in found for state in part] == states


def test_only_models_whose_steps_are_alike_on_a_gpu() -> None:
    def like(**others: Any) -> Any:
        config = SimpleNamespace(_attn_implementation=others.pop("attention", "sdpa"))
        known = {"device": torch.device("cuda"), "_can_compile_fullgraph": True, "_supports_attention_backend": True}
        return SimpleNamespace(config=config, **{**known, **others})

    assert supports_cuda_graph(like())
    assert not supports_cuda_graph(like(device=torch.device("cpu")))
    assert not supports_cuda_graph(like(attention="longctx_bench_alibi")), "a method's own attention is left alone"
    assert not supports_cuda_graph(like(_can_compile_fullgraph=False))
    assert not supports_cuda_graph(like(_supports_attention_backend=False))
