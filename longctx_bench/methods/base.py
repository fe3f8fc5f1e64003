"""The method interface: config overrides that any engine can apply, and a model patch for everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from longctx_bench.core.deprecation import alias_renamed_methods, renamed_attributes, warn_renamed
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Component, validate
from longctx_bench.methods import override_validation
from longctx_bench.methods.head_temperatures import HeadGrid, HeadTemperatures
from longctx_bench.methods.rope_parameters import RotaryPositions, read_positions
from longctx_bench.methods.tuned_parameters import ObjectiveName, TunedParameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Capability = Literal[
    "prompt", "per_prompt", "attention_temperature", "head_temperatures", "query_scale", "banded_attention",
    "sliding_window", "derived_attention_factor", "model_patch",
]  # fmt: skip
"""What a method needs from an engine besides config overrides:

- ``prompt``: changed prompt token ids.
- ``per_prompt``: a scaling factor per prompt.
- ``attention_temperature``: one softmax temperature for all attention layers.
- ``head_temperatures``: one softmax temperature per attention head.
- ``query_scale``: queries scaled by their positions.
- ``banded_attention``: attention by bands of distance, per prompt if need be (:mod:`longctx_bench.methods.banded`).
- ``sliding_window``: a checkpoint some of whose layers attend to a window.
- ``derived_attention_factor``: the factor on cos and sin that transformers derives from the lengths for ``longrope``.
- ``model_patch``: Python code that patches the loaded transformers model.
"""

QueryScale = Literal["none", "log-n", "llama4"]
"""Law of the factor on the query at position i (from 0): 1; Su's log-n, max(1, ln(i + 1) / ln L), L the training
context (arXiv 2202.12172); or that of Ministral 3, 1 + beta ln(1 + floor(i / L)). Llama 4's own counts from i + 1, and
scales only its layers without positions."""

_AT_A_LENGTH = ("applied_scalar", "attention_temperature", "head_temperatures", "model_overrides", "patch")
"""Methods of a class whose last two arguments are the base model and a length."""

_RENAMED_METHODS = {
    "applied": "patch",
    "tuned": "with_scalar",
    "calibrated": "with_calibration",
    "tuning": "applied_scalar",
}


@dataclass(frozen=True)
class BaseModelInfo:
    """The properties of a base model that methods compute with, read from its ``config.json`` (no torch)."""

    name: str
    training_context: int
    """Tokens."""
    config: dict[str, Any]

    @property
    def original_length(self) -> int:
        """Deprecated: :attr:`training_context`."""
        warn_renamed("BaseModelInfo.original_length", "training_context")
        return self.training_context

    @cached_property
    def positions(self) -> RotaryPositions:
        """The rotary positions, as transformers reads them from the config.

        Raises:
            UserError: the model has no rotary positions, or none that a method can change.
        """
        return read_positions(self.name, self.config, self.training_context)

    @property
    def head_dim(self) -> int:
        """Dimensions of one attention head."""
        explicit = self.config.get("head_dim")
        try:
            return int(explicit or self.config["hidden_size"] // self.config["num_attention_heads"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.name}: config.json has no attention head size, which methods need") from error

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head: all, or fewer with partial rotary embeddings (GPT-NeoX, Phi, StableLM)."""
        return 2 * self.positions.pairs

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies of the layers that a method changes.

        Raises:
            UserError: the model has no rotary positions to change.
        """
        return float(self.positions.rope["rope_theta"])


class AppliedScalar(NamedTuple):
    """The value of a method's tunable scalar at one length, as stored in results."""

    scalar: str
    value: float
    source: str
    """``user``, ``paper``, or the objective of the calibration that it comes from."""


class Method(Component, ABC):
    """A context-extension method: what is changed in a base model so that it reads ``length`` tokens.

    A subclass's fields are its parameters: they can be set in its YAML and with ``--set METHOD.PARAM=VALUE``.
    """

    per_prompt: ClassVar[bool] = False
    """True when ``length`` is each prompt's own length (prompt + new tokens) instead of the cell's."""
    checkpoint: ClassVar[str | None] = None
    """Key under a model's ``checkpoints`` of the weights that the method uses instead of the base model's."""
    needs_checkpoint: ClassVar[bool] = True
    """Whether a method with a ``checkpoint`` is meaningless on the base model's weights."""
    changes_at_1x: ClassVar[bool] = False
    """Whether the method changes outputs within the training context, too; ``longctx-bench check`` verifies it."""
    tunable: ClassVar[str | None] = None
    """Name of the scalar that ``longctx-bench calibrate`` tunes; also its key in ``calibration.json``."""

    tunable_span: ClassVar[float] = 0.7
    """Calibration searches from 1 to 1 + ``tunable_span`` x ln s, or to 1 + ``tunable_reach`` where that is more."""
    tunable_reach: ClassVar[float] = 0.0
    """See :attr:`tunable_span`."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    """What the method needs from an engine; an engine that lacks any of it rejects the method. ``prompt`` and
    ``model_patch`` are added for a class that overrides :meth:`prompt` or :meth:`patch` and does not set this."""

    changes: ClassVar[frozenset[override_validation.Change]] = frozenset()
    """Which properties of the base model's positions the method changes on purpose; undeclared changes are rejected.
    Compared are rotary pairs, theta, the length before scaling and the base model's own scaling."""

    factor: float | None = Field(default=None, ge=1.0, allow_inf_nan=False)
    """Extension factor s; derived from the length (:meth:`scale`) unless set."""
    query_scale: QueryScale = "none"
    """Attention temperature by a query's own position, whatever else the method does (:data:`QueryScale`)."""
    query_scale_beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """beta of ``query_scale: llama4``."""
    tuned_for: Literal["none"] | ObjectiveName = Field(default="none", exclude=True)
    """Objective of the sweep (``longctx-bench calibrate --param``) that parameters come from; ``none``: as given."""
    tuned_parameters: TunedParameters | None = None
    """The parameters by extension factor that take the place of those given; set by ``tuned_for``."""

    @model_serializer(mode="wrap")
    def _without_unused_switches(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out switches that are off, so that cells measured before a switch existed keep their identity."""
        values: dict[str, Any] = handler(self)
        if self.query_scale == "none":
            values.pop("query_scale", None)
        if self.query_scale != "llama4":
            values.pop("query_scale_beta", None)
        if self.tuned_parameters is None:
            values.pop("tuned_parameters", None)
        return values

    def required_capabilities(self) -> frozenset[Capability]:
        """Return what the method may need from an engine with its present parameters, at any length."""
        tuned = self.tuned_parameters.table.values() if self.tuned_parameters is not None else ()
        laws = {self.query_scale, *(values.get("query_scale", "none") for values in tuned)}
        return self.capabilities if laws == {"none"} else self.capabilities | {"query_scale"}

    def capabilities_at(self, base: BaseModelInfo, length: int) -> frozenset[Capability]:
        """Return what the method needs from an engine at a length."""
        heads: frozenset[Capability] = frozenset({"head_temperatures"})
        others = self.required_capabilities() - heads
        return others if self.head_temperatures(base, length) is None else others | heads

    def scale(self, base: BaseModelInfo, length: int) -> float:
        """Return s = length / training_context, at least 1, or ``factor`` if set."""
        return self.factor if self.factor is not None else max(1.0, length / base.training_context)

    def needs_equal_lengths(self, base: BaseModelInfo, lengths: Iterable[int]) -> bool:
        """Whether a batch may hold only one of these lengths, in tokens of a prompt and its answer."""
        return self.per_prompt and len(set(lengths)) > 1

    def uses_factor(self) -> bool:
        """Whether the extension factor s plays a part in what the method does, with its present parameters."""
        return True

    def with_calibration(self, fits: Mapping[str, Any]) -> Self:
        """Return the method with its scalar taken from the checkpoint's ``calibration.json``.

        Args:
            fits: arguments of a :class:`~longctx_bench.methods.scalar_schedule.ScalarSchedule` by objective.
        """
        return self

    def with_scalar(self, value: float) -> Self:
        """Return the method with its tunable scalar fixed at ``value`` for all lengths; used by calibration."""
        raise NotImplementedError(f"{type(self).__name__} declares no tunable scalar")

    def with_parameters(self, values: Mapping[str, Any], where: str | None = None) -> Self:
        """Return the method with other parameters, the same at all lengths.

        Args:
            values: by name.
            where: names their origin in an error; the method by default.

        Raises:
            UserError: there is no such parameter, or it cannot have this value.
        """
        given = {**dict(self), **values, "tuned_for": "none", "tuned_parameters": None}
        return validate(type(self), given, where or f"method {self.component_id()}")

    def with_tuned_parameters(self, fits: Mapping[str, Any]) -> Self:
        """Return the method with the parameters that ``tuned_for`` names.

        Args:
            fits: values of :class:`TunedParameters` without their objective, by objective.

        Raises:
            UserError: there is no such fit, or it is not one of this method.
        """
        if self.tuned_for == "none":
            return self
        name = self.component_id()
        if self.tuned_for not in fits:
            raise UserError(
                f"the checkpoint has no parameters of {name} that were swept for {self.tuned_for}; make them with "
                f"`longctx-bench calibrate MODEL --param NAME=VALUES`"
            )
        where = f"calibration.json: {name}"
        tuned = validate(TunedParameters, {**fits[self.tuned_for], "objective": self.tuned_for}, where)
        for values in tuned.table.values():
            self.with_parameters(values, where)
        return self.model_copy(update={"tuned_parameters": tuned, "tuned_for": "none"})

    def at(self, base: BaseModelInfo, length: int) -> Self:
        """Return the method with the parameters that it has at a length, the same at all lengths."""
        entry = self.tuned_entry(base, length)
        if entry is None or self.tuned_parameters is None:
            return self
        return self.with_parameters(self.tuned_parameters.table[entry])

    def tuned_entry(self, base: BaseModelInfo, length: int) -> float | None:
        """Return the entry of ``tuned_parameters`` that is in force at a length; None where none is."""
        return None if self.tuned_parameters is None else self.tuned_parameters.entry_at(self.scale(base, length))

    def with_head_temperatures(self, temperatures: HeadTemperatures) -> Self:
        """Return the method with these temperatures of its heads; used by calibration.

        Raises:
            UserError: the method takes none.
        """
        raise UserError(f"{self.component_id()} takes no temperatures by head; `nope`, `drope` and `yarn` do")

    def applied_scalar(self, base: BaseModelInfo, length: int) -> AppliedScalar | None:
        """Return the value and source of the tunable scalar at a length; None when none is applied."""
        return None

    def attention_temperature(self, base: BaseModelInfo, length: int) -> float:
        """Return the factor on the attention logits of all layers, on top of what the config says; 1 by default."""
        return 1.0

    def head_temperatures(self, base: BaseModelInfo, length: int) -> HeadGrid | None:
        """Return the factors on the attention logits of each head, ``[layers][heads]``; None where all are 1."""
        return None

    def prompt(self, base: BaseModelInfo, ids: Sequence[int], new_tokens: int) -> Sequence[int]:
        """Return the prompt token ids that the model gets; unchanged unless the method truncates prompts.

        Args:
            base: the base model's properties.
            ids: token ids of the whole prompt.
            new_tokens: maximum number of generated tokens.
        """
        return ids

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Complete the declared capabilities, and wrap the methods that depend on a length.

        See :func:`_with_parameters_at`. The result of ``model_overrides`` is also validated.
        """
        super().__init_subclass__(**kwargs)
        alias_renamed_methods(cls, _RENAMED_METHODS)
        if "capabilities" not in cls.__dict__:
            implied: tuple[tuple[str, Capability], ...] = (("prompt", "prompt"), ("patch", "model_patch"))
            cls.capabilities = cls.capabilities | {capability for name, capability in implied if name in cls.__dict__}
        if cls.per_prompt and "banded_attention" not in cls.capabilities:
            cls.capabilities = cls.capabilities | {"per_prompt"}
        overrides = cls.__dict__.get("model_overrides")
        if overrides is not None:
            cls.model_overrides = _validated(overrides)  # type: ignore[method-assign, assignment]
        for name in _AT_A_LENGTH:
            if name in cls.__dict__:
                setattr(cls, name, _with_parameters_at(cls.__dict__[name]))

    @abstractmethod
    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        """Return the config entries to replace, in a form that any engine can apply.

        ``rope_parameters`` need to name only what the method changes: callers get them merged with the base model's
        (rotary fraction, theta; per layer type where those differ). A change that is not declared in :attr:`changes` is
        rejected. Sliding windows are left unchanged.

        Raises:
            UserError: the method cannot be applied to this base model.
        """

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        """Patch a loaded model with what a config cannot express; undo it on exit, also after an exception."""
        yield


alias_renamed_methods(Method, _RENAMED_METHODS)


def _with_parameters_at(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of :data:`_AT_A_LENGTH` so that it sees the parameters that are in force at its length."""
    parameters = signature(function)

    @wraps(function)
    def call(self: Method, *args: Any, **kwargs: Any) -> Any:
        if self.tuned_parameters is None:
            return function(self, *args, **kwargs)
        *_, base, length = parameters.bind(self, *args, **kwargs).args
        return function(self.at(base, length), *args, **kwargs)

    return call


def _validated(
    overrides: Callable[[Any, BaseModelInfo, int], dict[str, Any]],
) -> Callable[[Any, BaseModelInfo, int], dict[str, Any]]:
    """Wrap a ``model_overrides`` so that its result is validated and merged with the base model's config."""

    @wraps(overrides)
    def model_overrides(self: Method, base: BaseModelInfo, length: int) -> dict[str, Any]:
        returned, method = overrides(self, base, length), type(self).__name__
        if not isinstance(returned, Mapping):
            raise UserError(f"{method}.model_overrides must return a dict of config entries (got {returned!r:.60})")
        entries = dict(returned)
        override_validation.reject_legacy_keys(method, base.name, entries)
        if "rope_parameters" in entries:
            entries["rope_parameters"] = override_validation.merge_rope_parameters(
                method, self.changes, base.name, base.positions, entries["rope_parameters"]
            )
        elif "max_position_embeddings" in entries:
            override_validation.reject_length_change(method, base.name, base.config)
        return entries

    return model_overrides


def supports_head_temperatures(method: Method) -> bool:
    """Return whether a method takes temperatures by head."""
    return type(method).with_head_temperatures is not Method.with_head_temperatures


__getattr__ = renamed_attributes(__name__, {"Base": "BaseModelInfo", "Tuning": "AppliedScalar"}, globals())
