"""The KV cache: the same keys and values as transformers' own, without copying them for each token."""

from __future__ import annotations

import torch
from transformers import LlamaConfig
from transformers.cache_utils import DynamicLayer

from longctx_bench.engines.hf.kv_cache import CacheSlice, KVCache, PreallocatedLayer


def states(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


def cache(capacity: int, layers: int = 2) -> KVCache:
    return KVCache(LlamaConfig(num_hidden_layers=layers), capacity)


def test_it_holds_what_transformers_holds() -> None:
    ours, theirs = PreallocatedLayer(12), DynamicLayer()
    for seed, tokens in enumerate((5, 1, 3, 4, 1, 200, 1)):
        new = states(3, tokens, seed), states(3, tokens, seed + 50)
        for one, other in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(one, other)
        if seed == 3:
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor([2, 0, 1]))
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_append_copies_nothing_within_the_capacity() -> None:
    layer = PreallocatedLayer(20)
    keys, _ = layer.update(states(1, 10), states(1, 10))
    place = keys.data_ptr()
    for _ in range(10):
        keys, _ = layer.update(states(1, 1), states(1, 1))
        assert keys.data_ptr() == place
    keys, _ = layer.update(states(1, 1), states(1, 1))
    assert keys.data_ptr() != place


def test_concat_frees_the_sources_but_the_one_to_keep() -> None:
    one, other = cache(10), cache(10)
    kept = []
    for extra, source in enumerate((one, other)):
        for index in range(2):
            kept.append(source.append(states(1, 4 + extra, extra), states(1, 4 + extra, 9), index)[0].clone())
    joined = KVCache.concat([CacheSlice(one, 0, 0, 4), CacheSlice(other, 0, 1, 5)], 10, keep=one)
    assert torch.equal(joined.layers[0].keys[0], kept[0][0])
    assert torch.equal(one.layers[0].keys, kept[0]), "it was to be kept"
    assert torch.equal(joined.layers[0].keys[1], kept[2][0][:, 1:5])
    assert other.num_tokens == 0
    assert not other.is_allocated
    assert one.is_allocated
    joined.append(states(2, 1), states(2, 1), 0)
    assert joined.num_tokens == 5


def test_a_fork_is_a_copy() -> None:
    whole = cache(10)
    whole.append(states(1, 6), states(1, 6), 0)
    before = whole.layers[0].keys.clone()
    part = whole.fork(4, 10)
    part.append(states(1, 3, 5), states(1, 3, 5), 0)
    assert torch.equal(whole.layers[0].keys, before)
    assert torch.equal(part.layers[0].keys[:, :, :4], before[:, :, :4])


def test_compact_drops_masked_tokens() -> None:
    made = cache(10, layers=1)
    keys, _ = made.append(states(2, 6), states(2, 6, 1), 0)
    keys = keys.clone()
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    left = made.compact(mask)
    assert left.tolist() == [[False, False, True, True, True], [True] * 5]
    assert torch.equal(made.layers[0].keys[0, :, 2:], keys[0][:, [1, 2, 4]])
    assert torch.equal(made.layers[0].keys[1], keys[1][:, [0, 1, 2, 3, 5]])
