"""Greedy decoding of a batch: each pass reads what is certain and a guess behind it, and keeps what of it was right."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.core.types import Request
from longctx_bench.engines.base import StoppingCriterion
from longctx_bench.engines.hf.cache_ops import Piece, branch, can_merge, keys_are_final, merged
from longctx_bench.engines.hf.cuda_graph import Replay, decode_attention_kernel
from longctx_bench.engines.hf.model_runner import Reader
from longctx_bench.engines.hf.padding import pad_token_ids
from longctx_bench.engines.hf.prefill_scheduler import first_draft, held, parts, together
from longctx_bench.engines.hf.running_batch import Beside
from longctx_bench.engines.prefix_groups import common_prefix_length, is_sharing_worthwhile
from longctx_bench.engines.request_state import Row

_CPU_AT_ONCE, _CUDA_AT_ONCE = 1, 65_536
"""Prompt tokens that keep a device busy: more of them in one pass are not read faster."""
_CUDA_IDLE = 0.5
"""Share of a batch's rows that may be finished on a GPU, where a row more costs less than copying the others' cache."""
_JOIN = 0.5
"""Share of the positions that may be taken when the next prompts are read."""

_Before = tuple[Sequence[int], DynamicCache | None]
"""The prompt that was read last, alone, and what a cache holds of it; None where the next one does not want it."""


@dataclass
class _Begun:
    """Prompts that are being read with their drafts, whose answers were not looked at yet."""

    rows: list[Row]
    drafts: list[list[int]]
    cache: DynamicCache
    logits: torch.Tensor
    """Of the ends: ``[rows, longest draft + 1, vocabulary]``."""


@dataclass
class Decoder:
    """Decodes batches with one model and tokenizer."""

    reader: Reader
    at_once: int
    """Prompt tokens up to which prompts are prefilled together."""
    idle: float
    """Share of the rows that may be finished before the cache is copied without them, and others are read."""
    ahead: bool = False
    """Whether the next prompts are begun before the answers to those before are looked at: a GPU reads meanwhile."""

    @classmethod
    def on(cls, model: PreTrainedModel, tokenizer: Any, eos: frozenset[int]) -> Self:
        """Return a decoder as the model's device likes it best."""
        cuda = model.device.type == "cuda"
        reader = Reader(model, tokenizer, eos)
        return cls(reader, _CUDA_AT_ONCE if cuda else _CPU_AT_ONCE, _CUDA_IDLE if cuda else 0.0, cuda)

    @torch.inference_mode()
    def decode(
        self, batch: Sequence[Request], settled: StoppingCriterion, room: int, pool: int | None = None
    ) -> list[tuple[str, int, str]]:
        """Continue every request until its end token, its budget, or until its score is settled.

        A request's draft is read together with its prompt. Each position's likeliest token is the one that decoding
        token by token would have chosen for as long as all before it were right, so that a right draft costs one
        pass and a wrong one changes nothing. What a draft does not finish is decoded beside others, and where some of
        them are finished, the next prompts are read and join them (continuous batching, Yu et al. 2022).

        Args:
            batch: requests; shorter prompts are padded.
            settled: asked after every token of every unfinished example.
            room: prompt tokens of all examples together for which a forward pass of the prefill has memory.
            pool: prompt and new tokens of the examples that are decoded at a time; of all when None.

        Returns:
            Text without special tokens, number of new tokens (the end token counts) and finish reason, in order.
        """
        rows = [Row(request) for request in batch]
        pool = held(rows) if pool is None else pool
        mergeable = can_merge(self.reader.empty_cache())
        if mergeable and keys_are_final(self.reader.model):
            self._decode_joining(rows, settled, room, pool)
        else:
            for part in parts(rows, pool):
                self._decode_in_step(part, settled, room, mergeable)
        return [(row.text, len(row.tokens), row.reason) for row in rows]

    def _decode_joining(self, rows: list[Row], settled: StoppingCriterion, room: int, pool: int) -> None:
        """Decode rows that may be read while others are being decoded."""
        waiting = deque(together(rows, min(self.at_once, pool), room, self.reader.words, True))
        before: _Before = ((), None)
        read: Beside | None = None
        while waiting or read is not None:
            ready: list[tuple[Row, Piece]] = []
            beside = [row for row in read.rows if not row.reason] if read else []
            # Whenever others join, the keys of all are copied: seldom, then, and many at a time.
            joins = held(beside) <= _JOIN * pool
            begun: _Begun | None = None
            while begun or (waiting and joins):
                following = None
                # Until its answers are looked at, all of a group may have to be decoded.
                taken = [*beside, *(begun.rows if begun else [])]
                fits = waiting and joins and (not taken or held([*taken, *waiting[0]]) <= pool)
                if fits and (self.ahead or not begun):
                    before = _kept(before, waiting[0])
                    following, before = self._begin(waiting.popleft(), before, room)
                elif not begun:
                    break
                if begun:
                    found = self._finish(begun, settled)
                    ready += found
                    beside += [row for row, _ in found]
                begun = following
            before = _kept(before, waiting[0] if waiting else [])
            read = self._joined(read, ready, before[1])
            if read is not None:
                self._go_on(read, settled)
                read = read.unfinished(self.idle)

    def _decode_in_step(self, rows: list[Row], settled: StoppingCriterion, room: int, mergeable: bool) -> None:
        """Decode rows all of which have to be read before the first is decoded."""
        groups = together(rows, self.at_once, room, self.reader.words, False) if mergeable else [rows]
        ready: list[tuple[Row, Piece]] = []
        read: Beside | None = None
        for group in groups:
            sizes = [len(row.request.input_ids) for row in group]
            pads, cache = [max(sizes) - size for size in sizes], self.reader.empty_cache(group)
            logits = self.reader.prefill(group, [[]] * len(group), pads, cache, max(1, room // len(group)))
            self.reader.chosen(group, logits, [[]] * len(group), settled)
            ends = enumerate(zip(group, pads, strict=True))
            ready += [(row, Piece(cache, place, pad, max(sizes))) for place, (row, pad) in ends if not row.reason]
            # Sliding windows have no common length that pieces could be joined to.
            read = None if mergeable else Beside.of(self.reader.model, group, cache, pads, {}).unfinished(self.idle)
        if mergeable:
            read = self._joined(None, ready, None)
        while read is not None:
            self._go_on(read, settled)
            read = read.unfinished(self.idle)

    def _begin(self, group: list[Row], before: _Before, room: int) -> tuple[_Begun, _Before]:
        """Read prompts with their drafts in one pass, or one behind what it shares with the one before."""
        drafts = [first_draft(row, len(group), self.reader.words) for row in group]
        ids, cache = group[0].request.input_ids, self.reader.empty_cache(group)
        if before[1] is not None:
            # The last token is read in any case: its logits are not in a cache.
            cache = branch(before[1], min(common_prefix_length(before[0], ids), len(ids) - 1), cache)
        # Behind a prompt, nothing looks at padding, and no mask is needed; what is behind its keys is cut off.
        logits = self.reader.prefill(group, drafts, [0] * len(group), cache, max(1, room // len(group)))
        return _Begun(group, drafts, cache, logits), (ids, cache) if len(group) == 1 else ((), None)

    def _finish(self, begun: _Begun, settled: StoppingCriterion) -> list[tuple[Row, Piece]]:
        """Look at what follows prompts; return those that are not answered yet, and what was read of them."""
        rows = begun.rows
        accepted = self.reader.chosen(rows, begun.logits, begun.drafts, settled)
        ends = [len(row.request.input_ids) + right for row, right in zip(rows, accepted, strict=True)]
        pieces = [
            (row, Piece(begun.cache, place, 0, end)) for place, (row, end) in enumerate(zip(rows, ends, strict=True))
        ]
        found = [pair for pair in pieces if not pair[0].reason]
        if 0 < len(found) < len(rows):
            # What is finished need not be kept until the others are joined.
            apart = self._joined(None, found, None)
            found = apart.taken() if apart else []
        return found

    def _joined(self, read: Beside | None, ready: list[tuple[Row, Piece]], kept: DynamicCache | None) -> Beside | None:
        """Put what was read beside what is being decoded; ``kept`` is a cache that is needed once more."""
        if not ready:
            return read
        known = read.known() if read else {}
        ready = [*(read.taken() if read else []), *ready]
        rows, pieces = [row for row, _ in ready], [piece for _, piece in ready]
        widest = max(piece.length for piece in pieces)
        cache = merged(pieces, self.reader.empty_cache(rows), kept)
        return Beside.of(self.reader.model, rows, cache, [widest - piece.length for piece in pieces], known)

    def _go_on(self, read: Beside, settled: StoppingCriterion) -> None:
        """Decode a token of every row, or as many as are decoded without a look at anything else."""
        if read.replayed and all(row.request.min_new_tokens <= len(row.tokens) for row in read.rows):
            self._replay(read, settled)
        else:
            self._step(read, settled)

    def _replay(self, read: Beside, settled: StoppingCriterion) -> None:
        """Decode token by token until so many rows are finished that the others' cache is worth copying."""
        rows, reader = read.rows, self.reader
        last = [row.tokens[-1] for row in rows]
        replay = Replay(reader.model, read.cache, read.seen, last, max(row.left for row in rows))
        for tokens in replay.tokens():
            chosen = zip(rows, tokens, strict=True)
            done = [row.advance(token, reader.tokenizer, reader.eos, settled) for row, token in chosen]
            if all(done) or sum(done) > self.idle * len(rows):
                break
        read.seen = replay.close()

    def _step(self, read: Beside, settled: StoppingCriterion) -> None:
        """Read each example's latest token and a guess behind it, and mark what of the guess was wrong."""
        guesses = read.guesses(self.reader.words)
        ids = pad_token_ids([[row.tokens[-1], *guess] for row, guess in zip(read.rows, guesses, strict=True)])
        width = ids.shape[1]
        told = torch.arange(width) <= torch.tensor([len(guess) for guess in guesses])[:, None]
        model = self.reader.model
        seen = torch.cat([read.seen, told.to(model.device)], dim=1)
        with decode_attention_kernel(model) if width == 1 else nullcontext():
            own = None if bool(seen.all()) else seen
            logits = self.reader.feed(read.cache, ids.to(model.device), own, keep=width)
        before = [len(row.tokens) for row in read.rows]
        accepted = self.reader.chosen(read.rows, logits, guesses, settled)
        for place, (lookup, guess, right) in enumerate(zip(read.lookups, guesses, accepted, strict=True)):
            told[place, 1 + right :] = False
            if lookup is not None:
                lookup.add(read.rows[place].tokens[before[place] :])
                lookup.judge(len(guess), right)
        read.seen = torch.cat([read.seen, told.to(model.device)], dim=1)


def _kept(before: _Before, group: list[Row]) -> _Before:
    """Return the prompt that was read last if the one to be read next begins alike: its cache takes memory."""
    if before[1] is None or len(group) != 1:
        return (), None
    ids = group[0].request.input_ids
    shared = min(common_prefix_length(before[0], ids), len(ids) - 1)
    return before if is_sharing_worthwhile(shared, len(ids)) else ((), None)
