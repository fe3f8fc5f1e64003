"""The vLLM plug-in: the entry point ``vllm.general_plugins``, and an extension of vLLM's workers.

vLLM calls :func:`register` in each of its processes.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Register model classes with vLLM by their names, and the configs of ``llama_drope`` and ``qwen2_drope``.

    A model is of such a class if its config or this project's engine says so; no other is touched.
    """
    from vllm import ModelRegistry

    import longctx_bench.methods.modeling_drope  # noqa: F401  (registers the configs)

    for module, names in (
        ("modeling_drope", ("LlamaDropeForCausalLM", "Qwen2DropeForCausalLM")),
        ("modeling_banded", ("LlamaBandedForCausalLM", "Qwen2BandedForCausalLM")),
    ):
        for name in names:
            # By name, so that vLLM can inspect the class in a subprocess before it uses any device.
            ModelRegistry.register_model(name, f"longctx_bench.engines.vllm_backend.{module}:{name}")


class WorkerExtension:
    """Methods that are added to vLLM's workers (``worker_extension_cls``)."""

    model_runner: Any

    def rotary_table(self, positions: list[int]) -> list[list[float]] | None:
        """Return ``[cos, sin]`` at positions, as the first layer reads them; None for models without positions."""
        layer = self.model_runner.get_model().model.layers[0].self_attn
        rotary = getattr(layer, "rotary_emb", None)
        if rotary is None:
            return None
        # longrope has two tables in one, the short list's rows before the long one's.
        table, first = getattr(rotary, "cos_sin_cache", None), 0
        if table is None:
            table = rotary.long_short_cos_sin_cache
            first = rotary.original_max_position_embeddings if rotary.use_long_rope else 0
        rows: list[list[float]] = table[[first + position for position in positions]].double().cpu().tolist()
        return rows

    def architecture(self) -> str:
        """Return the class name of the loaded model."""
        return type(self.model_runner.get_model()).__name__
