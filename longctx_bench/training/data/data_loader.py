"""Everything a run reads: its tokenizer, batches and validation rows, made from a recipe."""

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
class RunData:
    """What a run reads."""

    tokenizer: Any
    batches: Batches
    validation: NDArray[np.int64]
    """``[sequences, length + 1]`` token ids of held-out text."""
    tokens: int
    """In the training text."""


def prepare(recipe: Recipe, out: Path) -> RunData:
    """Tokenise and pack what a recipe names, or find it in the cache; a new tokenizer is kept in ``out``.

    Raises:
        UserError: whatever is wrong with the data.
    """
    tokenizer = _tokenizer(recipe, out)
    text = PackedText(token_arrays(recipe.data, recipe.corpus, tokenizer, recipe.tokens), recipe.sequence_length)
    # Too little text is said before the retrieval sequences are made, which takes longer.
    Batches(text, recipe.batch, recipe.seed)
    pool = None
    if recipe.retrieval_share:
        pool = retrieval_pool(
            text,
            tokenizer,
            recipe.retrieval_pool,
            recipe.seed,
            most=recipe.retrieval_needles,
            mixed=recipe.retrieval_exercises == "mixed",
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
    # Spread over the text, so that a short validation does not rest on its first documents.
    chosen = np.linspace(0, len(rows) - 1, count).astype(int)
    validation = np.stack([rows.row(int(index)) for index in chosen]).astype(np.int64)
    return RunData(tokenizer, batches, validation, sum(len(array) for array in text.arrays))


def _digits(tokenizer: Any) -> list[int]:
    """Return the token of each digit, or nothing where a number is not a sequence of ten tokens."""
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
    # By its tokenizer.json a later start sees that there is one: that comes last, and whole.
    with ScratchFolder(".tokenizer-", out) as scratch:
        made = scratch / "made"
        tokenizer.save_pretrained(made)
        move_files(made, out, last="tokenizer.json")
    return tokenizer
