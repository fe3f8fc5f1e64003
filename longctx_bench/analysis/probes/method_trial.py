"""What a method is tried by: the same prompts read in every way that a run may read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from longctx_bench.analysis.probes.model_snapshot import ModelState
from longctx_bench.core.types import Request
from longctx_bench.engines.batching import batch_by_tokens, num_total_tokens
from longctx_bench.engines.hf.engine import apply_method
from longctx_bench.engines.hf.engine_core import EngineCore
from longctx_bench.engines.hf.kv_cache import CacheSlice, KVCache
from longctx_bench.engines.hf.padding import pad_token_ids
from longctx_bench.methods.attention_override import UnmaskedError
from longctx_bench.models.variant import ModelUnderTest

TOLERANCE = 1e-4
"""Of the largest logit: how far fp32 may be from itself where the same is computed in another order."""
NEW = 24
"""Tokens that are decoded."""
COMPARED = 8
"""Tokens at the end of each prompt that are compared, and that are read one by one from a cache."""
_CHUNK = 37
"""Tokens a pass; no divisor of anything."""
_ALL = 1 << 20
"""Tokens of all prompts together, and more."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    result: str
    """``passed``, ``failed`` or ``not applicable``."""
    difference: float | None = None
    """The largest, of logits; None where nothing was compared."""
    detail: str = ""


class _Words:
    """In place of a tokenizer: a text is the numbers of its tokens."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, tokens))


class _Stop(Exception):
    """Raised where a method is applied, to see what becomes of it."""


class Trial:
    """A model, a method, prompts, and what each of them is with nothing else beside it."""

    def __init__(
        self, model: PreTrainedModel, contestant: ModelUnderTest, prompts: list[list[int]], own_weights: bool
    ) -> None:
        """Take the model as it is without a method.

        Args:
            model: in fp32.
            contestant: the method and the length that it is applied for.
            prompts: token ids, the longest first.
            own_weights: whether the model is not the base's own, so that there is nothing to equal at 1x.
        """
        self._model, self._contestant, self._prompts, self._own_weights = model, contestant, prompts, own_weights
        self._core = EngineCore.for_model(model, _Words(), frozenset())
        self._runner = self._core.runner
        within = prompts[0][: contestant.base.original_length]
        # Once before, so that whatever a first pass sets up is there.
        self._ends([within])
        self._base, self._within = self._ends([within])[0], within
        self._before = ModelState(model)

    def checks(self) -> Iterator[Check]:
        """Try everything, what comes after a failure too."""
        try:
            with self._applied():
                self._alone = [self._ends([prompt])[0] for prompt in self._prompts]
        except UnmaskedError as error:
            yield Check("attention mask", "failed", detail=str(error))
            return
        except Exception as error:  # noqa: BLE001 (whatever somebody's method raises is what was to be found out)
            yield Check("one prompt", "failed", detail=_said(error))
            return
        yield Check("attention mask", "passed")
        yield self._compared("right padding", lambda: self._padded(left=False))
        yield self._compared("left padding", lambda: self._padded(left=True))
        yield self._compared("chunked prefill", self._in_chunks)
        yield self._compared("cached decoding", self._from_cache)
        yield self._compared("batch", self._beside_each_other)
        yield self._same_tokens("batch tokens", self._with_batches)
        yield self._same_tokens("drafts", self._with_drafts)
        yield self._at_1x()
        yield self._undone()

    # -- logits -------------------------------------------------------------------------------------------------

    def _padded(self, left: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from zip(self._ends(self._prompts, left), self._alone, strict=True)

    def _in_chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for prompt, alone in zip(self._prompts, self._alone, strict=True):
            cache, ids = self._runner.new_cache(), self._ids([prompt])
            read = [
                self._feed(cache, ids[:, start : start + _CHUNK], None, keep=COMPARED)
                for start in range(0, ids.shape[1], _CHUNK)
            ]
            yield torch.cat(read, dim=1)[0, -COMPARED:], alone

    def _from_cache(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for prompt, alone in zip(self._prompts, self._alone, strict=True):
            cache, ids = self._runner.new_cache(), self._ids([prompt])
            self._feed(cache, ids[:, :-COMPARED], None, keep=1)
            last = range(len(prompt) - COMPARED, len(prompt))
            steps = [self._feed(cache, ids[:, place : place + 1], None, keep=1)[0] for place in last]
            yield torch.cat(steps), alone

    def _beside_each_other(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Read prompts as the engine does, join what was read, and read on in all of them at once."""
        begun = [prompt[:-COMPARED] for prompt in self._prompts]
        longest = max(map(len, begun))
        pads = [longest - len(prompt) for prompt in begun]
        seen = torch.arange(longest) >= torch.tensor(pads)[:, None]
        seen = seen.to(self._model.device)
        cache = self._runner.new_cache()
        if cache.supports_concat and self._runner.has_stable_keys:
            self._feed(cache, self._ids(begun), None, keep=1)
            slices = [CacheSlice(cache, row, 0, len(prompt)) for row, prompt in enumerate(begun)]
            cache = KVCache.concat(slices, capacity=longest + COMPARED)
        else:
            self._feed(cache, self._ids(begun, pads), seen, keep=1)
        steps = []
        for step in range(COMPARED):
            ids = self._ids([[prompt[step - COMPARED]] for prompt in self._prompts])
            seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
            steps.append(self._feed(cache, ids, seen, keep=1))
        yield from zip(torch.cat(steps, dim=1), self._alone, strict=True)

    def _ends(self, prompts: Sequence[list[int]], left: bool = False) -> list[torch.Tensor]:
        """Read prompts in one pass; return the logits ``[COMPARED, words]`` of the end of each."""
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) if left else 0 for prompt in prompts]
        told = None
        if any(pads):
            told = (torch.arange(longest) >= torch.tensor(pads)[:, None]).to(self._model.device)
        wanted = [
            range(pad + len(prompt) - COMPARED, pad + len(prompt)) for pad, prompt in zip(pads, prompts, strict=True)
        ]
        places = sorted({place for own in wanted for place in own})
        keep = torch.tensor(places, device=self._model.device)
        read = self._feed(self._runner.new_cache(), self._ids(prompts, pads), told, keep=keep)
        return [row[[places.index(place) for place in own]] for row, own in zip(read, wanted, strict=True)]

    def _compared(self, name: str, found: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]) -> Check:
        """Compare logits with those of each prompt alone, whole and without a cache behind it."""
        try:
            with self._applied():
                worst = max(_difference(*pair) for pair in found())
        except Exception as error:  # noqa: BLE001 (as in checks)
            return Check(name, "failed", detail=_said(error))
        return Check(name, "passed" if worst <= self._allowed else "failed", worst)

    @property
    def _allowed(self) -> float:
        return TOLERANCE * max(1.0, *(float(logits.abs().max()) for logits in self._alone))

    # -- tokens -------------------------------------------------------------------------------------------------

    def _with_batches(self) -> Iterator[list[list[int]]]:
        yield self._written(1, 1)
        # Prompts that are read one by one, as on a CPU, and together, as on a GPU.
        yield self._written(_ALL, 1)
        yield self._written(_ALL, _ALL)

    def _with_drafts(self) -> Iterator[list[list[int]]]:
        plain = self._written(_ALL, 1)
        yield plain
        half = NEW // 2
        # Right up to their middle, and then what another prompt goes on with.
        drafts = [(*own[:half], *other[half:]) for own, other in zip(plain, [*plain[1:], plain[0]], strict=True)]
        yield self._written(_ALL, 1, drafts)
        yield self._written(_ALL, _ALL, drafts)

    def _same_tokens(self, name: str, written: Callable[[], Iterator[list[list[int]]]]) -> Check:
        """Compare the first of several ways to write the same with all others."""
        try:
            first, *others = written()
            gaps = [self._gap(*row) for other in others for row in zip(self._prompts, first, other, strict=True)]
        except Exception as error:  # noqa: BLE001 (as in checks)
            return Check(name, "failed", detail=_said(error))
        # Two candidates that are as good as equal are no one's fault.
        wrong = sum(gap > self._allowed for gap in gaps)
        detail = f"{wrong} of {len(gaps)} texts differ" if wrong else ""
        return Check(name, "failed" if wrong else "passed", max(gaps), detail)

    def _written(self, budget: int, at_once: int, drafts: Sequence[tuple[int, ...]] = ()) -> list[list[int]]:
        """Continue all prompts as the engine does, in batches of so many tokens, of which so many are read at once."""
        method, base = self._contestant.method, self._contestant.base
        requests = [
            Request(str(index), tuple(method.prompt(base, prompt, NEW)), NEW, drafts=tuple(drafts[index : index + 1]))
            for index, prompt in enumerate(self._prompts)
        ]
        self._core.config.max_prefill_tokens = at_once
        found: dict[str, list[int]] = {}
        for batch in batch_by_tokens(requests, budget, method.per_prompt, budget):
            with self._applied(num_total_tokens(batch[0]) if method.per_prompt else self._contestant.length):
                states = self._core.generate(batch, lambda *_: False, _ALL, budget)
            for state in states:
                found[state.request.example_id] = state.tokens
        return [found[str(index)] for index in range(len(self._prompts))]

    def _gap(self, prompt: list[int], one: list[int], other: list[int]) -> float:
        """Return by how much the likelier of two texts' first different tokens is likelier; 0 for equal texts."""
        place = next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)
        if place is None:
            return 0.0
        method = self._contestant.method
        given = [*method.prompt(self._contestant.base, prompt, NEW), *one[:place]]
        length = len(given) - place + NEW if method.per_prompt else self._contestant.length
        with self._applied(length):
            logits = self._ends([given])[0][-1]
        return abs(float(logits[one[place]] - logits[other[place]]))

    # -- the base -----------------------------------------------------------------------------------------------

    def _at_1x(self) -> Check:
        method = self._contestant.method
        if self._own_weights:
            return Check("1x", "not applicable", detail="it has weights of its own")
        try:
            with self._applied(self._contestant.base.original_length):
                found = self._ends([self._within])[0]
        except Exception as error:  # noqa: BLE001 (as in checks)
            return Check("1x", "failed", detail=_said(error))
        difference = _difference(found, self._base)
        if torch.equal(found, self._base):
            return Check("1x", "passed", difference)
        if method.changes_at_1x or method.factor is not None:
            why = "its factor is fixed" if method.factor is not None else "it declares changes_at_1x"
            return Check("1x", "not applicable", difference, f"differs from the base, as {why}")
        if difference <= self._allowed:
            return Check("1x", "passed", difference, "the base but for rounding, not bit for bit")
        return Check("1x", "failed", difference, "not the base's logits; changes_at_1x is not declared")

    def _undone(self) -> Check:
        """See what is left of the method after all that was done, and after an error where it was applied."""
        left = self._before.differences(ModelState(self._model))
        when = "afterwards"
        if not left:
            hidden = True
            try:
                with self._applied():
                    raise _Stop
            except _Stop:
                hidden = False
            except Exception as error:  # noqa: BLE001 (as in checks)
                return Check("undone", "failed", detail=f"an error inside becomes another one: {_said(error)}")
            if hidden:
                return Check("undone", "failed", detail="an error inside is hidden")
            left, when = self._before.differences(ModelState(self._model)), "after an error inside"
        if left:
            named = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
            return Check("undone", "failed", detail=f"other than before, {when}: {named}")
        difference = _difference(self._ends([self._within])[0], self._base)
        return Check("undone", "passed" if difference == 0 else "failed", difference)

    # -- what all of them need ----------------------------------------------------------------------------------

    @contextmanager
    def _applied(self, length: int | None = None) -> Iterator[None]:
        with apply_method(self._model, self._contestant, length or self._contestant.length):
            yield

    @torch.inference_mode()
    def _feed(
        self, cache: KVCache, ids: torch.Tensor, told: torch.Tensor | None, keep: int | torch.Tensor
    ) -> torch.Tensor:
        # Only around the pass, as in a run: a method is applied where gradients are kept.
        return self._runner.forward(cache, ids, told, keep)

    def _ids(self, rows: Sequence[Sequence[int]], pads: Sequence[int] = ()) -> torch.Tensor:
        return pad_token_ids(rows, pads).to(self._model.device)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two tensors; infinity where either is no number."""
    difference = float((one - other).abs().max())
    return difference if math.isfinite(difference) else math.inf


def _said(error: Exception) -> str:
    return " ".join(f"raised {type(error).__name__}: {error}".split())[:300]
