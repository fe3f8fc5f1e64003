"""Checks of a method: the same prompts through every execution path of the engine, compared with each other."""

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
from longctx_bench.methods.attention_override import MissingMaskError
from longctx_bench.models.variant import ModelUnderTest

TOLERANCE = 1e-4
"""Allowed fp32 difference when the order of computation changes, relative to the largest logit."""
NEW_TOKENS = 24
"""Tokens to decode."""
COMPARED_TOKENS = 8
"""Tokens at the end of each prompt whose logits are compared; with a cache they are fed one at a time."""
_CHUNK = 37
"""Tokens per pass of a chunked prefill; divides none of the prompt lengths."""
_ALL = 1 << 20
"""A token budget that no batch exceeds."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    result: str
    """``passed``, ``failed`` or ``not applicable``."""
    difference: float | None = None
    """Largest difference of logits; None where nothing was compared."""
    detail: str = ""


class _TokenIdTokenizer:
    """A stand-in for a tokenizer that decodes token ids to their numbers."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, tokens))


class _Stop(Exception):
    """Raised inside the method's context manager, to check that it propagates and that everything is undone."""


class MethodTrial:
    """Runs the checks of a method on a model; the reference is each prompt alone, in one pass without a cache."""

    def __init__(
        self, model: PreTrainedModel, model_under_test: ModelUnderTest, prompts: list[list[int]], own_weights: bool
    ) -> None:
        """Record the logits and the state of the model without the method.

        Args:
            model: in fp32.
            model_under_test: the method and the length that it is applied for.
            prompts: token ids, the longest first.
            own_weights: whether the method has its own weights, so that check ``1x`` does not apply.
        """
        self._model, self._model_under_test, self._prompts, self._own_weights = (
            model,
            model_under_test,
            prompts,
            own_weights,
        )
        self._core = EngineCore.for_model(model, _TokenIdTokenizer(), frozenset())
        self._runner = self._core.runner
        within = prompts[0][: model_under_test.base.original_length]
        # A warm-up pass, so that lazily created state exists before the snapshot.
        self._ends([within])
        self._base, self._within = self._ends([within])[0], within
        self._before = ModelState(model)

    def checks(self) -> Iterator[Check]:
        """Run all checks, also after a failure."""
        try:
            with self._applied():
                self._alone = [self._ends([prompt])[0] for prompt in self._prompts]
        except MissingMaskError as error:
            yield Check("attention mask", "failed", detail=str(error))
            return
        except Exception as error:  # noqa: BLE001 (a plug-in method may raise anything; that is a result)
            yield Check("one prompt", "failed", detail=_error_summary(error))
            return
        yield Check("attention mask", "passed")
        yield self._compared("right padding", lambda: self._padded(left=False))
        yield self._compared("left padding", lambda: self._padded(left=True))
        yield self._compared("chunked prefill", self._in_chunks)
        yield self._compared("cached decoding", self._from_cache)
        yield self._compared("batch", self._batched)
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
            chunks = [
                self._feed(cache, ids[:, start : start + _CHUNK], None, keep=COMPARED_TOKENS)
                for start in range(0, ids.shape[1], _CHUNK)
            ]
            yield torch.cat(chunks, dim=1)[0, -COMPARED_TOKENS:], alone

    def _from_cache(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for prompt, alone in zip(self._prompts, self._alone, strict=True):
            cache, ids = self._runner.new_cache(), self._ids([prompt])
            self._feed(cache, ids[:, :-COMPARED_TOKENS], None, keep=1)
            last = range(len(prompt) - COMPARED_TOKENS, len(prompt))
            steps = [self._feed(cache, ids[:, index : index + 1], None, keep=1)[0] for index in last]
            yield torch.cat(steps), alone

    def _batched(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Prefill the prompts as the engine does, merge their caches, and decode them as one batch."""
        prefixes = [prompt[:-COMPARED_TOKENS] for prompt in self._prompts]
        longest = max(map(len, prefixes))
        pads = [longest - len(prompt) for prompt in prefixes]
        attention_mask = torch.arange(longest) >= torch.tensor(pads)[:, None]
        attention_mask = attention_mask.to(self._model.device)
        cache = self._runner.new_cache()
        if cache.supports_concat and self._runner.has_stable_keys:
            self._feed(cache, self._ids(prefixes), None, keep=1)
            slices = [CacheSlice(cache, row, 0, len(prompt)) for row, prompt in enumerate(prefixes)]
            cache = KVCache.concat(slices, capacity=longest + COMPARED_TOKENS)
        else:
            self._feed(cache, self._ids(prefixes, pads), attention_mask, keep=1)
        steps = []
        for step in range(COMPARED_TOKENS):
            ids = self._ids([[prompt[step - COMPARED_TOKENS]] for prompt in self._prompts])
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(attention_mask), 1)], dim=1)
            steps.append(self._feed(cache, ids, attention_mask, keep=1))
        yield from zip(torch.cat(steps, dim=1), self._alone, strict=True)

    def _ends(self, prompts: Sequence[list[int]], left: bool = False) -> list[torch.Tensor]:
        """Return the logits ``[COMPARED_TOKENS, vocab_size]`` of the end of each prompt, from one pass."""
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) if left else 0 for prompt in prompts]
        attention_mask = None
        if any(pads):
            attention_mask = (torch.arange(longest) >= torch.tensor(pads)[:, None]).to(self._model.device)
        compared = [
            range(pad + len(prompt) - COMPARED_TOKENS, pad + len(prompt))
            for pad, prompt in zip(pads, prompts, strict=True)
        ]
        positions = sorted({position for row in compared for position in row})
        keep = torch.tensor(positions, device=self._model.device)
        logits = self._feed(self._runner.new_cache(), self._ids(prompts, pads), attention_mask, keep=keep)
        return [
            row[[positions.index(position) for position in kept]] for row, kept in zip(logits, compared, strict=True)
        ]

    def _compared(self, name: str, pairs: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]) -> Check:
        """Compare logits with those of each prompt alone, in one pass without a cache."""
        try:
            with self._applied():
                worst = max(_difference(*pair) for pair in pairs())
        except Exception as error:  # noqa: BLE001 (as in checks)
            return Check(name, "failed", detail=_error_summary(error))
        return Check(name, "passed" if worst <= self._allowed else "failed", worst)

    @property
    def _allowed(self) -> float:
        return TOLERANCE * max(1.0, *(float(logits.abs().max()) for logits in self._alone))

    # -- tokens -------------------------------------------------------------------------------------------------

    def _with_batches(self) -> Iterator[list[list[int]]]:
        yield self._generate(1, 1)
        # Prompts prefilled one at a time, as on a CPU, and together, as on a GPU.
        yield self._generate(_ALL, 1)
        yield self._generate(_ALL, _ALL)

    def _with_drafts(self) -> Iterator[list[list[int]]]:
        plain = self._generate(_ALL, 1)
        yield plain
        half = NEW_TOKENS // 2
        # Right up to their middle, then the continuation of another prompt.
        drafts = [(*right[:half], *wrong[half:]) for right, wrong in zip(plain, [*plain[1:], plain[0]], strict=True)]
        yield self._generate(_ALL, 1, drafts)
        yield self._generate(_ALL, _ALL, drafts)

    def _same_tokens(self, name: str, ways: Callable[[], Iterator[list[list[int]]]]) -> Check:
        """Compare the tokens of the first of several ways to decode with those of all others."""
        try:
            first, *others = ways()
            gaps = [self._gap(*row) for other in others for row in zip(self._prompts, first, other, strict=True)]
        except Exception as error:  # noqa: BLE001 (as in checks)
            return Check(name, "failed", detail=_error_summary(error))
        # A different choice between two nearly equal candidates is not a failure.
        wrong = sum(gap > self._allowed for gap in gaps)
        detail = f"{wrong} of {len(gaps)} texts differ" if wrong else ""
        return Check(name, "failed" if wrong else "passed", max(gaps), detail)

    def _generate(self, budget: int, at_once: int, drafts: Sequence[tuple[int, ...]] = ()) -> list[list[int]]:
        """Continue all prompts as the engine does, in batches of ``budget`` tokens, ``at_once`` prefilled together."""
        method, base = self._model_under_test.method, self._model_under_test.base
        requests = [
            Request(
                str(index),
                tuple(method.prompt(base, prompt, NEW_TOKENS)),
                NEW_TOKENS,
                drafts=tuple(drafts[index : index + 1]),
            )
            for index, prompt in enumerate(self._prompts)
        ]
        self._core.config.max_prefill_tokens = at_once
        generated: dict[str, list[int]] = {}
        for batch in batch_by_tokens(requests, budget, method.per_prompt, budget):
            with self._applied(num_total_tokens(batch[0]) if method.per_prompt else self._model_under_test.length):
                states = self._core.generate(batch, lambda *_: False, _ALL, budget)
            for state in states:
                generated[state.request.example_id] = state.tokens
        return [generated[str(index)] for index in range(len(self._prompts))]

    def _gap(self, prompt: list[int], a: list[int], b: list[int]) -> float:
        """Return the difference in logits of the first two tokens that differ; 0 for equal outputs."""
        position = next((index for index, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), None)
        if position is None:
            return 0.0
        method = self._model_under_test.method
        prefix = [*method.prompt(self._model_under_test.base, prompt, NEW_TOKENS), *a[:position]]
        length = len(prefix) - position + NEW_TOKENS if method.per_prompt else self._model_under_test.length
        with self._applied(length):
            logits = self._ends([prefix])[0][-1]
        return abs(float(logits[a[position]] - logits[b[position]]))

    # -- the base -----------------------------------------------------------------------------------------------

    def _at_1x(self) -> Check:
        method = self._model_under_test.method
        if self._own_weights:
            return Check("1x", "not applicable", detail="it has weights of its own")
        try:
            with self._applied(self._model_under_test.base.original_length):
                logits = self._ends([self._within])[0]
        except Exception as error:  # noqa: BLE001 (as in checks)
            return Check("1x", "failed", detail=_error_summary(error))
        difference = _difference(logits, self._base)
        if torch.equal(logits, self._base):
            return Check("1x", "passed", difference)
        if method.changes_at_1x or method.factor is not None:
            why = "its factor is fixed" if method.factor is not None else "it declares changes_at_1x"
            return Check("1x", "not applicable", difference, f"differs from the base, as {why}")
        if difference <= self._allowed:
            return Check("1x", "passed", difference, "the base but for rounding, not bit for bit")
        return Check("1x", "failed", difference, "not the base's logits; changes_at_1x is not declared")

    def _undone(self) -> Check:
        """Compare the model's state with that before the method, after all checks and after an error inside it."""
        changed = self._before.differences(ModelState(self._model))
        when = "afterwards"
        if not changed:
            is_hidden = True
            try:
                with self._applied():
                    raise _Stop
            except _Stop:
                is_hidden = False
            except Exception as error:  # noqa: BLE001 (as in checks)
                return Check("undone", "failed", detail=f"an error inside becomes another one: {_error_summary(error)}")
            if is_hidden:
                return Check("undone", "failed", detail="an error inside is hidden")
            changed, when = self._before.differences(ModelState(self._model)), "after an error inside"
        if changed:
            named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            return Check("undone", "failed", detail=f"not restored {when}: {named}")
        difference = _difference(self._ends([self._within])[0], self._base)
        return Check("undone", "passed" if difference == 0 else "failed", difference)

    # -- helpers ----------------------------------------------------------------------------------

    @contextmanager
    def _applied(self, length: int | None = None) -> Iterator[None]:
        with apply_method(self._model, self._model_under_test, length or self._model_under_test.length):
            yield

    @torch.inference_mode()
    def _feed(
        self, cache: KVCache, ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int | torch.Tensor
    ) -> torch.Tensor:
        # inference_mode only around the pass, as in a run: a method is applied with gradients enabled.
        return self._runner.forward(cache, ids, attention_mask, keep)

    def _ids(self, rows: Sequence[Sequence[int]], pads: Sequence[int] = ()) -> torch.Tensor:
        return pad_token_ids(rows, pads).to(self._model.device)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors; infinity if it is not finite."""
    difference = float((a - b).abs().max())
    return difference if math.isfinite(difference) else math.inf


def _error_summary(error: Exception) -> str:
    return " ".join(f"raised {type(error).__name__}: {error}".split())[:300]
