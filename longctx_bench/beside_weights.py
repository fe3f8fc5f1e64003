"""What lies beside a model's weights and is read before they are: its config, and our calibrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longctx_bench.data import fetch, is_local
from longctx_bench.errors import UserError
from longctx_bench.specs import Source


def fits(source: Source, tunable: str | None) -> dict[str, Any]:
    """Return what ``longctx-bench calibrate`` found for these weights: by objective, the arguments of a Law."""
    if tunable is None or not is_local(source):
        return {}
    path = fetch(source) / "calibration.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"c": fit["c"], "table": fit["table"]} for name, fit in found.get(tunable, {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a calibration ({error}); run `calibrate` again") from error


def model_config(path: Path, name: str) -> dict[str, Any]:
    """Return the ``config.json`` of a folder, or the file itself.

    Raises:
        UserError: it is missing or no JSON object.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: has no readable config.json; expected a Hugging Face model folder") from error
    if not isinstance(config, dict):
        raise UserError(f"{name}: config.json is not a JSON object")
    return config
