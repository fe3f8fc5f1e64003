"""An attention function of the project's own in place of a model's, and the model's back again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from longctx_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def attending(
    model: PreTrainedModel, name: str, function: Callable[..., Any], mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Let a model attend by ``function``, known to transformers under ``name``, as long as this lasts.

    It is given the mask that ``mask`` makes, or sdpa's: with none registered under its name, padding would be attended
    to, or a mask of [tokens x tokens] be built where none is needed.

    Raises:
        UserError: the model attends by code of its own, or in a way that ``function`` would not know of.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    kind = model.config.model_type
    if not getattr(model, "_supports_attention_backend", False):
        raise UserError(f"a {kind} attends by code of its own, which another attention cannot stand in for")
    if getattr(model.config, "attn_logit_softcapping", None):
        raise UserError(f"a {kind} caps the logits of its attention, which another attention does not do")
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, mask or sdpa_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
