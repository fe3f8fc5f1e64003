"""The roomy cache: the same keys and values as transformers' own, without copying them for each token."""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from longctx_bench.engines.hf.cache_ops import Piece, branch, merged, squeeze
from longctx_bench.engines.hf.kv_cache import RoomyLayer


def states(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


def cache(room: int, layers: int = 2) -> DynamicCache:
    made = DynamicCache()
    made.layers = [RoomyLayer(room) for _ in range(layers)]
    return made


def test_it_holds_what_transformers_holds() -> None:
    roomy, plain = RoomyLayer(12), DynamicLayer()
    for seed, tokens in enumerate((5, 1, 3, 4, 1, 200, 1)):
        new = states(3, tokens, seed), states(3, tokens, seed + 50)
        for one, other in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(one, other)
        if seed == 3:
            for layer in (roomy, plain):
                layer.batch_select_indices(torch.tensor([2, 0, 1]))
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_nothing_is_copied_while_there_is_room() -> None:
    layer = RoomyLayer(20)
    keys, _ = layer.update(states(1, 10), states(1, 10))
    place = keys.data_ptr()
    for _ in range(10):
        keys, _ = layer.update(states(1, 1), states(1, 1))
        assert keys.data_ptr() == place
    keys, _ = layer.update(states(1, 1), states(1, 1))
    assert keys.data_ptr() != place


def test_merging_lets_go_of_the_pieces() -> None:
    one, other = cache(10), cache(10)
    kept = []
    for place, own in enumerate((one, other)):
        for index in range(2):
            kept.append(own.update(states(1, 4 + place, place), states(1, 4 + place, 9), index)[0].clone())
    joined = merged([Piece(one, 0, 0, 4), Piece(other, 0, 1, 5)], cache(10), one)
    assert torch.equal(joined.layers[0].keys[0], kept[0][0])
    assert torch.equal(one.layers[0].keys, kept[0]), "it was to be kept"
    assert torch.equal(joined.layers[0].keys[1], kept[2][0][:, 1:5])
    assert other.get_seq_length() == 0
    assert not other.layers[0]._buffers
    assert not joined.layers[0]._buffers
    joined.update(states(2, 1), states(2, 1), 0)
    assert joined.get_seq_length(0) == 5


def test_a_branch_is_a_copy() -> None:
    whole = cache(10)
    whole.update(states(1, 6), states(1, 6), 0)
    before = whole.layers[0].keys.clone()
    part = branch(whole, 4, cache(10))
    part.update(states(1, 3, 5), states(1, 3, 5), 0)
    assert torch.equal(whole.layers[0].keys, before)
    assert torch.equal(part.layers[0].keys[:, :, :4], before[:, :, :4])


def test_squeezing_drops_what_is_not_seen() -> None:
    made = cache(10, layers=1)
    keys, _ = made.update(states(2, 6), states(2, 6, 1), 0)
    keys = keys.clone()
    seen = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    left = squeeze(made, seen)
    assert left.tolist() == [[False, False, True, True, True], [True] * 5]
    assert torch.equal(made.layers[0].keys[0, :, 2:], keys[0][:, [1, 2, 4]])
    assert torch.equal(made.layers[0].keys[1], keys[1][:, [0, 1, 2, 3, 5]])
