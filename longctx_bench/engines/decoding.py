"""Greedy decoding of a batch: each pass reads what is certain and a guess behind it, and keeps what of it was right."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.engines.base import Settled
from longctx_bench.engines.batching import total_tokens
from longctx_bench.engines.cpu_attention import cpu_attention
from longctx_bench.engines.lookup import Lookup
from longctx_bench.engines.prefill import Piece, branch, can_merge, keys_are_final, merged, squeeze
from longctx_bench.engines.prefixes import common, worth_sharing
from longctx_bench.engines.replay import Replay, can_replay, one_query_apart
from longctx_bench.engines.room import roomy_cache
from longctx_bench.engines.rows import Row
from longctx_bench.engines.together import MOST_LOGITS, first_draft, together
from longctx_bench.records import Request

_MOST_WRONG = 64
"""Positions that wrong guesses may take in a cache until it is squeezed: they are masked, but read again each time."""
_CPU_AT_ONCE, _CUDA_AT_ONCE = 1, 65_536
"""Prompt tokens that keep a device busy: more of them in one pass are not read faster."""
_CUDA_IDLE = 0.5
"""Share of a batch's rows that may be finished on a GPU, where a row more costs less than copying the others' cache."""


def eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the token ids at which ``model.generate`` would stop."""
    generation = model.generation_config.eos_token_id if model.generation_config is not None else None
    stop = generation if generation is not None else model.config.eos_token_id
    return frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])


@dataclass
class _Read:
    """Examples and what of them the cache holds, all at its right end."""

    rows: list[Row]
    cache: DynamicCache
    seen: torch.Tensor
    """``[rows, positions]``: False where the cache holds padding, or a guess that was wrong."""
    lookups: list[Lookup | None]
    """What guesses each row's continuation; None where a wrong guess could not be taken back."""
    replayed: bool
    """Whether it is decoded token by token, by a step that is recorded once."""


@dataclass
class Decoder:
    """Decodes batches with one model and tokenizer."""

    model: PreTrainedModel
    tokenizer: Any
    eos: frozenset[int]
    at_once: int
    """Prompt tokens up to which prompts are prefilled together."""
    idle: float
    """Share of the rows that may be finished before the cache is copied without them."""

    @classmethod
    def on(cls, model: PreTrainedModel, tokenizer: Any, eos: frozenset[int]) -> Self:
        """Return a decoder as the model's device likes it best."""
        cuda = model.device.type == "cuda"
        return cls(model, tokenizer, eos, _CUDA_AT_ONCE if cuda else _CPU_AT_ONCE, _CUDA_IDLE if cuda else 0.0)

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request], settled: Settled, room: int) -> list[tuple[str, int, str]]:
        """Continue every request until its end token, its budget, or until its score is settled.

        A request's draft is read together with its prompt. Each position's likeliest token is the one that decoding
        token by token would have chosen for as long as all before it were right, so that a right draft costs one
        pass and a wrong one changes nothing.

        Args:
            batch: requests; shorter prompts are padded.
            settled: asked after every token of every unfinished example.
            room: prompt tokens of all examples together for which a forward pass of the prefill has memory.

        Returns:
            Text without special tokens, number of new tokens (the end token counts) and finish reason, in order.
        """
        rows = [Row(request) for request in batch]
        read = self._start(rows, settled, room)
        while read is not None:
            if read.replayed and all(row.request.min_new_tokens <= len(row.tokens) for row in read.rows):
                self._replay(read, settled)
            else:
                self._step(read, settled)
            read = self._unfinished(read)
        return [(row.text, len(row.tokens), row.reason) for row in rows]

    def _replay(self, read: _Read, settled: Settled) -> None:
        """Decode token by token until so many rows are finished that the others' cache is worth copying."""
        rows = read.rows
        last = [row.tokens[-1] for row in rows]
        replay = Replay(self.model, read.cache, read.seen, last, max(row.left for row in rows))
        for tokens in replay.tokens():
            done = [
                row.advance(token, self.tokenizer, self.eos, settled) for row, token in zip(rows, tokens, strict=True)
            ]
            if all(done) or sum(done) > self.idle * len(rows):
                break
        read.seen = replay.close()

    def _step(self, read: _Read, settled: Settled) -> None:
        """Read each example's latest token and a guess behind it, and mark what of the guess was wrong."""
        guesses = self._guesses(read)
        width = 1 + max(map(len, guesses))
        ids = torch.zeros(len(read.rows), width, dtype=torch.long)
        told = torch.zeros(len(read.rows), width, dtype=torch.bool)
        for place, (row, guess) in enumerate(zip(read.rows, guesses, strict=True)):
            ids[place, : 1 + len(guess)] = torch.tensor([row.tokens[-1], *guess])
            told[place, : 1 + len(guess)] = True
        device = self.model.device
        with one_query_apart(self.model) if width == 1 else nullcontext():
            logits = self._feed(read.cache, ids.to(device), torch.cat([read.seen, told.to(device)], dim=1), keep=width)
        before = [len(row.tokens) for row in read.rows]
        accepted = self._chosen(read.rows, logits, guesses, settled)
        for place, (lookup, guess, right) in enumerate(zip(read.lookups, guesses, accepted, strict=True)):
            told[place, 1 + right :] = False
            if lookup is not None:
                lookup.add(read.rows[place].tokens[before[place] :])
                lookup.judge(len(guess), right)
        read.seen = torch.cat([read.seen, told.to(device)], dim=1)

    def _guesses(self, read: _Read) -> list[list[int]]:
        """Guess what follows in each row, as far as the cache has room for guesses."""
        if not any(read.lookups):
            return [[]] * len(read.rows)
        room = self._room(read)
        wrong = read.seen.shape[1] - int(read.seen.sum(dim=1).max())
        if room < _MOST_WRONG // 2 and wrong >= _MOST_WRONG // 2:
            read.seen = squeeze(read.cache, read.seen)
            room = self._room(read)
        most = min(room, MOST_LOGITS // (len(read.rows) * self._words) - 1)
        return [
            [] if lookup is None or row.reason else lookup.guess(min(most, row.left - 1))
            for row, lookup in zip(read.rows, read.lookups, strict=True)
        ]

    @staticmethod
    def _room(read: _Read) -> int:
        """Return for how many tokens there is room behind the one that is read next."""
        return max(total_tokens(row.request) for row in read.rows) + _MOST_WRONG - read.seen.shape[1] - 1

    def _read(self, rows: list[Row], cache: DynamicCache, pads: list[int], free: bool) -> _Read:
        """Put together what was read; rows may be finished already."""
        past = cache.get_seq_length()
        places = torch.arange(past, device=self.model.device)
        seen = places >= torch.tensor(pads, device=self.model.device)[:, None]
        replayed = free and can_replay(self.model)
        # Another attention than torch's may count distances in slots of the cache, of which wrong guesses take some.
        holes = free and not replayed and self.model.config._attn_implementation == "sdpa"
        lookups = [Lookup([*row.request.input_ids, *row.tokens]) if holes else None for row in rows]
        return _Read(rows, cache, seen, lookups, replayed)

    def _start(self, rows: list[Row], settled: Settled, room: int) -> _Read | None:
        """Prefill a batch with its drafts; return what is left to decode."""
        mergeable = can_merge(self._empty_cache())
        free = mergeable and keys_are_final(self.model)
        reached: dict[int, Piece] = {}
        before: tuple[Sequence[int], DynamicCache | None] = ((), None)
        groups = together(rows, self.at_once, room, self._words, free) if mergeable else [rows]
        for group in groups:
            drafts = [first_draft(row, len(group), self._words) if free else [] for row in group]
            ids, cache = group[0].request.input_ids, self._empty_cache(group)
            if free and len(group) == 1 and before[1] is not None:
                # The last token is read in any case: its logits are not in a cache.
                shared = min(common(before[0], ids), len(ids) - 1)
                cache = branch(before[1], shared if worth_sharing(shared, len(ids)) else 0, cache)
            sizes = [len(row.request.input_ids) for row in group]
            # Behind a prompt, nothing looks at padding, and no mask is needed; what is behind its keys is cut off.
            pads = [0 if free else max(sizes) - size for size in sizes]
            logits = self._prefill(group, drafts, pads, cache, max(1, room // len(group)))
            accepted = self._chosen(group, logits, drafts, settled)
            if not mergeable:
                return self._unfinished(self._read(group, cache, pads, free))
            for place, (row, size) in enumerate(zip(group, sizes, strict=True)):
                if not row.reason:
                    reached[id(row)] = Piece(cache, place, pads[place], pads[place] + size + accepted[place])
            before = (ids, cache) if len(group) == 1 else ((), None)
        left = [row for row in rows if not row.reason]
        if not left:
            return None
        pieces = [reached[id(row)] for row in left]
        widest = max(piece.length for piece in pieces)
        return self._read(left, merged(pieces), [widest - piece.length for piece in pieces], free)

    @property
    def _words(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def _prefill(
        self, rows: list[Row], drafts: list[list[int]], pads: list[int], cache: DynamicCache, chunk: int
    ) -> torch.Tensor:
        """Fill a cache with prompts and drafts; return the logits ``[rows, longest draft + 1, words]`` of the ends.

        ``pads`` says how much padding is left of each prompt; what else is missing is filled up on the right.
        """
        ends = [pad + len(row.request.input_ids) for pad, row in zip(pads, rows, strict=True)]
        whole = max(end + len(draft) for end, draft in zip(ends, drafts, strict=True))
        ids = torch.zeros(len(rows), whole, dtype=torch.long)
        for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            ids[place, pads[place] : ends[place] + len(draft)] = torch.tensor([*row.request.input_ids, *draft])
        ids = ids.to(self.model.device)
        told = torch.arange(whole, device=ids.device) >= torch.tensor(pads, device=ids.device)[:, None]
        first = min(ends) - 1
        starts = range(cache.get_seq_length(), first + 1, chunk)
        for start in starts[:-1]:
            self._feed(cache, ids[:, start : start + chunk], told[:, : start + chunk], keep=1)
        logits = self._feed(cache, ids[:, starts[-1] :], told, keep=whole - first)
        if len(set(ends)) == 1:
            return logits
        behind = torch.arange(1 + max(map(len, drafts)), device=ids.device)
        wanted = torch.tensor(ends, device=ids.device)[:, None] - 1 - first + behind
        # A shorter draft than the longest may end with the row: what stands there is not looked at.
        wanted = wanted.clamp(max=whole - first - 1)
        return logits.gather(1, wanted[:, :, None].expand(-1, -1, logits.shape[-1]))

    def _feed(self, cache: DynamicCache, ids: torch.Tensor, told: torch.Tensor, keep: int) -> torch.Tensor:
        """Read on: tokens ``[rows, tokens]`` behind what the cache holds; return the last ``keep`` logits of each.

        ``told`` is ``[rows, all tokens]``: False where neither cache nor ``ids`` holds anything to attend to.
        """
        with cpu_attention(self.model):
            output = self.model(
                input_ids=ids,
                attention_mask=None if bool(told.all()) else told.long(),
                position_ids=(told.cumsum(dim=1) - 1)[:, -ids.shape[1] :].clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        return output.logits  # type: ignore[no-any-return]

    def _chosen(self, rows: list[Row], logits: torch.Tensor, guesses: list[list[int]], settled: Settled) -> list[int]:
        """Add to each example the likeliest tokens for as long as its guess was right, and the one after.

        Args:
            rows: examples; to those that are finished nothing is added.
            logits: ``[rows, longest guess + 1, vocabulary]``, the first of each before its guess.
            guesses: the tokens that were read behind each example.
            settled: as :meth:`decode` takes it.

        Returns:
            How many tokens of each guess were right and may stay in the cache.
        """
        for place, row in enumerate(rows):
            bound = row.request.min_new_tokens - len(row.tokens)
            if bound > 0:
                logits[place, :bound, list(self.eos | row.request.stop_ids)] = -torch.inf
        likeliest = logits.argmax(dim=-1).tolist()
        accepted = []
        for row, tokens, guess in zip(rows, likeliest, guesses, strict=True):
            right = 0
            while not row.advance(tokens[right], self.tokenizer, self.eos, settled) and guess[right : right + 1] == [
                tokens[right]
            ]:
                right += 1
            accepted.append(right)
        return accepted

    def _unfinished(self, read: _Read) -> _Read | None:
        """Drop examples that are finished, when they are enough: their keys and values need not be read again."""
        keep = [place for place, row in enumerate(read.rows) if not row.reason]
        if not keep:
            return None
        if len(read.rows) - len(keep) <= self.idle * len(read.rows):
            return read
        read.cache.batch_select_indices(torch.tensor(keep, device=self.model.device))
        rows, lookups = [read.rows[place] for place in keep], [read.lookups[place] for place in keep]
        return _Read(rows, read.cache, read.seen[keep], lookups, read.replayed)

    def _empty_cache(self, rows: Sequence[Row] = ()) -> DynamicCache:
        """Return a cache with room for prompts, answers and wrong guesses."""
        room = max((total_tokens(row.request) for row in rows), default=0)
        return roomy_cache(self.model.config, room + _MOST_WRONG)
