"""Rounding that lets later weights make up for what earlier ones lost (GPTQ, Frantar et al. 2022, arXiv 2210.17323).

A rounded matrix matters by what it does to its inputs, and those are far from independent: an error in one column can
be undone in part by the columns that its input goes along with.
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
"""Of the mean square of an input, added to each: the moments of a few thousand tokens are no more exact."""
_BLOCK = 128
"""Columns after which what the others make up for is brought up to date."""


def input_moments(folder: Path, text: Path, tokens: int, length: int = 2048) -> dict[str, torch.Tensor]:
    """Return ``[inputs, inputs]`` in fp32 for every matrix of a model, by name: the mean product of its inputs.

    Args:
        folder: a model in Hugging Face format.
        text: documents that no test uses.
        tokens: how many of them are read, in rows of ``length``.
        length: tokens of a row, at most the model's training context.

    Raises:
        UserError: model, tokenizer or text cannot be read, or the text has less than a row.
    """
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, "float32", "cpu")
    length = min(length, model.config.max_position_embeddings)
    rows = _rows(text, tokenizer, tokens, length)
    moments: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _watched(model, moments):
        for row in rows:
            model(row[None], use_cache=False)
    found = {name: total / (len(rows) * length) for name, total in moments.items()}
    if model.config.tie_word_embeddings and "lm_head.weight" in found:
        # One matrix for two purposes: rows are also looked up as they are, where every column counts the same.
        last = found.pop("lm_head.weight")
        found["model.embed_tokens.weight"] = last / last.diagonal().mean() + torch.eye(len(last))
    return found


def rounded(rest: torch.Tensor, steps: torch.Tensor, moments: torch.Tensor, largest: int) -> torch.Tensor:
    """Return int8 codes ``[rows, inputs]``, so that ``steps * codes`` does to inputs nearly what ``rest`` does.

    Args:
        rest: ``[rows, inputs]`` in fp32.
        steps: ``[rows]``.
        moments: ``[inputs, inputs]``, the mean product of the inputs.
        largest: codes lie between this and its negative.
    """
    # The loudest inputs first: most columns are left to make up for them.
    order = moments.diagonal().argsort(descending=True)
    damped = moments[order][:, order].double()
    damped.diagonal().add_(_DAMPING * damped.diagonal().mean() + 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left = (rest / steps[:, None])[:, order]
    codes = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        lost = torch.empty_like(left[:, start:end])
        for column in range(start, end):
            codes[:, column] = left[:, column].round().clamp_(-largest, largest)
            lost[:, column - start] = (left[:, column] - codes[:, column]) / factor[column, column]
            left[:, column + 1 : end] -= lost[:, column - start, None] * factor[column, column + 1 : end]
        left[:, end:] -= lost @ factor[start:end, end:]
    back = torch.empty_like(codes)
    back[:, order] = codes
    return back.to(torch.int8)


def _rows(text: Path, tokenizer: Any, tokens: int, length: int) -> list[torch.Tensor]:
    ids: list[int] = []
    for document in read_documents(text, "text"):
        if len(ids) >= tokens:
            break
        # A whole book would be read for its beginning: a share of each document mixes them.
        ids += tokenizer.encode(document[: 16 * length], add_special_tokens=False)[: 2 * length]
    starts = range(0, min(len(ids), tokens) - length + 1, length)
    if not starts:
        raise UserError(f"{text}: has {len(ids)} tokens, less than one row of {length}")
    return [torch.tensor(ids[start : start + length]) for start in starts]


@contextmanager
def _watched(model: torch.nn.Module, moments: dict[str, torch.Tensor]) -> Iterator[None]:
    """Add up the products of what goes into each linear layer."""

    def watch(name: str) -> Any:
        def add(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            inputs = arguments[0].flatten(0, -2).float()
            product = inputs.T @ inputs
            moments[name] = moments[name] + product if name in moments else product

        return add

    hooks = [
        module.register_forward_pre_hook(watch(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
