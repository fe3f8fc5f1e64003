from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longctx_bench.methods.alibi import ALiBi, alibi_attention, slopes
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.nope import nope_rope_parameters

BASE = BaseModelInfo("alibi-tiny", 32, {"hidden_size": 32, "num_attention_heads": 4})


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_parameters=nope_rope_parameters(1e4), initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("heads", "expected"),
    [(1, [2**-8]), (4, [2**-2, 2**-4, 2**-6, 2**-8]), (5, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1])],
)
def test_slopes_are_the_papers(heads: int, expected: list[float]) -> None:
    assert slopes(heads) == expected


def test_attention_is_the_formula_written_out() -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    got, _ = alibi_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3)
    for head in range(4):
        for row in range(3):
            place = 4 + row
            scores = [0.3 * float(query[0, head, row] @ key[0, head // 2, other]) for other in range(place + 1)]
            biased = torch.tensor([s - slopes(4)[head] * (place - other) for other, s in enumerate(scores)])
            expected = biased.softmax(0) @ value[0, head // 2, : place + 1]
            torch.testing.assert_close(got[0, row, head], expected)


def test_left_padding_and_cache_change_nothing(model: Any) -> None:
    long, short = torch.arange(1, 13)[None], torch.arange(20, 27)[None]
    batch = torch.cat([long, torch.nn.functional.pad(short, (5, 0))])
    mask = (batch != 0).long()
    with ALiBi().patch(model, BASE, 12), torch.no_grad():
        alone = [model(long).logits[0], model(short).logits[0]]
        padded = model(batch, attention_mask=mask).logits
        torch.testing.assert_close(padded[0], alone[0])
        torch.testing.assert_close(padded[1, 5:], alone[1])
        prefix = model(batch[:, :9], attention_mask=mask[:, :9], use_cache=True)
        rest = model(batch[:, 9:], attention_mask=mask, past_key_values=prefix.past_key_values).logits
        torch.testing.assert_close(rest, padded[:, 9:])


def test_it_is_undone_on_exit(model: Any) -> None:
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        before = model(ids).logits
        with ALiBi().patch(model, BASE, 12):
            inside = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    assert not torch.allclose(inside, before, atol=1e-3)
