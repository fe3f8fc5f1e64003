"""Greedy decoding of a batch: each pass reads what is certain and a guess behind it, and keeps what of it was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.engines.base import Settled
from longctx_bench.engines.batching import total_tokens
from longctx_bench.engines.cpu_attention import cpu_attention
from longctx_bench.engines.few_queries import few_queries
from longctx_bench.engines.lookup import Lookup
from longctx_bench.engines.prefill import Piece, branch, can_merge, keys_are_final, merged, squeeze
from longctx_bench.engines.prefixes import alike, common, worth_sharing
from longctx_bench.engines.room import roomy_cache
from longctx_bench.engines.rows import Row
from longctx_bench.records import Request

_MOST_LOGITS = 2**27
"""Logits that a pass may give for guesses: half a GiB in fp32."""
_MOST_WRONG = 64
"""Positions that wrong guesses may take in a cache until it is squeezed: they are masked, but read again each time."""
_MOST_ROWS = 4
"""Rows that are decoded with guesses on a GPU."""
_SAVED = 0.25
"""Share of a batch's prompt tokens from which not reading them again pays for reading prompts one by one."""


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


@dataclass
class Decoder:
    """Decodes batches with one model and tokenizer."""

    model: PreTrainedModel
    tokenizer: Any
    eos: frozenset[int]
    alone_from: int
    """Prompts at least this long are prefilled one by one: a padding mask costs more than batching gains."""

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request], settled: Settled, chunk: int) -> list[tuple[str, int, str]]:
        """Continue every request until its end token, its budget, or until its score is settled.

        A request's draft is read together with its prompt. Each position's likeliest token is the one that decoding
        token by token would have chosen for as long as all before it were right, so that a right draft costs one
        pass and a wrong one changes nothing.

        Args:
            batch: requests; shorter prompts are padded on the left.
            settled: asked after every token of every unfinished example.
            chunk: prompt tokens of each example per forward pass of the prefill.

        Returns:
            Text without special tokens, number of new tokens (the end token counts) and finish reason, in order.
        """
        rows = [Row(request) for request in batch]
        read = self._start(rows, settled, chunk)
        while read is not None:
            self._step(read, settled)
            read = self._unfinished(read)
        return [(row.text, len(row.tokens), row.reason) for row in rows]

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
        with few_queries(self.model):
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
        vocabulary = self.model.config.get_text_config().vocab_size
        most = min(room, _MOST_LOGITS // (len(read.rows) * vocabulary) - 1)
        return [
            [] if lookup is None else lookup.guess(min(most, row.left - 1))
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
        # Another attention than torch's may count distances in slots of the cache, of which wrong guesses take some. On
        # a GPU, the mask that wrong guesses need costs many rows more than the passes that right ones save.
        cheap = self.model.device.type == "cpu" or len(rows) <= _MOST_ROWS
        holes = free and cheap and self.model.config._attn_implementation == "sdpa"
        lookups = [Lookup([*row.request.input_ids, *row.tokens]) if holes else None for row in rows]
        return _Read(rows, cache, seen, lookups)

    def _start(self, rows: list[Row], settled: Settled, chunk: int) -> _Read | None:
        """Prefill a batch with its drafts; return what is left to decode."""
        free = can_merge(self._empty_cache()) and keys_are_final(self.model)
        groups = self._groups(rows, free)
        reached: dict[int, Piece] = {}
        before: tuple[Sequence[int], DynamicCache | None] = ((), None)
        for group in groups:
            drafts = [self._draft(row, len(group)) if free else [] for row in group]
            ids, cache = group[0].request.input_ids, self._empty_cache(group)
            if free and len(group) == 1 and before[1] is not None:
                # The last token is read in any case: its logits are not in a cache.
                shared = min(common(before[0], ids), len(ids) - 1)
                cache = branch(before[1], shared if worth_sharing(shared, len(ids)) else 0, cache)
            pads, logits = self._prefill(group, drafts, cache, chunk)
            accepted = self._chosen(group, logits, drafts, settled)
            if not can_merge(cache):
                return self._unfinished(self._read(group, cache, pads, free))
            end = max(len(row.request.input_ids) for row in group)
            for place, row in enumerate(group):
                if not row.reason:
                    reached[id(row)] = Piece(cache, place, pads[place], end + accepted[place])
            before = (ids, cache) if len(groups) > 1 else before
        left = [row for row in rows if not row.reason]
        if not left:
            return None
        pieces = [reached[id(row)] for row in left]
        widest = max(piece.length for piece in pieces)
        return self._read(left, merged(pieces), [widest - piece.length for piece in pieces], free)

    def _groups(self, rows: list[Row], free: bool) -> list[list[Row]]:
        """Say which rows are prefilled together: all, or each alone behind the one that begins most like it."""
        ids = [row.request.input_ids for row in rows]
        sizes = [len(own) for own in ids]
        groups = alike([row.request for row in rows]) if free else [[place] for place in range(len(rows))]
        saved = sum(common(ids[one], ids[other]) for group in groups for one, other in pairwise(group))
        alone = can_merge(self._empty_cache()) and max(sizes) >= self.alone_from
        # Short prompts keep a GPU busy together alone: there sharing has to save more than that.
        if saved > (_SAVED if alone else 2 * _SAVED) * sum(sizes) or (alone and min(sizes) < max(sizes)):
            return [[rows[place]] for group in groups for place in group]
        return [rows]

    def _draft(self, row: Row, rows: int) -> list[int]:
        """Return as much of the first draft as the budget has room for behind one more token."""
        most = min(row.left - 1, _MOST_LOGITS // (rows * self.model.config.get_text_config().vocab_size))
        return list(row.request.drafts[0][: max(0, most)]) if row.request.drafts else []

    def _prefill(
        self, rows: list[Row], drafts: list[list[int]], cache: DynamicCache, chunk: int
    ) -> tuple[list[int], torch.Tensor]:
        """Fill a cache with prompts and drafts; return the padding and logits ``[rows, longest draft + 1, words]``."""
        end = max(len(row.request.input_ids) for row in rows)
        width = max(map(len, drafts))
        ids = torch.zeros(len(rows), end + width, dtype=torch.long)
        pads = [end - len(row.request.input_ids) for row in rows]
        for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            ids[place, pads[place] : end + len(draft)] = torch.tensor([*row.request.input_ids, *draft])
        ids = ids.to(self.model.device)
        told = torch.arange(end + width, device=ids.device) >= torch.tensor(pads, device=ids.device)[:, None]
        starts = range(cache.get_seq_length(), end, chunk)
        for start in starts[:-1]:
            self._feed(cache, ids[:, start : start + chunk], told[:, : start + chunk], keep=1)
        return pads, self._feed(cache, ids[:, starts[-1] :], told, keep=width + 1)

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
            rows: examples that are not finished.
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
        """Drop examples that are finished: their keys and values need not be read again."""
        keep = [place for place, row in enumerate(read.rows) if not row.reason]
        if len(keep) == len(read.rows):
            return read
        if not keep:
            return None
        read.cache.batch_select_indices(torch.tensor(keep, device=self.model.device))
        rows, lookups = [read.rows[place] for place in keep], [read.lookups[place] for place in keep]
        return _Read(rows, read.cache, read.seen[keep], lookups)

    def _empty_cache(self, rows: Sequence[Row] = ()) -> DynamicCache:
        """Return a cache with room for prompts, answers and wrong guesses."""
        room = max((total_tokens(row.request) for row in rows), default=0)
        return roomy_cache(self.model.config, room + _MOST_WRONG)
