"""Puts the line that makes lm-eval know our model (longctx_bench/harness/register.py) into every kind of install."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PTH = "longctx_bench_lm_eval.pth"


class LMEvalHook(BuildHookInterface[Any]):
    """Adds the ``.pth`` file to wheels, editable ones too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the file for the builder."""
        key = "force_include_editable" if version == "editable" else "force_include"
        build_data.setdefault(key, {})[f"{self.root}/{PTH}"] = PTH
