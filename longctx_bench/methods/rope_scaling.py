"""RoPE-scaling methods: they change only the rotary frequencies, via transformers' ``rope_parameters``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from longctx_bench.core.errors import ContextTooShort, UserError
from longctx_bench.methods.base import AppliedScalar, BaseModelInfo, Capability, Method
from longctx_bench.methods.head_temperatures import HeadGrid, HeadTemperatures, scale_heads
from longctx_bench.methods.override_validation import Change, already_scaled_error
from longctx_bench.methods.scalar_schedule import Calibration, ScalarSchedule, fitted_schedule, may_be_by_head
from longctx_bench.methods.tuned_parameters import ObjectiveName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _overrides(length: int, **rope_parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": rope_parameters, "max_position_embeddings": length}


_MIN_PROMPT_TOKENS = 32
"""Cropping to fewer prompt tokens is an error."""


class RoPE(Method):
    """The unchanged base model (Su et al. 2021, arXiv 2104.09864); no extension."""

    id: ClassVar[str] = "rope"

    def uses_factor(self) -> bool:
        return type(self) not in (RoPE, Crop)

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        return {}


class Crop(RoPE):
    """The unchanged base model on the prompt truncated from the left to its training context; no extension."""

    id: ClassVar[str] = "crop"

    def prompt(self, base: BaseModelInfo, ids: Sequence[int], new_tokens: int) -> Sequence[int]:
        available = base.training_context - new_tokens
        if available < _MIN_PROMPT_TOKENS:
            raise ContextTooShort(
                f"crop: {new_tokens} new tokens leave {max(0, available)} of the base's training context of "
                f"{base.training_context} tokens, at least {_MIN_PROMPT_TOKENS} are needed"
            )
        return ids[-available:]


class PI(Method):
    """Position interpolation: all positions divided by s (Chen et al. 2023, arXiv 2306.15595).

    If the base model is interpolated itself, the two factors are multiplied. A base model with any other scaling is
    rejected by PI and by all methods here.
    """

    id: ClassVar[str] = "pi"
    changes: ClassVar[frozenset[Change]] = frozenset({"scaling"})

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        rope, scaling = base.positions.rope, base.positions.scaling
        factor = self.scale(base, length)
        if scaling is not None:
            if rope["rope_type"] != "linear":
                raise already_scaled_error(type(self).__name__, base.name, scaling, base.training_context)
            factor *= rope["factor"]
        return _overrides(length, rope_type="linear", rope_theta=base.rope_theta, factor=factor)


def ntk_theta(theta: float, rotary_dim: int, scale: float) -> float:
    """Return theta * s^(d / (d - 2)): the lowest frequency is interpolated by s, the highest not at all."""
    return float(theta * scale ** (rotary_dim / (rotary_dim - 2)))


class NTK(Method):
    """NTK-aware interpolation by a larger rotary base (bloc97 2023; section 3.1 of arXiv 2309.00071)."""

    id: ClassVar[str] = "ntk"
    changes: ClassVar[frozenset[Change]] = frozenset({"theta"})

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        if base.positions.scaling is not None:
            raise already_scaled_error(type(self).__name__, base.name, base.positions.scaling, base.training_context)
        if base.rotary_dim <= 2:
            raise UserError(f"{base.name}: rotates {base.rotary_dim} dimensions per head, and NTK needs at least 4")
        theta = ntk_theta(base.rope_theta, base.rotary_dim, self.scale(base, length))
        return _overrides(length, rope_type="default", rope_theta=theta)


class DynamicNTK(NTK):
    """NTK-aware interpolation with s from each prompt's own length (emozilla 2023).

    The rotary base is fixed once per prompt. transformers' ``dynamic`` type follows the longest input seen so far
    instead, so that a prompt's logits depend on earlier prompts.
    """

    id: ClassVar[str] = "dynamic-ntk"
    per_prompt: ClassVar[bool] = True


class YaRN(Method):
    """NTK-by-parts interpolation with attention scaling (Peng et al. 2023, arXiv 2309.00071)."""

    id: ClassVar[str] = "yarn"
    tunable: ClassVar[str | None] = "attention_factor"
    tunable_span: ClassVar[float] = 0.35
    # Its patch is for temperatures by head alone; engines that cannot apply those say so.
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    beta_fast: float = 32.0
    """Dimensions with more rotations over the training context are left unchanged."""
    beta_slow: float = 1.0
    """Dimensions with fewer rotations are interpolated by s."""
    attention_factor: float | None = None
    """Multiplies cos and sin; 0.1 ln s + 1 unless set."""
    calibration: Calibration = "paper"
    """``paper`` is 0.1 ln s + 1; ``retrieval`` and ``perplexity`` use our fits in ``calibration.json``. ``heads`` is
    ``paper`` with one temperature per attention head besides, which vLLM takes from an exported folder alone."""
    attention_law: ScalarSchedule | HeadTemperatures | None = None
    """The fitted attention factor as a function of s, or the temperatures of the heads; set by ``calibration``."""

    def required_capabilities(self) -> frozenset[Capability]:
        needed = super().required_capabilities()
        return needed | {"head_temperatures"} if may_be_by_head(self.calibration, self.attention_law) else needed

    def with_calibration(self, fits: Mapping[str, Any]) -> Self:
        return self.model_copy(update={"attention_law": fitted_schedule(self.calibration, fits, None)})

    def with_scalar(self, value: float) -> Self:
        return self.model_copy(update={"attention_factor": value})

    def applied_scalar(self, base: BaseModelInfo, length: int) -> AppliedScalar | None:
        if self.attention_factor is not None:
            return AppliedScalar("attention_factor", self.attention_factor, "user")
        schedule = self.attention_law
        if isinstance(schedule, HeadTemperatures):
            return AppliedScalar("mean_head_temperature", schedule.mean_at(self.scale(base, length)), "retrieval")
        if schedule is not None:
            return AppliedScalar("attention_factor", schedule.at(self.scale(base, length)), schedule.source)
        return None

    def head_temperatures(self, base: BaseModelInfo, length: int) -> HeadGrid | None:
        schedule = self.attention_law
        return schedule.at(self.scale(base, length)) if isinstance(schedule, HeadTemperatures) else None

    def with_head_temperatures(self, temperatures: HeadTemperatures) -> Self:
        return self.model_copy(update={"attention_law": temperatures})

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        with scale_heads(model, self.head_temperatures(base, length)):
            yield

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        scalar = self.applied_scalar(base, length)
        extra = {"attention_factor": scalar.value} if scalar and scalar.scalar == "attention_factor" else {}
        return _overrides(
            length,
            rope_type="yarn",
            rope_theta=base.rope_theta,
            factor=self.scale(base, length),
            original_max_position_embeddings=base.training_context,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            **extra,
        )


class LongRoPE(Method):
    """Per-dimension factors found by search (Ding et al. 2024, arXiv 2402.13753).

    The lists come from the spec, or from ``longctx-bench calibrate --search`` where the spec has none. One list is used
    for a whole cell: ``long_factor`` above the training context, ``short_factor`` up to it. transformers would switch
    lists in the middle of a sequence. Searched lists leave the base as it is up to the training context.
    """

    id: ClassVar[str] = "longrope"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"derived_attention_factor"})

    tuned_for: Literal["none"] | ObjectiveName = Field(default="needle-loss", exclude=True)
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    """Divisors of the rotary frequencies, one per pair of rotated dimensions (head_dim / 2 with full rotation)."""

    def capabilities_at(self, base: BaseModelInfo, length: int) -> frozenset[Capability]:
        needed = super().capabilities_at(base, length)
        # Searched lists leave the base as it is up to the training context.
        return needed if self.model_overrides(base, length) else needed - {"derived_attention_factor"}

    def with_tuned_parameters(self, fits: Mapping[str, Any]) -> Self:
        is_given = self.short_factor is not None or self.long_factor is not None
        if self.tuned_for == "needle-loss" and (is_given or "needle-loss" not in fits):
            return self
        return super().with_tuned_parameters(fits)

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        if self.tuned_parameters is not None and self.tuned_parameters.objective == "needle-loss":
            return {}  # Up to the training context, where searched lists are not in force.
        half = base.positions.pairs
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if factors is None or len(factors) != half:
                if base.positions.scaling is not None:
                    # Lists would not help: report what the other methods report for a base that is scaled already.
                    raise already_scaled_error("longrope", base.name, base.positions.scaling, base.training_context)
                raise UserError(
                    f"longrope needs '{name}', a list of {half} numbers for {base.name}: set it under params: in your "
                    f"own YAML and pass its folder with --include-path, or search for it: `longctx-bench calibrate "
                    f"MODEL --search`"
                )
        chosen = list((self.long_factor if length > base.training_context else self.short_factor) or ())
        return _overrides(
            length,
            rope_type="longrope",
            rope_theta=base.rope_theta,
            factor=self.scale(base, length),
            original_max_position_embeddings=base.training_context,
            short_factor=chosen,
            long_factor=chosen,
        )


class Llama3(Method):
    """Frequency-dependent interpolation of Llama 3.1 (Grattafiori et al. 2024, arXiv 2407.21783)."""

    id: ClassVar[str] = "llama3"

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        return _overrides(
            length,
            rope_type="llama3",
            rope_theta=base.rope_theta,
            factor=self.scale(base, length),
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
            original_max_position_embeddings=base.training_context,
        )
