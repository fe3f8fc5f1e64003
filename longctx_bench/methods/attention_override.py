"""An attention function of the project's own in place of a model's, and the model's back again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from longctx_bench.core.deprecation import renamed_attributes
from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MissingMaskError(UserError):
    """A method's attention would not be told what it must not attend to."""


@contextmanager
def override_attention(
    model: PreTrainedModel, name: str, function: Callable[..., Any], mask: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Let a model attend by ``function``, known to transformers under ``name``, as long as this lasts.

    It is given the mask that ``mask`` makes, or sdpa's: with none registered under its name, padding would be attended
    to, or a mask of [tokens x tokens] be built where none is needed. ``baselines/README.md`` says what else it is given
    and must honour; ``longctx-bench check`` tries that.

    Raises:
        UserError: the model attends by code of its own, or in a way that ``function`` would not know of.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not getattr(model, "_supports_attention_backend", False):
        raise UserError(
            f"a {model.config.model_type} attends by code of its own, which another attention cannot stand in for"
        )
    if getattr(model.config, "attn_logit_softcapping", None):
        raise UserError(
            f"a {model.config.model_type} caps the logits of its attention, which another attention does not do"
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
    """See to it that the attention that a method brought is told about padding, and is the one that will be asked.

    Raises:
        UnmaskedError: no mask is registered under its name, it took the place of transformers' own, or the model does
            not look for one.
    """
    from transformers import AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config._attn_implementation
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        raise MissingMaskError(
            "the method put its attention in the place of 'sdpa', which engines replace: bring it under a name of its "
            "own, by longctx_bench.methods.attention_override.override_attention"
        )
    if name in (None, "eager", "sdpa"):
        return
    if not getattr(model, "_supports_attention_backend", False):
        raise MissingMaskError(
            f"{model.config.model_type}: does not ask transformers for its attention, so that the method's would be "
            f"passed by without a word"
        )
    if name not in AttentionMaskInterface._global_mapping:
        raise MissingMaskError(
            f"the method's attention '{name}' has no mask registered, so that padding would be attended to without a "
            "word: bring it by longctx_bench.methods.attention_override.override_attention, or call "
            "AttentionMaskInterface.register"
        )


__getattr__ = renamed_attributes(__name__, {"attending": "override_attention"}, globals())
