"""Banded methods against their definitions written out, and against what the original code gave."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_types import CONTEXT, answers, build, types
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, LlamaForCausalLM

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.methods import METHODS, banded_attention, banded_prefill
from longctx_bench.methods.banded import MODEL_TYPES, Band, BandedAttention, far_band, near_band
from longctx_bench.methods.banded_attention import BandedRotation, use_banded_attention
from longctx_bench.methods.banded_prefill import Window, as_window, block_mask
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.tuned_parameters import TunedParameters
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

ORACLE = json.loads((Path(__file__).parent.parent / "data" / "banded_attention.json").read_text())
L0 = 32
"""Training context of the models here, in tokens."""
SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": L0, "initializer_range": 0.3,
}  # fmt: skip
BASE = BaseModelInfo("small", L0, {"model_type": "llama", **SHAPE})


def self_extend(w: int, g: int) -> Callable[[int, int], float]:
    return lambda i, j: i - j if i - j < w else i // g + w - w // g - j // g


def string(s: int, w: int) -> Callable[[int, int], float]:
    return lambda i, j: i - j if i - j < s else i - j - s + w


def dca(size: int, local: int) -> Callable[[int, int], float]:
    chunk = size - local

    def distance(i: int, j: int) -> float:
        apart = i // chunk - j // chunk
        query = i % chunk if apart == 0 else min(i % chunk + chunk, size) if apart == 1 else size
        return query - j % chunk

    return distance


def lm_infinite(w: int, n: int) -> Callable[[int, int], float | None]:
    return lambda i, j: i - j if i - j < w else w if j < n else None


def streaming(w: int, n: int) -> Callable[[int, int], float | None]:
    def distance(i: int, j: int) -> float | None:
        kept = [*range(n), *range(i - (w - n) + 1, i + 1)] if i >= w else [*range(i + 1)]
        return kept.index(i) - kept.index(j) if j in kept else None

    return distance


DEFINITIONS: list[tuple[str, dict[str, Any], Callable[[int, int], float | None]]] = [
    ("self-extend", {"window": 8, "group": 4}, self_extend(8, 4)),
    ("self-extend", {"window": 8, "group": 3}, self_extend(8, 3)),
    # 2/3 of 32 is 21.3: (80 - 8) / (21.3 - 8) is 5.4.
    ("self-extend", {}, self_extend(8, 6)),
    ("rerope", {"window": 5, "log_n": False}, lambda i, j: min(i - j, 5)),
    (
        "leaky-rerope",
        {"window": 5, "slope": 3, "log_n": False},
        lambda i, j: i - j if i - j < 5 else 5 + (i - j - 5) / 3,
    ),
    ("jet-long", {"window": 6}, lambda i, j: i - j if i - j <= 6 else i // 3 - j // 3),
    ("string", {"shift": 12, "window": 3}, string(12, 3)),
    ("lm-infinite", {"window": 20, "sinks": 3}, lm_infinite(20, 3)),
    ("lm-infinite", {"window": 20, "sinks": 0}, lm_infinite(20, 0)),
    ("streaming-llm", {"window": 20, "sinks": 3}, streaming(20, 3)),
    ("dca", {"chunk_size": 20, "local_window": 6}, dca(20, 6)),
]
LENGTH = 80
IDS = [f"{name}-{index}" for index, (name, *_) in enumerate(DEFINITIONS)]


def written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    distance: Callable[[int, int], float | None],
) -> torch.Tensor:
    """Attention ``[1, heads, tokens, width]`` from its definition: a turn by distance x frequency, pair by pair."""
    heads, tokens, width = query.shape[1:]
    frequencies = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    distances = [[distance(i, j) if j <= i else None for j in range(tokens)] for i in range(tokens)]
    allowed = torch.tensor([[d is not None for d in row] for row in distances])
    turns = torch.tensor([[d or 0 for d in row] for row in distances]).double()
    outputs = []
    for head in range(heads):
        q, k = query[0, head].double(), key[0, head // (heads // key.shape[1])].double()
        half = width // 2
        logits = torch.zeros(tokens, tokens, dtype=torch.double)
        for pair in range(half):
            cos, sin = (turns * frequencies[pair]).cos(), (turns * frequencies[pair]).sin()
            dot = q[:, None, pair] * k[None, :, pair] + q[:, None, pair + half] * k[None, :, pair + half]
            cross = q[:, None, pair] * k[None, :, pair + half] - q[:, None, pair + half] * k[None, :, pair]
            logits += dot * cos + cross * sin
        weights = (logits * scale).masked_fill(~allowed, -torch.inf).softmax(-1)
        outputs.append(weights @ value[0, head // (heads // key.shape[1])].double())
    return torch.stack(outputs)[None].float()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def make(name: str, **params: Any) -> BandedAttention:
    method = METHODS[name](**params)
    assert isinstance(method, BandedAttention)
    return method


@contextmanager
def applied(model: Any, method: Any, length: int = LENGTH) -> Iterator[None]:
    with apply_method(model, ModelUnderTest(BASE, method, length), length), torch.inference_mode():
        yield


def tokens(rows: int, size: int) -> torch.Tensor:
    return torch.randint(1, 60, (rows, size), generator=torch.Generator().manual_seed(3))


class Everything(BandedAttention):
    """All keys at their true positions, by the attention for bands."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        return (near_band(10**6),)

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        return 0


@pytest.mark.parametrize("way", ["one block", "blocks", "plain"])
@pytest.mark.parametrize(("name", "params", "distance"), DEFINITIONS, ids=IDS)
def test_attention_is_the_definition_written_out(
    model: Any, name: str, params: dict[str, Any], distance: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "one block":
        monkeypatch.setattr(banded_attention, "_MAX_BLOCK", 16)
    if way == "plain":
        monkeypatch.setattr(banded_attention, "_FLASH", None)  # as on a GPU behind a cache
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, LENGTH, 8, generator=generator) for heads in (4, 2, 2))
    expected = written_out(query, key, value, 0.6, distance)
    with applied(model, make(name, **params)):
        attend = banded_attention.banded_attention
        layer = model.model.layers[0].self_attn
        whole, _ = attend(layer, query, key, value, None, scaling=0.6)
        # The last tokens behind a cache, and one alone.
        chunk, _ = attend(layer, query[:, :, 50:], key, value, None, scaling=0.6)
        single, _ = attend(layer, query[:, :, -1:], key, value, None, scaling=0.6)
    torch.testing.assert_close(whole.transpose(1, 2), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(chunk.transpose(1, 2), expected[:, :, 50:], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(single.transpose(1, 2), expected[:, :, -1:], atol=2e-6, rtol=1e-5)


def flash_reference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: Window, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What flash attention computes, whose windows are aligned at the last query and key."""
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], 1) for states in (key, value))
    logits = query @ key.transpose(2, 3) * scale
    logits = logits.masked_fill(~of_window(window, *logits.shape[2:]), -torch.inf)
    return logits.softmax(-1) @ value, logits.logsumexp(-1)


def of_window(window: Window, queries: int, keys: int) -> torch.Tensor:
    """Return which keys a window has, bool ``[queries, keys]``."""
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    left = keys if window.left < 0 else window.left
    right = keys if window.right < 0 else window.right
    return (distance <= left) & (distance >= -right)


@pytest.mark.parametrize("has_flash", [False, True])
@pytest.mark.parametrize(("name", "params", "distance"), DEFINITIONS, ids=IDS)
def test_the_fused_kernels_are_the_same(
    model: Any, name: str, params: dict[str, Any], distance: Any, has_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention as torch runs it uncompiled: rotations, masks and the merge are those that a GPU takes."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, heads, LENGTH, 8, generator=generator) for heads in (4, 2, 2))
    layer, attend = model.model.layers[0].self_attn, banded_attention.banded_attention
    for queries in (query, query[:, :, 10:], query[:, :, 50:]):
        with applied(model, make(name, **params)):
            expected, _ = attend(layer, queries, key, value, None)
        with monkeypatch.context() as patched, applied(model, make(name, **params)):
            patched.setattr(banded_attention, "_takes_fused", lambda *_: True)
            patched.setattr(banded_attention, "flash_supports", lambda *_: has_flash)
            patched.setattr(banded_prefill, "_flex_attention", lambda: flex_attention)
            patched.setattr(banded_prefill, "_flash_attention", flash_reference)
            patched.setattr(banded_prefill, "_cudnn_attention", flash_reference)
            patched.setattr(banded_prefill, "_cudnn_supports", lambda _: True)
            output, _ = attend(layer, queries, key, value, None)
        torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(9, 3, 64), (16, 8, 128)])
@pytest.mark.parametrize("name", sorted({name for name, *_ in DEFINITIONS}))
def test_on_a_gpu_prompts_are_read_as_block_by_block(
    name: str, heads: int, key_heads: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, tokens, context = make(name), 3000, 512
    bands = method.bands(replace(BASE, training_context=context), tokens)
    frequencies = (1e4 ** (-torch.arange(0, width, 2).double() / width)).tolist()
    rotation = BandedRotation(bands, frequencies, 1.0, context if method.log_n else None)
    query, key, value = (
        torch.randn(3, count, tokens, width, device="cuda", dtype=torch.bfloat16)
        for count in (heads, key_heads, key_heads)
    )
    scale = width**-0.5
    for start in (0, 300, 1700):
        queries, outputs = query[:, :, start:], []
        for fused_from in (128, tokens + 1):
            monkeypatch.setattr(banded_attention, "_FUSED_FROM", fused_from)
            tables = banded_attention.make_tables(rotation, (tokens - start, tokens, query.dtype), None, query.device)
            outputs.append(banded_attention.attend(tables, queries, key, value, scale))
        torch.testing.assert_close(*outputs, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("name", "params", "distance"), DEFINITIONS, ids=IDS)
def test_windows_and_tiles_hold_all_keys_of_a_band(
    name: str, params: dict[str, Any], distance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banded_prefill, "_TILE", 8)
    windows = 0
    for band in make(name, **params).bands(BASE, LENGTH):
        position = torch.arange(3, LENGTH)
        first, last = band.first(position).clamp(min=0), torch.minimum(band.last(position), position)
        num_keys = int(last.max()) + 1
        keys = torch.arange(num_keys)
        inside = (keys >= first[:, None]) & (keys <= last[:, None])
        window = as_window(first, last, num_keys)
        if window is not None:
            windows += 1
            assert not inside[: window.start].any()
            assert torch.equal(of_window(window, len(position) - window.start, num_keys), inside[window.start :])
        found = block_mask(first, last, num_keys, torch.device("cpu"))
        padded = torch.nn.functional.pad(inside, (0, 80 - num_keys, 0, 80 - len(position))).view(10, 8, 10, 8)
        partial = dense(found.kv_num_blocks, found.kv_indices, 10)
        assert found.full_kv_num_blocks is not None
        assert found.full_kv_indices is not None
        whole = dense(found.full_kv_num_blocks, found.full_kv_indices, 10)
        assert torch.equal(partial | whole, padded.any(3).any(1))
        assert not (partial & whole).any()
        assert padded[:-1].transpose(1, 2)[whole[:-1]].all()
    # DCA's chunks are no windows, nor is the band of the first tokens, which enter it one by one.
    assert windows == {"dca": 0, "lm-infinite": 1, "streaming-llm": 1}.get(name, 2)


def test_the_first_tokens_are_a_window_of_all_that_come_later() -> None:
    queries = torch.arange(40)
    assert as_window(queries * 0, queries * 0 + 3, 4) is None
    assert as_window(queries[36:] * 0, queries[36:] * 0 + 3, 4) == Window(0, -1, -1)


def dense(counts: torch.Tensor, numbers: torch.Tensor, keys: int) -> torch.Tensor:
    """Return which tiles are named, bool ``[tiles of queries, tiles of keys]``."""
    named = torch.zeros(numbers.shape[2], keys, dtype=torch.bool)
    for row, (count, order) in enumerate(zip(counts[0, 0].tolist(), numbers[0, 0], strict=True)):
        named[row, order[:count].long()] = True
    return named


def oracle_states(heads: int, seed: float) -> torch.Tensor:
    shape = ORACLE["shape"]
    index = torch.arange(heads * shape["tokens"] * shape["width"], dtype=torch.float64)
    return (2 * torch.sin(seed * index + 0.3 * seed * index.sqrt())).float().view(1, heads, shape["tokens"], -1)


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: f"{case['method']}-{len(case['params'])}")
def test_attention_is_what_the_original_code_gives(model: Any, case: dict[str, Any]) -> None:
    shape = ORACLE["shape"]
    query, key, value = (
        oracle_states(heads, seed)
        for heads, seed in ((shape["heads"], 1.3), (shape["key_heads"], 2.1), (shape["key_heads"], 0.7))
    )
    assert shape["training_context"] == L0
    with applied(model, make(case["method"], **case["params"]), shape["tokens"]):
        layer = model.model.layers[0].self_attn
        output, _ = banded_attention.banded_attention(layer, query, key, value, None)
    torch.testing.assert_close(output[0].flatten(1)[shape["rows"]], torch.tensor(case["output"]), atol=2e-5, rtol=0)


def test_the_originals_depart_where_the_notes_say(model: Any) -> None:
    """Self-Extend's own code does not round w / G: rounded, as in the paper, the numbers are others."""
    [case] = [case for case in ORACLE["cases"] if case["params"].get("floor_shift") is False]
    query, key, value = (oracle_states(*each) for each in ((4, 1.3), (2, 2.1), (2, 0.7)))
    with applied(model, make("self-extend", window=8, group=3), 60):
        output, _ = banded_attention.banded_attention(model.model.layers[0].self_attn, query, key, value, None)
    difference = output[0].flatten(1)[ORACLE["shape"]["rows"]] - torch.tensor(case["output"])
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", ["self-extend", "rerope", "leaky-rerope", "string", "lm-infinite", "streaming-llm", "dca"]
)
def test_padding_chunks_and_decoding_change_nothing(model: Any, name: str) -> None:
    long, short = tokens(1, 70), tokens(1, 45) % 59 + 1
    batch = torch.cat([long, torch.nn.functional.pad(short, (25, 0))])
    mask = torch.ones(2, 70, dtype=torch.long)
    mask[1, :25] = 0
    with applied(model, make(name)):
        alone = [model(long).logits[0], model(short).logits[0]]
        left = model(batch, attention_mask=mask).logits
        torch.testing.assert_close(left[0], alone[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(left[1, 25:], alone[1], atol=2e-5, rtol=1e-4)
        right = model(torch.cat([long, torch.nn.functional.pad(short, (0, 25))])).logits
        torch.testing.assert_close(right[1, :45], alone[1], atol=2e-5, rtol=1e-4)
        cache, parts = None, []
        for start, stop in ((0, 40), (40, 66), *((index, index + 1) for index in range(66, 70))):
            output = model(batch[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1)[:, 30:], left[:, 30:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "params", "longest"),
    [
        ("jet-long", {}, L0),
        ("lm-infinite", {}, L0),
        ("streaming-llm", {}, L0),
        ("self-extend", {"window": 12}, 12),
        ("rerope", {"window": 12}, 13),
        ("leaky-rerope", {"window": 12}, 13),
        ("string", {"shift": 12}, 12),
        ("dca", {"chunk_size": 20, "local_window": 6}, 21),
    ],
)
def test_within_the_window_it_is_the_base(model: Any, name: str, params: dict[str, Any], longest: int) -> None:
    ids = tokens(1, 2 * L0)
    method = make(name, **params)
    with torch.inference_mode():
        plain, beyond = model(ids[:, :longest]).logits, model(ids).logits
    with applied(model, method, longest):
        assert torch.equal(model(ids[:, :longest]).logits, plain)
    with applied(model, method, 2 * L0):
        assert not torch.allclose(model(ids).logits, beyond, atol=1e-3)
        if not method.per_prompt:
            # A short prompt of a longer cell goes through the bands, whose sums have another order.
            torch.testing.assert_close(model(ids[:, :longest]).logits, plain, atol=2e-5, rtol=1e-4)
    assert method.exact_up_to(BASE, 2 * L0) == (longest if not method.per_prompt else 3)
    if longest < L0:
        assert method.changes_at_1x
        with applied(model, method, L0):
            changed = model(ids[:, :L0]).logits
        assert not torch.allclose(changed, beyond[:, :L0], atol=1e-3)


BY_LENGTH = TunedParameters(table={1.5: {"window": 2}, 2: {"window": 4}}, objective="retrieval")


@pytest.mark.parametrize(
    ("name", "params", "lengths", "apart"),
    [
        ("jet-long", {}, {L0 + 1, 2 * L0 - 3, 2 * L0}, False),
        ("jet-long", {}, {3, L0}, False),
        ("jet-long", {}, {2 * L0, 2 * L0 + 1}, True),
        ("jet-long", {"factor": 4.0}, {L0, 3 * L0}, False),
        ("jet-long", {"factor": 4.0}, {2, L0}, True),
        ("jet-long", {"tuned_parameters": BY_LENGTH}, {L0 + 1, 5 * L0 // 4}, False),
        ("jet-long", {"tuned_parameters": BY_LENGTH}, {L0 + 1, 2 * L0}, True),
        ("self-extend", {}, {3, 2 * L0}, False),
        ("dynamic-ntk", {}, {3, 4}, True),
        ("dynamic-ntk", {}, {3}, False),
    ],
)
def test_prompts_of_different_lengths_share_a_batch_where_the_method_is_the_same_for_them(
    name: str, params: dict[str, Any], lengths: set[int], apart: bool
) -> None:
    assert METHODS[name](**params).needs_equal_lengths(BASE, lengths) == apart


def test_log_n_scales_queries_beyond_the_training_context(model: Any) -> None:
    query, key, value = (oracle_states(*each) for each in ((4, 1.3), (2, 2.1), (2, 0.7)))
    scale = torch.tensor([max(1.0, math.log(i + 1) / math.log(L0)) for i in range(60)])[:, None]
    layer, attend = model.model.layers[0].self_attn, banded_attention.banded_attention
    with applied(model, Everything(), 60):
        expected, _ = attend(layer, query * scale, key, value, None)
        unscaled, _ = attend(layer, query, key, value, None)
    with applied(model, Everything(log_n=True), 60):
        output, _ = attend(layer, query, key, value, None)
    torch.testing.assert_close(output, expected)
    assert torch.equal(output[:, :L0], unscaled[:, :L0])
    assert not torch.allclose(output[:, L0:], unscaled[:, L0:], atol=1e-4)


@pytest.mark.parametrize("name", ["rerope+log-n", "leaky-rerope+llama4"])
def test_queries_are_not_scaled_twice(name: str) -> None:
    with pytest.raises(UserError, match="log_n and query_scale"):
        Registry().variant(f"{name}-tiny")
    plain = name.partition("+")[0]
    assert Registry(settings={plain: {"log_n": False}}).variant(f"{name}-tiny").method.query_scale != "none"


def test_two_models_under_two_methods_do_not_mix(model: Any) -> None:
    torch.manual_seed(5)
    other, ids = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval(), tokens(1, 60)
    with applied(other, make("rerope")):
        expected = other(ids).logits
        with applied(model, make("string")):
            model(ids)
            assert torch.equal(other(ids).logits, expected)
        assert torch.equal(other(ids).logits, expected)
    assert not banded_attention._ACTIVE


def test_bfloat16_follows_fp32(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(1, heads, LENGTH, 8, generator=generator) for heads in (4, 2, 2)]
    halves = [each.bfloat16() for each in states]
    layer = model.model.layers[0].self_attn
    with applied(model, make("self-extend", window=8, group=4)):
        exact, _ = banded_attention.banded_attention(layer, *(each.float() for each in halves), None)
        rounded, _ = banded_attention.banded_attention(layer, *halves, None)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_one_band_of_all_keys_is_each_model_types_own_attention(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    config = build(tmp_path / "model", kind, types().get(kind, (kind, {}))[1], tiny_folder)
    model = load_model(tmp_path / "model", "float32", "cpu")
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        # Norms of queries and keys are one at first, and would hide that they follow the rotation.
        if "norm" in name:
            weight.data.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    ids = torch.randint(5, 250, (2, 40), generator=generator)
    with torch.inference_mode():
        plain = model(ids).logits
    base = BaseModelInfo("x", CONTEXT, config)
    with apply_method(model, ModelUnderTest(base, Everything(), CONTEXT), CONTEXT), torch.inference_mode():
        banded = model(ids).logits
    assert float((banded - plain).abs().max() / plain.abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jet-long", "dca", "streaming-llm"])
def test_prefix_sharing_drafts_and_batches_change_no_token(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    config = build(tmp_path / "model", "llama", {}, tiny_folder)
    who = ModelUnderTest(BaseModelInfo("x", CONTEXT, config), make(name), 3 * CONTEXT)
    generator = torch.Generator().manual_seed(4)
    prefix = torch.randint(5, 250, (130,), generator=generator).tolist()
    rows = [[*prefix, *torch.randint(5, 250, (size,), generator=generator).tolist()] for size in (40, 12, 12, 25)]
    asked = [Request(f"{index:06d}", tuple(row), 6) for index, row in enumerate(rows)]
    found = []
    for options in ({"exact": True}, {}, {"prefix_sharing": False}):
        engine = HFEngine(device="cpu", dtype="float32", batch_tokens=4096, **options)
        engine.load(tmp_path / "model")
        found.append(answers(engine, who, asked, together=True))
        ids = [tuple(engine.core.tokenizer(text, add_special_tokens=False).input_ids) for text, _ in found[0]]
        # A guess that is right for some, and wrong for others after two tokens.
        asked = [
            replace(each, drafts=(draft if index % 2 else (*draft[:2], 9, 9),))
            for index, (each, draft) in enumerate(zip(asked, ids, strict=True))
        ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("self-extend", {"window": 33}, "self-extend's window of 33 tokens is longer than the training context of 32"),
        ("rerope", {"window": 64}, "rerope's window of 64 tokens is longer"),
        ("jet-long", {"window": 33}, "jet-long's window of 33 tokens is longer"),
        ("lm-infinite", {"window": 33}, "lm-infinite's window of 33 tokens is longer"),
        ("string", {"shift": 33}, "string's shift of 33 tokens is longer"),
        ("string", {"shift": 5, "window": 6}, "string's window of 6 tokens is longer than its shift of 5"),
        ("streaming-llm", {"window": 4}, "4 sinks leave nothing of its 4 tokens"),
        ("dca", {"chunk_size": 33}, "dca's chunk_size of 33 tokens is longer"),
        ("dca", {"local_window": 24}, "local_window of 24 tokens leaves nothing of its chunk_size of 24"),
        ("self-extend", {"window": 24}, "leaves no room for groups"),
    ],
)
def test_parameters_that_do_not_fit_are_one_line(name: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make(name, **params).model_overrides(BASE, 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("self-extend", {"group": 0}),
        ("rerope", {"window": 0}),
        ("leaky-rerope", {"slope": 0.5}),
        ("dca", {"chunk_size": 1}),
        ("string", {"attention_factor": 0.0}),
        ("lm-infinite", {"sinks": -1}),
    ],
)
def test_parameters_without_meaning_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        make(name, **params)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "has no rotary positions"),
        (
            {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4},
            "it rotates only 4 of the 16 dimensions",
        ),
        ({"model_type": "cohere"}, "a cohere is none of the model types"),
        ({"model_type": "mistral", "sliding_window": 16}, "attend to a window alone"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
            "window alone",
        ),
        ({**BASE.config, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
    ],
)
def test_models_that_it_is_not_defined_for_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make("rerope").model_overrides(BaseModelInfo("other", L0, {"num_hidden_layers": 2, **config}), 64)
    assert "\n" not in str(error.value)


def test_masks_that_would_be_misread_are_refused(model: Any) -> None:
    ids = tokens(1, 10)
    gaps = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1, 1]])
    with applied(model, make("rerope")):
        with pytest.raises(UserError, match="gaps"):
            model(ids, attention_mask=gaps)
        with pytest.raises(UserError, match="mask of its own"):
            model(ids, attention_mask=torch.ones(1, 1, 10, 10, dtype=torch.bool).tril())


def test_no_matrix_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """The largest tensor grows with the tokens, not with their square."""
    monkeypatch.setattr(banded_attention, "_MAX_LOGITS", 2**12)
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest[-1] = max(largest[-1], result.numel())
            return result

    method = far_band(16, query=lambda i: i // 4, key=lambda j: j // 4)
    for size in (512, 1024):
        largest.append(0)
        states = [torch.randn(1, heads, size, 8) for heads in (2, 1, 1)]
        rotation = BandedRotation((near_band(16), method), [1.0, 0.1, 0.01, 0.001])
        with use_banded_attention(model, rotation), torch.inference_mode(), Watch():
            banded_attention.banded_attention(model.model.layers[0].self_attn, *states, None)
    assert largest[1] <= 2 * largest[0] < 512 * 512
