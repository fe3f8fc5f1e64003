"""``longctx-bench check``: does a method meet the contract that every run relies on? Tested in fp32 on a real model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from longctx_bench.analysis.probes.method_trial import COMPARED_TOKENS, NEW_TOKENS, Check, MethodTrial
from longctx_bench.core.errors import UserError
from longctx_bench.engines.devices import resolve_device
from longctx_bench.engines.hf.engine import load_model
from longctx_bench.models.variant import ModelVariant

_RELATIVE_LENGTHS = (1.0, 0.72, 0.43, 0.2)
"""Lengths of the prompts, relative to the longest."""
_MIN_PROMPT_TOKENS = 128
"""Minimum length of the longest prompt."""


@dataclass(frozen=True)
class CheckReport:
    """The results of all checks of a method on a model."""

    method: str
    model: str
    device: str
    length: int
    """Target length of the method, in tokens."""
    prompts: tuple[int, ...]
    """Tokens of each prompt."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.result != "failed" for check in self.checks)


def check_method(variant: ModelVariant, device: str = "auto", prompt_tokens: int = 1024) -> CheckReport:
    """Check a method on its model, at twice the training context and (check ``1x``) at the training context.

    Args:
        variant: the method and its model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        prompt_tokens: of the longest prompt and its continuation, at most twice the training context.

    Raises:
        UserError: the model cannot be loaded, the method does not support it, or the prompts are too short.
    """
    resolved = variant.resolve()
    folder, base = resolved.folder, resolved.base
    length = 2 * base.original_length
    longest = min(prompt_tokens, length) - NEW_TOKENS
    if longest < _MIN_PROMPT_TOKENS:
        raise UserError(
            f"{variant.name}: a check needs at least {_MIN_PROMPT_TOKENS + NEW_TOKENS} prompt tokens; "
            f"raise --prompt-tokens"
        )
    # An unsupported model is a user error, not a failed check.
    for tokens in (base.original_length, length):
        variant.method.model_overrides(base, tokens)
    model = load_model(folder, "float32", resolve_device(device))
    sizes = tuple(max(COMPARED_TOKENS + 1, round(share * longest)) for share in _RELATIVE_LENGTHS)
    own_weights = variant.source != variant.model.source
    trial = MethodTrial(model, resolved.at(length), _prompts(model, sizes), own_weights)
    checks = tuple(trial.checks())
    return CheckReport(variant.method_name, variant.model.name, str(model.device), length, sizes, checks)


def _prompts(model: PreTrainedModel, sizes: Sequence[int]) -> list[list[int]]:
    """Return random tokens whose second half repeats the first, so that prompt lookup can draft."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(19)
    prompts = []
    for size in sizes:
        half = torch.randint(vocab_size, (-(-size // 2),), generator=generator).tolist()
        prompts.append([*half, *half][:size])
    return prompts
