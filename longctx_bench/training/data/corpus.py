"""Training documents from files and hub datasets, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.text_files import TEXT_SUFFIXES, row_text, text_suffix
from longctx_bench.training.recipe import TextSource


def corpus_files(source: TextSource, root: Path) -> list[Path]:
    """Return the files of a source, sorted by name.

    Raises:
        UserError: nothing there, or a file whose type is not known.
    """
    assert source.path is not None
    path = root.expanduser() / Path(source.path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and text_suffix(file) in TEXT_SUFFIXES)
    elif path.is_file():
        files = [path]
    else:
        files = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not files:
        raise UserError(f"{path}: no text there; give a file, folder or pattern (--set corpus=FOLDER moves the root)")
    for file in files:
        if text_suffix(file) not in TEXT_SUFFIXES:
            raise UserError(f"{file}: not a known kind of text; known: {' '.join(TEXT_SUFFIXES)} and .xz, .zst of them")
        if file.stat().st_size == 0:
            raise UserError(f"{file}: empty file; remove it from the corpus")
    return files


def hub_documents(source: TextSource) -> Iterator[str]:
    """Stream a hub dataset's documents.

    Raises:
        UserError: ``datasets`` is not installed, the dataset cannot be read, or it lacks the text column.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("hub datasets need the package 'datasets': pip install 'longctx-bench[train]'") from error
    try:
        rows = load_dataset(source.hub, source.subset, split=source.split, revision=source.revision, streaming=True)
        for row in rows:
            yield row_text(row, source.text_field, f"dataset {source.hub}")
    except (OSError, ValueError) as error:
        raise UserError(f"dataset {source.hub}: {error}") from error
