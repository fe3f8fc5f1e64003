"""Next-token loss (mean cross-entropy, nats), AdamW, and learning-rate schedules (cosine, WSD)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from longctx_bench.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NextTokenLoss(nn.Module):
    """A causal language model and its loss in one module, so that torch.compile and DDP wrap both."""

    def __init__(self, model: PreTrainedModel, precision: str, residual: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.residual = residual

    def forward(
        self,
        rows: torch.Tensor,
        softmax_temperature: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean loss of ``[sequences, length + 1]`` token ids, fp32 scalar.

        ``softmax_temperature``, ``[sequences, heads]`` or ``[sequences, 1]``, multiplies the attention logits;
        ``key_bias``, ``[sequences, length]``, is added to them.
        """
        optional = {"softmax_temperature": softmax_temperature, "key_bias": key_bias}
        extra = {name: value for name, value in optional.items() if value is not None}
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            embedded = self.model.get_input_embeddings()(rows[:, :-1])
            if self.precision == "bf16" and self.residual == "bf16":
                # As at inference; master weights stay in fp32.
                embedded = embedded.to(torch.bfloat16)
            hidden = self.model.base_model(inputs_embeds=embedded, use_cache=False, **extra).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden)
        return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine or a plateau with a linear decay."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    low = recipe.final_lr_ratio
    if recipe.schedule == "cosine":
        done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return recipe.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    decay = max(1, round(recipe.steps * recipe.decay_share))
    remaining = min(1.0, (recipe.steps - step) / decay)
    return recipe.lr * (low + (1 - low) * remaining)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; no weight decay on norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.is_cuda for parameter in trained)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas, fused=fused)
