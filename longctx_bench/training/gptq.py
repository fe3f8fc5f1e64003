"""GPTQ: rounding of weight matrices with error compensation (Frantar et al. 2022, arXiv 2210.17323).

It minimises the error of a matrix's outputs, not of its weights. Inputs are correlated, so the error of one column can
partly be compensated by the columns that are rounded after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from longctx_bench.core.errors import UserError
from longctx_bench.core.text_files import read_documents
from longctx_bench.engines.hf.engine import load_model
from longctx_bench.models.checkpoint import load_tokenizer

_DAMPING = 0.01
"""Added to each diagonal entry of the moments, relative to their mean: a few thousand tokens are not more exact."""
_BLOCK = 128
"""Columns rounded before the compensation of all later columns is updated."""


def input_moments(folder: Path, text: Path, tokens: int, length: int = 2048) -> dict[str, torch.Tensor]:
    """Return the second moments of each linear layer's inputs, ``[inputs, inputs]`` in fp32, by name of its weight.

    Args:
        folder: a model in Hugging Face format.
        text: calibration documents that no test uses.
        tokens: number of calibration tokens, read in sequences of ``length``.
        length: tokens per sequence; at most the model's training context is used.

    Raises:
        UserError: the model, its tokenizer or the text cannot be read, or the text is shorter than one sequence.
    """
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, "float32", "cpu")
    length = min(length, model.config.max_position_embeddings)
    rows = _sequences(text, tokenizer, tokens, length)
    moments: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _accumulate_moments(model, moments):
        for row in rows:
            model(row[None], use_cache=False)
    means = {name: total / (len(rows) * length) for name, total in moments.items()}
    if model.config.tie_word_embeddings and "lm_head.weight" in means:
        # A tied matrix is also the embedding, where every column counts the same: accumulate the identity.
        head = means.pop("lm_head.weight")
        means["model.embed_tokens.weight"] = head / head.diagonal().mean() + torch.eye(len(head))
    return means


def gptq_codes(weights: torch.Tensor, steps: torch.Tensor, moments: torch.Tensor, max_code: int) -> torch.Tensor:
    """Return int8 codes ``[rows, inputs]`` whose ``steps * codes`` has nearly the outputs of ``weights``.

    Args:
        weights: ``[rows, inputs]`` in fp32.
        steps: step size of each row, ``[rows]``.
        moments: second moments of the inputs, ``[inputs, inputs]``, from :func:`input_moments`.
        max_code: codes lie between this and its negative.
    """
    # The largest inputs first, while most columns are left to compensate for them.
    order = moments.diagonal().argsort(descending=True)
    damped_moments = moments[order][:, order].double()
    damped_moments.diagonal().add_(_DAMPING * damped_moments.diagonal().mean() + 1e-12)
    inverse_moments = torch.cholesky_inverse(torch.linalg.cholesky(damped_moments))
    factor = torch.linalg.cholesky(inverse_moments, upper=True).float()
    remaining = (weights / steps[:, None])[:, order]
    codes = torch.empty_like(remaining)
    for start in range(0, remaining.shape[1], _BLOCK):
        end = min(start + _BLOCK, remaining.shape[1])
        errors = torch.empty_like(remaining[:, start:end])
        for column in range(start, end):
            codes[:, column] = remaining[:, column].round().clamp_(-max_code, max_code)
            errors[:, column - start] = (remaining[:, column] - codes[:, column]) / factor[column, column]
            remaining[:, column + 1 : end] -= errors[:, column - start, None] * factor[column, column + 1 : end]
        remaining[:, end:] -= errors @ factor[start:end, end:]
    unordered = torch.empty_like(codes)
    unordered[:, order] = codes
    return unordered.to(torch.int8)


def _sequences(text: Path, tokenizer: Any, tokens: int, length: int) -> list[torch.Tensor]:
    ids: list[int] = []
    for document in read_documents(text, "text"):
        if len(ids) >= tokens:
            break
        # Only the beginning of each document, so that one book does not fill the sample.
        ids += tokenizer.encode(document[: 16 * length], add_special_tokens=False)[: 2 * length]
    starts = range(0, min(len(ids), tokens) - length + 1, length)
    if not starts:
        raise UserError(f"{text}: has {len(ids)} tokens, fewer than one sequence of {length}")
    return [torch.tensor(ids[start : start + length]) for start in starts]


@contextmanager
def _accumulate_moments(model: torch.nn.Module, moments: dict[str, torch.Tensor]) -> Iterator[None]:
    """Hook all linear layers to add up the products of their inputs."""

    def hook_of(name: str) -> Any:
        def accumulate(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            inputs = arguments[0].flatten(0, -2).float()
            product = inputs.T @ inputs
            moments[name] = moments[name] + product if name in moments else product

        return accumulate

    hooks = [
        module.register_forward_pre_hook(hook_of(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
