"""Banded attention over pages against the same over whole sequences; none of it needs vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx_bench.core.errors import UserError
from longctx_bench.core.plugins import load_object, location_of
from longctx_bench.engines.vllm_backend.banded_config import banded_config, banded_rotation, bands_digest
from longctx_bench.engines.vllm_backend.paged_attention import (
    PagedSequence,
    attend_paged,
    group_sequences,
    make_rows,
    write_cache,
)
from longctx_bench.methods import METHODS
from longctx_bench.methods.banded import BandedAttention
from longctx_bench.methods.banded_attention import attend, make_tables
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rope_scaling import RoPE

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rope_theta": 10000.0}
BASE = BaseModelInfo("small", 32, CONFIG)
NAMES = ["self-extend", "jet-long", "rerope", "leaky-rerope", "string", "lm-infinite", "streaming-llm", "dca"]
LENGTH, BLOCK, HEADS, KEY_HEADS, WIDTH = 100, 8, 4, 2, 16


def make(name: str, **params: Any) -> BandedAttention:
    method = METHODS[name](**params)
    assert isinstance(method, BandedAttention)
    return method


def sequence(total: int, new: int = 1) -> PagedSequence:
    return PagedSequence(0, 0, new, total)


def test_sequences_with_one_new_token_attend_together_unless_that_were_mostly_padding() -> None:
    long, half, short, prompt = sequence(100), sequence(50), sequence(49), sequence(60, new=60)
    assert group_sequences([short, prompt, half, long]) == [[long, half], [short], [prompt]]
    assert group_sequences([prompt, prompt]) == [[prompt], [prompt]]
    assert group_sequences([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_pages_in_any_order_and_passes_of_any_size_give_what_whole_sequences_give(name: str) -> None:
    """Three sequences: a prompt in chunks, a short one read at once, and one that shares the first's first block."""
    generator = torch.Generator().manual_seed(0)
    rotation = make(name).rotation(BASE, LENGTH)
    assert rotation is not None
    totals = [97, 40, 75]
    states = [
        [torch.randn(total, heads, WIDTH, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
        for total in totals
    ]
    for mine, theirs in zip(states[2][1:], states[0][1:], strict=True):
        mine[:BLOCK] = theirs[:BLOCK]
    whole = [
        attend(
            make_tables(rotation, (total, total, torch.float32), None, torch.device("cpu")),
            *(each.transpose(0, 1)[None] for each in of_one),
            scale=0.3,
        )[0].transpose(0, 1)
        for total, of_one in zip(totals, states, strict=True)
    ]
    # Block 0 belongs to nobody, as in vLLM.
    order = (torch.randperm(60, generator=generator) + 1).tolist()
    table = torch.zeros(3, 13, dtype=torch.int32)
    for row in range(3):
        table[row] = torch.tensor([order.pop() for _ in range(13)])
    table[2, 0] = table[0, 0]
    cache = torch.full((61, KEY_HEADS, BLOCK, 2 * WIDTH), torch.nan)
    cache[0] = 0
    # Tokens of each sequence by pass; the third's first block is there already when it comes.
    passes = [(50, 40, 0), (46, 0, 66), (1, 0, 1)]
    done = [0, 0, BLOCK]
    found = [torch.zeros_like(each) for each in whole]
    for new in passes:
        if new == (1, 0, 1):
            assert len(group_sequences([sequence(97), sequence(75)])) == 1
        rows = [row for row in range(3) if new[row]]
        spans = {row: slice(done[row], done[row] + new[row]) for row in rows}
        query, key, value = (
            torch.cat([states[row][which][spans[row]] for row in rows] + [states[0][which][:2]]) for which in range(3)
        )
        slots = [
            int(table[row, place // BLOCK]) * BLOCK + place % BLOCK
            for row in rows
            for place in range(totals[row])[spans[row]]
        ]
        # Two tokens of padding, as a pass may end with.
        write_cache(cache, key, value, torch.tensor([*slots, -1, -1]))
        start, sequences = 0, []
        for row in rows:
            sequences.append(PagedSequence(row, start, new[row], done[row] + new[row]))
            start += new[row]
        output = torch.full_like(query, torch.nan)
        for group in group_sequences(sequences):
            attend_paged(make_rows(rotation, group, table, BLOCK, torch.float32), query, cache, output, 0.3)
        for each in sequences:
            found[each.row][spans[each.row]] = output[each.start : each.start + each.new]
            done[each.row] += each.new
        assert output[start:].isnan().all()
    assert done == totals
    for row in range(3):
        known = slice(BLOCK if row == 2 else 0, None)
        torch.testing.assert_close(found[row][known], whole[row][known], atol=2e-6, rtol=1e-5)


TUNED = {"objective": "retrieval", "table": {2.0: {"group": 3}, 4.0: {"group": 9, "attention_factor": 1.1}}}
METHODS_SENT = [*(make(name, attention_factor=1.25) for name in NAMES), make("self-extend", tuned_parameters=TUNED)]


@pytest.mark.parametrize("method", METHODS_SENT, ids=[*NAMES, "self-extend+tuned"])
def test_a_method_goes_to_vllms_processes_as_text_and_does_there_what_it_does_here(method: BandedAttention) -> None:
    config = json.loads(json.dumps(banded_config(BASE, method, LENGTH)))
    mine, theirs = method.rotation(BASE, LENGTH), banded_rotation(config)
    assert mine is not None
    if method.tuned_parameters is not None:
        assert (theirs.factor, theirs.bands[1].key(torch.tensor([18])).tolist()) == (1.1, [2])
    assert (mine.frequencies, mine.factor, mine.log_base) == (theirs.frequencies, theirs.factor, theirs.log_base)
    positions = torch.arange(LENGTH)
    for band, other in zip(mine.bands, theirs.bands, strict=True):
        for which in ("first", "last", "query", "key"):
            assert getattr(band, which)(positions).tolist() == getattr(other, which)(positions).tolist()


def test_a_method_out_of_a_file_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from longctx_bench.methods.self_extend import SelfExtend\nclass Mine(SelfExtend):\n    group: int = 7\n"
    )
    kind = load_object("./mine.py:Mine", "test", tmp_path).value
    assert location_of(kind) == ("mine.py:Mine", tmp_path)
    assert location_of(RoPE) == ("longctx_bench.methods.rope_scaling:RoPE", None)
    config = banded_config(BASE, kind(), LENGTH)
    assert banded_rotation(config).bands[1].key(torch.tensor([14])).tolist() == [2]


def test_the_base_itself_and_other_methods_need_no_bands() -> None:
    assert banded_config(BASE, RoPE(), LENGTH) == banded_config(BASE, make("jet-long"), 32) == {}
    assert bands_digest(BASE, RoPE(), LENGTH, LENGTH) is bands_digest(BASE, make("jet-long"), 32, LENGTH) is None


def test_lengths_with_the_same_bands_are_known() -> None:
    def digest(length: int, name: str = "jet-long", **params: Any) -> str | None:
        return bands_digest(BASE, make(name, **params), length, 128)

    assert digest(33) == digest(64) != digest(65)
    assert digest(64, window=3) != digest(64)
    assert digest(40, "self-extend", tuned_parameters=TUNED) == digest(60, "self-extend", tuned_parameters=TUNED)
    assert digest(60, "self-extend", tuned_parameters=TUNED) != digest(70, "self-extend", tuned_parameters=TUNED)
    assert digest(64, "rerope") == digest(90, "rerope") != digest(90, "rerope", log_n=False)


def test_a_checkpoint_that_names_the_class_of_another_is_refused() -> None:
    with pytest.raises(UserError, match="--engine vllm"):
        banded_rotation({})
