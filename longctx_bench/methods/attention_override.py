"""Custom attention functions: replace a model's attention and restore it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from longctx_bench.core.deprecation import renamed_attributes
from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MissingMaskError(UserError):
    """A method's attention function would get no attention mask."""


@contextmanager
def override_attention(
    model: PreTrainedModel, name: str, function: Callable[..., Any], mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Register ``function`` with transformers under ``name`` and use it as the model's attention inside the block.

    ``mask`` builds its attention mask, by default as for sdpa: without a mask function registered under the name,
    padding would be attended to, or a [tokens x tokens] mask be built where none is needed. ``baselines/README.md``
    documents the contract of ``function``; ``longctx-bench check`` tests it.

    Raises:
        UserError: the model does not use transformers' attention interface, or caps its attention logits.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not getattr(model, "_supports_attention_backend", False):
        raise UserError(
            f"a {model.config.model_type} does not use transformers' attention interface, so its attention cannot be "
            f"replaced"
        )
    if getattr(model.config, "attn_logit_softcapping", None):
        raise UserError(
            f"a {model.config.model_type} caps its attention logits (attn_logit_softcapping), which another attention "
            f"function would not do"
        )
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, mask or sdpa_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def require_attention_mask(model: PreTrainedModel) -> None:
    """Check that a method's attention function has a mask registered and is the one that the model will call.

    Raises:
        MissingMaskError: no mask function is registered under its name, it replaced transformers' ``sdpa``, or the
            model does not use transformers' attention interface.
    """
    from transformers import AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config._attn_implementation
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        raise MissingMaskError(
            "the method replaced 'sdpa', which engines replace as well: register its attention under another name with "
            "longctx_bench.methods.attention_override.override_attention"
        )
    if name in (None, "eager", "sdpa"):
        return
    if not getattr(model, "_supports_attention_backend", False):
        raise MissingMaskError(
            f"{model.config.model_type}: does not use transformers' attention interface, so the method's attention "
            f"would silently be ignored"
        )
    if name not in AttentionMaskInterface._global_mapping:
        raise MissingMaskError(
            f"the method's attention '{name}' has no mask registered, so padding would be attended to: "
            "use longctx_bench.methods.attention_override.override_attention, or call AttentionMaskInterface.register"
        )


__getattr__ = renamed_attributes(__name__, {"attending": "override_attention"}, globals())
