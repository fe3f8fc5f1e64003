"""A trained model in plain Hugging Face format: bf16 safetensors, tokenizer, config."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import move_files
from longctx_bench.training.lora import merge_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG = "config.json"


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Save a copy of ``model`` in bf16, adapters merged, with its tokenizer. The model itself is not changed.

    config.json is written last: where it exists, the whole model is on the disk.

    Raises:
        UserError: no space on the disk.
    """
    exported = copy.deepcopy(model).cpu()
    merge_adapters(exported)
    exported.bfloat16()
    # The training attention exists in this process only: the config must not name it.
    exported.config._attn_implementation = "sdpa"
    scratch = folder.with_name(folder.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    # The bar for a single file tells nothing, and would break up the run's output.
    logging.disable_progress_bar()
    try:
        scratch.mkdir(parents=True)
        exported.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in scratch.iterdir():
            file.chmod(0o644)
        # That of an earlier export would mark this one as complete.
        (folder / _CONFIG).unlink(missing_ok=True)
        move_files(scratch, folder, last=_CONFIG)
    except OSError as error:
        free = shutil.disk_usage(folder.parent).free
        raise UserError(
            f"{folder}: cannot write the model: {error.strerror or error} ({free / 1e9:.1f} GB free); make room"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def average_checkpoints(folders: list[Path], out: Path) -> None:
    """Write the mean of several checkpoints of one model to ``out``; all else is taken from the last."""
    shutil.copytree(folders[-1], out, dirs_exist_ok=True)
    loaded = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {
        name: torch.stack([weights[name].float() for weights in loaded]).mean(0).to(tensor.dtype)
        for name, tensor in loaded[-1].items()
    }
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})
