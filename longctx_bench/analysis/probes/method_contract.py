"""Whether a method keeps to what every run relies on, tried on a real model in fp32; ``longctx-bench check``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from longctx_bench.analysis.probes.method_trial import COMPARED, NEW, Check, Trial
from longctx_bench.core.errors import UserError
from longctx_bench.engines.devices import resolve_device
from longctx_bench.engines.hf.engine import load_model
from longctx_bench.models.variant import ModelVariant

_SHARES = (1.0, 0.72, 0.43, 0.2)
"""Lengths of the prompts, of the longest."""
_LEAST = 128
"""Tokens that the longest prompt has at least."""


@dataclass(frozen=True)
class Checked:
    """What came of a method on a model."""

    method: str
    model: str
    device: str
    length: int
    """Tokens that the method was applied for."""
    prompts: tuple[int, ...]
    """Tokens of each."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Tell whether nothing failed."""
        return all(check.result != "failed" for check in self.checks)


def check_method(variant: ModelVariant, device: str = "auto", prompt_tokens: int = 1024) -> Checked:
    """Try a method on its model, at twice the training context and (``1x``) at it.

    Args:
        variant: the method and its model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        prompt_tokens: of the longest prompt and its continuation, at most twice the training context.

    Raises:
        UserError: the model cannot be loaded, the method refuses it, or it reads too few tokens.
    """
    resolved = variant.resolve()
    folder, base = resolved.folder, resolved.base
    length = 2 * base.original_length
    longest = min(prompt_tokens, length) - NEW
    if longest < _LEAST:
        raise UserError(f"{variant.name}: a check takes prompts of {_LEAST + NEW} tokens at least; name more")
    # What a method refuses is no failure of it.
    for tokens in (base.original_length, length):
        variant.method.model_overrides(base, tokens)
    model = load_model(folder, "float32", resolve_device(device))
    sizes = tuple(max(COMPARED + 1, round(share * longest)) for share in _SHARES)
    own_weights = variant.source != variant.model.source
    trial = Trial(model, resolved.at(length), _prompts(model, sizes), own_weights)
    checks = tuple(trial.checks())
    return Checked(variant.method_name, variant.model.name, str(model.device), length, sizes, checks)


def _prompts(model: PreTrainedModel, sizes: Sequence[int]) -> list[list[int]]:
    """Return random tokens that repeat themselves, so that there is something to guess."""
    words = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(19)
    made = []
    for size in sizes:
        half = torch.randint(words, (-(-size // 2),), generator=generator).tolist()
        made.append([*half, *half][:size])
    return made
