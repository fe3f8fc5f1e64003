"""Makes ``longctx`` a model that lm-eval knows by name, in this process: lm-eval looks for no plug-ins."""

from __future__ import annotations

NAME = "longctx"


def register() -> None:
    """Add the model to lm-eval's registry, beside its own."""
    import lm_eval.models  # noqa: F401  (its own models first: it fills an empty registry only)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="longctx_bench.lm_eval_adapter.lm:LongCtxLM")
