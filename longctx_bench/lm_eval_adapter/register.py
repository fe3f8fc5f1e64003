"""Registers ``longctx`` as an lm-eval model in this process, because lm-eval 0.4.13 loads no plug-ins."""

from __future__ import annotations

NAME = "longctx"


def register() -> None:
    """Add the model to lm-eval's registry."""
    import lm_eval.models  # noqa: F401  (lm-eval registers its own models only in an empty registry)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="longctx_bench.lm_eval_adapter.lm:LongCtxLM")
