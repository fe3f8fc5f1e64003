"""Training checkpoints for exact resume: weights, optimizer state, step, and the recipe they belong to."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import make_folder, require_writable, sync_file, sync_folder, write_text
from longctx_bench.training.recipe import Recipe

_FOLDER = "state"


def claim_folder(out: Path, recipe: Recipe) -> None:
    """Claim a run's folder for a recipe, or check that it is already this recipe's.

    Raises:
        UserError: the folder belongs to another recipe, or is not a run's and not empty.
    """
    claim = out / "recipe.json"
    if claim.is_file():
        try:
            stored = json.loads(claim.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{claim}: damaged; remove {out} or give another --out") from error
        current = recipe.identity()
        for key in sorted({*stored, *current}):
            if stored.get(key) != current.get(key):
                raise UserError(
                    f"{out} holds a run of another recipe ({key} was {stored.get(key)!r:.60}, "
                    f"is {current.get(key)!r:.60}); give another --out, or remove it to start over"
                )
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and not a training run; give another --out")
    require_writable(out)
    write_text(claim, json.dumps(recipe.identity(), indent=1, sort_keys=True) + "\n")


def save_state(
    out: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, log: dict[str, Any]
) -> None:
    """Write a checkpoint, then remove the older ones. An existing checkpoint of the same step is kept.

    Raises:
        UserError: no space on the disk.
    """
    folder = out / _FOLDER
    new = folder / f"new-{step:08d}"
    final = folder / f"step-{step:08d}"
    if final.exists():
        # The run was stopped right after it had resumed from this step.
        return
    try:
        shutil.rmtree(new, ignore_errors=True)
        make_folder(new)
        save_file(_trainable_weights(model), new / "weights.safetensors")
        torch.save(optimizer.state_dict(), new / "optimiser.pt")
        write_text(new / "progress.json", json.dumps({"step": step, **log}))
        # Flush it before the older ones are removed: power may fail at any moment.
        for file in new.iterdir():
            sync_file(file)
        sync_folder(new)
        new.replace(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        free = shutil.disk_usage(out).free
        raise UserError(
            f"{folder}: cannot write a checkpoint: {error.strerror or error} ({free / 1e9:.1f} GB free); make room "
            f"and repeat the command: the run resumes from its last checkpoint"
        ) from error
    for older in folder.iterdir():
        if older != final:
            shutil.rmtree(older, ignore_errors=True)
    with suppress(OSError):
        # Without this, a power failure could bring back a part of an older one.
        sync_folder(folder)


def load_state(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the newest complete checkpoint into model and optimizer; return its progress, ``{"step": 0}`` without one.

    Raises:
        UserError: the checkpoint is damaged.
    """
    states = sorted((out / _FOLDER).glob("step-*"))
    if not states:
        return {"step": 0}
    try:
        weights = load_file(states[-1] / "weights.safetensors")
        trained = dict(_trainable_parameters(model))
        if set(weights) != set(trained):
            raise UserError(f"{states[-1]}: its weights are another model's; give another --out")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])
        optimizer.load_state_dict(torch.load(states[-1] / "optimiser.pt", map_location="cpu", weights_only=True))
        progress: dict[str, Any] = json.loads((states[-1] / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        raise UserError(f"{states[-1]}: damaged state ({str(error).splitlines()[0]:.120}); remove it") from error
    return progress


def remove_states(out: Path) -> None:
    """Remove the checkpoints of a finished run; an interrupted removal leaves none that would be loaded."""
    states = list((out / _FOLDER).glob("step-*"))
    with suppress(OSError):
        for state in states:
            state.replace(state.with_name(state.name.replace("step", "old")))
        if states:
            sync_folder(out / _FOLDER)
    shutil.rmtree(out / _FOLDER, ignore_errors=True)


def _trainable_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu().contiguous() for name, parameter in _trainable_parameters(model)}
