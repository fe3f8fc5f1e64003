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
        "drope": f"{_HERE}.drope:DroPE",
        "dynamic-ntk": f"{_HERE}.rope_scaling:DynamicNTK",
        "exported": f"{_HERE}.exported_checkpoint:ExportedCheckpoint",
        "giraffe": f"{_HERE}.giraffe:Giraffe",
        "llama3": f"{_HERE}.rope_scaling:Llama3",
        "longrope": f"{_HERE}.rope_scaling:LongRoPE",
        "mrrope-pro": f"{_HERE}.mrrope:MrRoPEPro",
        "mrrope-uni": f"{_HERE}.mrrope:MrRoPEUni",
        "nope": f"{_HERE}.nope:NoPE",
        "ntk": f"{_HERE}.rope_scaling:NTK",
        "p-rope": f"{_HERE}.p_rope:PartialRoPE",
        "pi": f"{_HERE}.rope_scaling:PI",
        "resonance": f"{_HERE}.resonance:Resonance",
        "rnope-swa": f"{_HERE}.rnope_swa:RNoPESWA",
        "rope": f"{_HERE}.rope_scaling:RoPE",
        "yarn": f"{_HERE}.rope_scaling:YaRN",
    },
)
"""Method classes by id; a method YAML names one under ``use``. Plug-in methods need no YAML."""
