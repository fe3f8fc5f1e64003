"""Models that the user named on this machine.

Files that somebody else wrote name models, too: the base of a difference, the weights of a result. They are followed
only to what is listed, or remembered here.
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
    """Note a model that the user named, unless the cache cannot be written: then it is to be named again."""
    file, entry = _entry(source)
    if not file.is_file():
        with suppress(UserError, OSError):
            write_json(file, entry)


def is_trusted(source: Source, models: Iterable[ModelSpec] = ()) -> bool:
    """Tell whether a source of weights is listed, ships with this project, or was named by the user on this machine.

    A repository that is listed without a revision, or was named, is known at any revision.

    Args:
        source: what somebody else's file names.
        models: that the user lists, beside those that ship with this project.
    """
    sources = [each for model in (*_listed(), *models) for each in _of(model)]
    branches = {(one.hub, one.type) for one in sources if isinstance(one, HubSource) and one.revision is None}
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


def _of(model: ModelSpec) -> list[Source]:
    return [model.source, *(own.source for own in model.checkpoints.values())]


def _entry(source: Source) -> tuple[Path, dict[str, str]]:
    if isinstance(source, HubSource):
        entry = {"hub": source.hub, "type": source.type}
    elif isinstance(source, PathSource):
        entry = {"path": str(source.path.resolve())}
    else:
        entry = {name: str(value) for name, value in source.model_dump().items()}
    name = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / "named" / f"{name}.json", entry
