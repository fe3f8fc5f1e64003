"""What a context-extension method is: config values that every engine can take, and a patch for the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Component
from longctx_bench.methods import override_validation
from longctx_bench.methods.rope_parameters import Positions, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Capability = Literal["prompt", "per_prompt", "attention_temperature", "model_patch"]
"""What a method may ask of an engine besides taking config entries: other token ids than the prompt's, a factor of
each prompt's own, a softmax temperature in all attention layers, Python code on transformers' loaded model."""


@dataclass(frozen=True)
class Base:
    """The facts of a checkpoint that a method computes with, read from its ``config.json`` (no torch)."""

    name: str
    original_length: int
    """Training context in tokens."""
    config: dict[str, Any]

    @cached_property
    def positions(self) -> Positions:
        """The rotary positions, as transformers reads them from the config.

        Raises:
            UserError: it has none, or none that a method can change.
        """
        return read(self.name, self.config, self.original_length)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        explicit = self.config.get("head_dim")
        try:
            return int(explicit or self.config["hidden_size"] // self.config["num_attention_heads"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.name}: its config names no width of attention heads, which methods need") from error

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated: all of them, or a part (GPT-NeoX, Phi, StableLM)."""
        return 2 * self.positions.pairs

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies of the layers that a method changes.

        Raises:
            UserError: there are no rotary positions to change.
        """
        return float(self.positions.rope["rope_theta"])


class Tuning(NamedTuple):
    """The value of a method's tunable scalar at one length, for the record."""

    scalar: str
    value: float
    source: str
    """``user``, ``paper``, or the objective of the calibration that found it."""


class Method(Component, ABC):
    """What is done to a base model so that it reads ``length`` tokens.

    A subclass's fields are its parameters: they can be set in its YAML and with ``--set METHOD.PARAM=VALUE``.
    """

    per_prompt: ClassVar[bool] = False
    """True when ``length`` is each prompt's own (prompt + new tokens) instead of the cell's."""
    checkpoint: ClassVar[str | None] = None
    """The key under a model's ``checkpoints`` whose weights the method takes in place of the base's own."""
    needs_checkpoint: ClassVar[bool] = True
    """Whether a method that names a ``checkpoint`` means nothing on the base's own weights."""
    changes_at_1x: ClassVar[bool] = False
    """Whether it changes what the base reads within its training context, too; ``longctx-bench check`` asks."""
    tunable: ClassVar[str | None] = None
    """What ``longctx-bench calibrate`` tunes: the key of this method's fits in ``calibration.json``."""

    tunable_span: ClassVar[float] = 0.7
    """How far calibration looks: from 1 to 1 + span x ln s, and"""
    tunable_reach: ClassVar[float] = 0.0
    """to 1 + reach at least."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    """What the method asks of an engine; one that does not support all of it refuses the method. A class that overrides
    :meth:`prompt` or :meth:`applied` and does not name its own has ``prompt`` or ``model_patch`` added."""

    changes: ClassVar[frozenset[override_validation.Change]] = frozenset()
    """What of a base's positions the method changes on purpose; any other change of them is refused. Rotary pairs,
    theta, the length before scaling and a scaling of the base's own are compared."""

    factor: float | None = Field(default=None, ge=1.0)
    """Extension factor s. Derived from the length (:meth:`scale`) unless fixed here."""

    def scale(self, base: Base, length: int) -> float:
        """Return s = length / original_length, at least 1, or the factor that the user fixed."""
        return self.factor if self.factor is not None else max(1.0, length / base.original_length)

    def calibrated(self, fits: Mapping[str, Any]) -> Self:
        """Return the method with its scalar from one of the fits (by objective) that lie beside its weights."""
        return self

    def tuned(self, value: float) -> Self:
        """Return the method with its tunable scalar at ``value`` whatever the length; for calibration."""
        raise NotImplementedError(f"{type(self).__name__} declares no tunable scalar")

    def tuning(self, base: Base, length: int) -> Tuning | None:
        """Return the tunable scalar's value at a length and where it comes from; None where none is applied."""
        return None

    def attention_temperature(self, base: Base, length: int) -> float:
        """Return what attention logits are multiplied by in all layers, beyond what the config says; 1 for most."""
        return 1.0

    def prompt(self, base: Base, ids: Sequence[int], new_tokens: int) -> Sequence[int]:
        """Return the token ids that the model is given in place of a prompt's; all of them unless a method cuts.

        Args:
            base: the checkpoint's facts.
            ids: of the whole prompt.
            new_tokens: that the answer may take.
        """
        return ids

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have what every method returns completed and checked, whoever wrote it and whoever calls it."""
        super().__init_subclass__(**kwargs)
        if "capabilities" not in cls.__dict__:
            implied: tuple[tuple[str, Capability], ...] = (("prompt", "prompt"), ("applied", "model_patch"))
            cls.capabilities = cls.capabilities | {what for name, what in implied if name in cls.__dict__}
        if cls.per_prompt:
            cls.capabilities = cls.capabilities | {"per_prompt"}
        own = cls.__dict__.get("model_overrides")
        if own is not None:
            cls.model_overrides = _keeping(own)  # type: ignore[method-assign, assignment]

    @abstractmethod
    def model_overrides(self, base: Base, length: int) -> dict[str, Any]:
        """Return the config entries to replace, so that any engine can take them as they are.

        ``rope_parameters`` need name only what the method changes: whoever calls it gets them merged with the base's
        own (rotary part, theta; by layer type where those differ), and a change that :attr:`changes` does not declare
        is refused. Sliding windows stay as they are.

        Raises:
            UserError: when the method cannot be applied to this base.
        """

    @contextmanager
    def applied(self, model: PreTrainedModel, base: Base, length: int) -> Iterator[None]:
        """Do to a loaded model what a config cannot say; undone on exit, whatever happens inside."""
        yield


def _keeping(own: Callable[[Any, Base, int], dict[str, Any]]) -> Callable[[Any, Base, int], dict[str, Any]]:
    """Return a ``model_overrides`` whose entries keep what a base is."""

    @wraps(own)
    def model_overrides(self: Method, base: Base, length: int) -> dict[str, Any]:
        given, method = own(self, base, length), type(self).__name__
        if not isinstance(given, Mapping):
            raise UserError(f"{method}.model_overrides must return a dict of config entries (got {given!r:.60})")
        entries = dict(given)
        override_validation.refuse_names_of_before(method, base.name, entries)
        if "rope_parameters" in entries:
            returned = entries["rope_parameters"]
            entries["rope_parameters"] = override_validation.kept(
                method, self.changes, base.name, base.positions, returned
            )
        elif "max_position_embeddings" in entries:
            override_validation.refuse_length(method, base.name, base.config)
        return entries

    return model_overrides
