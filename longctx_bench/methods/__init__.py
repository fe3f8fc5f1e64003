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
        "crop": f"{_HERE}.rope_scaling:Crop",
        "drope": f"{_HERE}.drope:DroPE",
        "dynamic-ntk": f"{_HERE}.rope_scaling:DynamicNTK",
        "exported": f"{_HERE}.exported_checkpoint:ExportedCheckpoint",
        "llama3": f"{_HERE}.rope_scaling:Llama3",
        "longrope": f"{_HERE}.rope_scaling:LongRoPE",
        "nope": f"{_HERE}.nope:NoPE",
        "ntk": f"{_HERE}.rope_scaling:NTK",
        "pi": f"{_HERE}.rope_scaling:PI",
        "rnope-swa": f"{_HERE}.rnope_swa:RNoPESWA",
        "rope": f"{_HERE}.rope_scaling:RoPE",
        "yarn": f"{_HERE}.rope_scaling:YaRN",
    },
)
"""Method classes by id; a method YAML names one under ``use``. Plug-in methods need no YAML."""
