"""Context-extension methods: one small class each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longctx_bench.extensions import Extensions

if TYPE_CHECKING:
    from longctx_bench.methods.base import Method

_HERE = "longctx_bench.methods"

METHODS: Extensions[type[Method]] = Extensions(
    "method",
    {
        "alibi": f"{_HERE}.alibi:ALiBi",
        "crop": f"{_HERE}.rope:Crop",
        "drope": f"{_HERE}.drope:DroPE",
        "dynamic-ntk": f"{_HERE}.rope:DynamicNTK",
        "exported": f"{_HERE}.exported:Exported",
        "llama3": f"{_HERE}.rope:Llama3",
        "longrope": f"{_HERE}.rope:LongRoPE",
        "nope": f"{_HERE}.nope:NoPE",
        "ntk": f"{_HERE}.rope:NTK",
        "pi": f"{_HERE}.rope:PI",
        "rnope-swa": f"{_HERE}.rnope_swa:RNoPESWA",
        "rope": f"{_HERE}.rope:RoPE",
        "yarn": f"{_HERE}.rope:YaRN",
    },
)
"""Classes of methods by id; a method's YAML names one under ``use``, and those from outside need no YAML."""
