"""vLLM's way to our models: the entry point ``vllm.general_plugins``, and what a worker is asked for.

vLLM calls :func:`register` in each of its processes.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Make ``llama_drope`` and ``qwen2_drope`` known: their configs to transformers, their classes to vLLM."""
    from vllm import ModelRegistry

    import longctx_bench.methods.modeling_drope  # noqa: F401  (registers the configs)

    for name in ("LlamaDropeForCausalLM", "Qwen2DropeForCausalLM"):
        # By name, so that vLLM may look at the class in a process of its own before it uses any device.
        ModelRegistry.register_model(name, f"longctx_bench.engines.vllm_backend.modeling_drope:{name}")


class WorkerExtension:
    """What a worker of vLLM can be asked besides its own methods (vLLM's ``worker_extension_cls``)."""

    model_runner: Any

    def rotary_table(self, positions: list[int]) -> list[list[float]] | None:
        """Return cos and sin side by side at some positions, as the first layer reads them; None without positions."""
        layer = self.model_runner.get_model().model.layers[0].self_attn
        rotary = getattr(layer, "rotary_emb", None)
        if rotary is None:
            return None
        rows: list[list[float]] = rotary.cos_sin_cache[positions].double().cpu().tolist()
        return rows

    def architecture(self) -> str:
        """Return the name of the class that runs."""
        return type(self.model_runner.get_model()).__name__
