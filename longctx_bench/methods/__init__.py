"""Context-extension methods, one small class each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longctx_bench.core.plugin_registry import PluginRegistry

if TYPE_CHECKING:
    from longctx_bench.methods.base import Method

_HERE = "longctx_bench.methods"

METHODS: PluginRegistry[type[Method]] = PluginRegistry(
    "method",
    {
        "alibi": f"{_HERE}.alibi:ALiBi",
        "cope": f"{_HERE}.cope:CoPE",
        "crop": f"{_HERE}.rope_scaling:Crop",
        "dca": f"{_HERE}.dual_chunk:DualChunkAttention",
        "drope": f"{_HERE}.drope:DroPE",
        "dynamic-ntk": f"{_HERE}.rope_scaling:DynamicNTK",
        "exported": f"{_HERE}.exported_checkpoint:ExportedCheckpoint",
        "giraffe": f"{_HERE}.giraffe:Giraffe",
        "jet-long": f"{_HERE}.jet_long:JetLong",
        "leaky-rerope": f"{_HERE}.rerope:LeakyReRoPE",
        "llama3": f"{_HERE}.rope_scaling:Llama3",
        "lm-infinite": f"{_HERE}.attention_sinks:LMInfinite",
        "longrope": f"{_HERE}.rope_scaling:LongRoPE",
        "mrrope-pro": f"{_HERE}.mrrope:MrRoPEPro",
        "mrrope-uni": f"{_HERE}.mrrope:MrRoPEUni",
        "nope": f"{_HERE}.nope:NoPE",
        "ntk": f"{_HERE}.rope_scaling:NTK",
        "p-rope": f"{_HERE}.p_rope:PartialRoPE",
        "pi": f"{_HERE}.rope_scaling:PI",
        "resonance": f"{_HERE}.resonance:Resonance",
        "rerope": f"{_HERE}.rerope:ReRoPE",
        "rnope-swa": f"{_HERE}.rnope_swa:RNoPESWA",
        "rope": f"{_HERE}.rope_scaling:RoPE",
        "self-extend": f"{_HERE}.self_extend:SelfExtend",
        "streaming-llm": f"{_HERE}.attention_sinks:StreamingLLM",
        "string": f"{_HERE}.string_rope:STRING",
        "yarn": f"{_HERE}.rope_scaling:YaRN",
    },
)
"""Method classes by id; a method YAML names one under ``use``. Plug-in methods need no YAML."""
