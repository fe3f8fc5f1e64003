"""Trusted model sources: those that are listed, or that the user has named on this machine.

Files from others name models, too: the base of delta weights, the weights of a result. Such names are followed only to
trusted sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from longctx_bench.core.errors import UserError
from longctx_bench.core.file_cache import cache_dir
from longctx_bench.core.io import shipped_folder, write_json
from longctx_bench.core.specs import HubSource, ModelSpec, PathSource, ShippedSource, Source, read_yaml, validate


def trust_source(source: Source) -> None:
    """Record a model that the user named; ignored when the cache cannot be written."""
    file, entry = _entry(source)
    if not file.is_file():
        with suppress(UserError, OSError):
            write_json(file, entry)


def is_trusted(source: Source, models: Iterable[ModelSpec] = ()) -> bool:
    """Whether a source of weights is listed, ships with this project, or was named by the user on this machine.

    A repository that is listed without a revision, or was named, is trusted at any revision.

    Args:
        source: the source that an untrusted file names.
        models: models that the user lists, in addition to built-in ones.
    """
    sources = [weights for model in (*_listed(), *models) for weights in _sources_of(model)]
    branches = {
        (listed.hub, listed.type) for listed in sources if isinstance(listed, HubSource) and listed.revision is None
    }
    return (
        source in sources
        or isinstance(source, ShippedSource)
        or (isinstance(source, HubSource) and (source.hub, source.type) in branches)
        or _entry(source)[0].is_file()
    )


@lru_cache(maxsize=1)
def _listed() -> tuple[ModelSpec, ...]:
    file = shipped_folder("baselines") / "models.yaml"
    return tuple(validate(ModelSpec, {"name": name, **entry}, name) for name, entry in read_yaml(file).items())


def _sources_of(model: ModelSpec) -> list[Source]:
    return [model.source, *(checkpoint.source for checkpoint in model.checkpoints.values())]


def _entry(source: Source) -> tuple[Path, dict[str, str]]:
    if isinstance(source, HubSource):
        entry = {"hub": source.hub, "type": source.type}
    elif isinstance(source, PathSource):
        entry = {"path": str(source.path.resolve())}
    else:
        entry = {name: str(value) for name, value in source.model_dump().items()}
    name = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / "named" / f"{name}.json", entry
