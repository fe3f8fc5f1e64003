"""Training data of a recipe: tokenizer, batches and validation rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import move_files
from longctx_bench.core.temp_dirs import ScratchFolder
from longctx_bench.core.text_files import read_documents
from longctx_bench.models.checkpoint import stored_tokenizer
from longctx_bench.training.data.corpus import files, hub_documents
from longctx_bench.training.data.sequence_packing import Batches, PackedText
from longctx_bench.training.data.synthetic_retrieval_workers import retrieval_pool
from longctx_bench.training.data.token_cache import token_arrays
from longctx_bench.training.data.tokenizer_training import train_tokenizer
from longctx_bench.training.models import recipe_tokenizer
from longctx_bench.training.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOKENIZER_DOCUMENTS = 20_000
"""Documents that a new tokenizer is trained on."""


@dataclass(frozen=True)
class TrainingData:
    """Everything that a training run reads."""

    tokenizer: Any
    batches: Batches
    validation: NDArray[np.int64]
    """``[sequences, length + 1]`` token ids of held-out text."""
    tokens: int
    """Tokens of the training text."""


def prepare_data(recipe: Recipe, out: Path) -> TrainingData:
    """Tokenise and pack the texts of a recipe, or read them from the cache; a new tokenizer is saved in ``out``.

    Raises:
        UserError: the data is missing, damaged or too small.
    """
    tokenizer = _tokenizer(recipe, out)
    text = PackedText(token_arrays(recipe.data, recipe.corpus, tokenizer, recipe.tokens), recipe.sequence_length)
    # Raises if there is too little text, before the retrieval sequences are generated, which takes longer.
    Batches(text, recipe.batch, recipe.seed)
    pool = None
    if recipe.retrieval_share:
        pool = retrieval_pool(
            text,
            tokenizer,
            recipe.retrieval_pool,
            recipe.seed,
            max_needles=recipe.retrieval_needles,
            mixed=recipe.retrieval_exercises == "mixed",
            in_order=recipe.retrieval_values == "appearance",
        )
    batches = Batches(
        text,
        recipe.batch,
        recipe.seed,
        pool,
        recipe.retrieval_share,
        _digits(tokenizer),
        random_crops=recipe.crops == "random",
    )
    held_out = token_arrays([recipe.validation], recipe.corpus, tokenizer, recipe.validation_tokens)
    rows = PackedText(held_out, recipe.sequence_length)
    count = min(len(rows), max(1, recipe.validation_tokens // recipe.sequence_length))
    if count == 0:
        raise UserError(f"validation text is shorter than one sequence of {recipe.sequence_length} tokens")
    # Spread over the text, so that a short validation does not cover its first documents only.
    chosen = np.linspace(0, len(rows) - 1, count).astype(int)
    validation = np.stack([rows.row(int(index)) for index in chosen]).astype(np.int64)
    return TrainingData(tokenizer, batches, validation, sum(len(array) for array in text.arrays))


def _digits(tokenizer: Any) -> list[int]:
    """Return the token ids of the digits; empty if the tokenizer does not encode each digit as one token."""
    number = tokenizer.encode("0123456789", add_special_tokens=False)
    return list(number) if len(number) == 10 and len(set(number)) == 10 else []


def _tokenizer(recipe: Recipe, out: Path) -> Any:
    if recipe.tokenizer is not None or recipe.base is not None:
        return recipe_tokenizer(recipe)
    assert recipe.shape is not None
    if (out / "tokenizer.json").is_file():
        return stored_tokenizer(out)
    streams = [
        hub_documents(source)
        if source.hub is not None
        else chain.from_iterable(read_documents(file, source.text_field) for file in files(source, recipe.corpus))
        for source in recipe.data
    ]
    documents = islice(chain.from_iterable(streams), _TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer(documents, recipe.shape.vocab_size, recipe.sequence_length)
    # Its tokenizer.json is moved last: a later start takes it as a sign that all is there.
    with ScratchFolder(".tokenizer-", out) as scratch:
        folder = scratch / "tokenizer"
        tokenizer.save_pretrained(folder)
        move_files(folder, out, last="tokenizer.json")
    return tokenizer
