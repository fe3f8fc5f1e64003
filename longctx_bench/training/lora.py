"""LoRA adapters (peft) on all projections; norms are trained in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longctx_bench.core.errors import UserError
from longctx_bench.training.recipe import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_adapters(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """Add adapters in place and freeze everything but them and the norms; the model keeps its class.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora needs the package 'peft': pip install 'longctx-bench[train]'") from error
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=PROJECTIONS), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name or "norm" in name
    return model


def merge_adapters(model: PreTrainedModel) -> None:
    """Merge the adapters into the projections, in place; plain linear layers remain."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
