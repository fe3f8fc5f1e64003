"""NoPE: models without positions, and their softmax temperature beyond the training context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import AppliedScalar, BaseModelInfo, Capability, Method
from longctx_bench.methods.head_temperatures import HeadGrid, HeadTemperatures, scale_heads
from longctx_bench.methods.override_validation import Change
from longctx_bench.methods.scalar_schedule import Calibration, ScalarSchedule, fitted_schedule, may_be_by_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def nope_rope_parameters(theta: float) -> dict[str, Any]:
    """Return rope_parameters without rotation, for stock transformers."""
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": 0.0}


def identity_llama3_rope_parameters(theta: float) -> dict[str, Any]:
    """Return rope_parameters of type ``llama3`` that amount to no rotation (for NoPE models on stock servers).

    With an original context of one token every wavelength counts as long, so that every frequency is divided by a
    factor so large that float32 rotates by exactly nothing.
    """
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": 1e30, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1,
    }  # fmt: skip


def attention_layers(model: PreTrainedModel) -> list[Any]:
    """Return the attention modules of all layers, whose softmax scale is the attribute ``scaling``.

    Raises:
        UserError: a layer has no such module.
    """
    modules = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    layers = [module for module in modules if isinstance(getattr(module, "scaling", None), float)]
    if len(layers) != model.config.num_hidden_layers or not getattr(model, "_supports_attention_backend", False):
        raise UserError(
            f"a {model.config.model_type} computes its attention softmax in custom code, which takes no temperature"
        )
    return layers


@contextmanager
def scale_softmax(model: PreTrainedModel, beta: float) -> Iterator[None]:
    """Multiply every attention layer's softmax scale by beta inside the block; for sdpa and eager attention.

    Raises:
        UserError: the model's attention has no softmax scale to multiply.
    """
    layers: list[Any] = [] if beta == 1.0 else attention_layers(model)
    before = [layer.scaling for layer in layers]
    try:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling * beta
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


class NoPE(Method):
    """No positions (Kazemnejad et al. 2023, arXiv 2305.19466).

    The base model's weights with positions removed, or a checkpoint trained without positions if there is one. Its
    softmax can be scaled with length as in DroPE; by default it is not.
    """

    id: ClassVar[str] = "nope"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"attention_temperature"})
    changes: ClassVar[frozenset[Change]] = frozenset({"rotary_pairs"})
    checkpoint: ClassVar[str | None] = "nope"
    needs_checkpoint: ClassVar[bool] = False
    changes_at_1x: ClassVar[bool] = True
    tunable: ClassVar[str | None] = "temperature"
    # A model that was trained with a flatter softmax needs a larger temperature than others at the same length.
    tunable_span: ClassVar[float] = 1.1
    tunable_reach: ClassVar[float] = 1.0

    calibration: Calibration = "none"
    """Where beta comes from: ``retrieval`` and ``perplexity`` are our fits in the checkpoint's ``calibration.json``,
    ``heads`` one temperature per attention head, ``paper`` is DroPE's formula, ``auto`` is the first of ``heads``,
    ``retrieval`` and ``paper`` that there is."""
    paper_c: float = 0.412
    """The DroPE paper's c: 0.412 for models trained from scratch, 0.103 for SmolLM."""
    temperature: ScalarSchedule | HeadTemperatures | None = None
    """beta(s) itself, of all heads or of each; set by the calibration unless given here."""

    def uses_factor(self) -> bool:
        return self.temperature is not None

    def required_capabilities(self) -> frozenset[Capability]:
        needed = super().required_capabilities()
        return needed | {"head_temperatures"} if may_be_by_head(self.calibration, self.temperature) else needed

    def with_calibration(self, fits: Mapping[str, Any]) -> Self:
        if self.temperature is not None:
            return self
        paper = ScalarSchedule(c=self.paper_c, source="paper")
        return self.model_copy(update={"temperature": fitted_schedule(self.calibration, fits, paper)})

    def with_scalar(self, value: float) -> Self:
        # With slope 0 the last table entry holds at every length beyond it, and it is just above 1.
        return self.model_copy(update={"temperature": ScalarSchedule(table={1.0 + 1e-9: value})})

    def applied_scalar(self, base: BaseModelInfo, length: int) -> AppliedScalar | None:
        schedule = self.temperature
        if schedule is None:
            return None
        if isinstance(schedule, HeadTemperatures):
            return AppliedScalar("mean_head_temperature", schedule.mean_at(self.scale(base, length)), "retrieval")
        return AppliedScalar("temperature", schedule.at(self.scale(base, length)), schedule.source)

    def attention_temperature(self, base: BaseModelInfo, length: int) -> float:
        schedule = self.temperature
        return schedule.at(self.scale(base, length)) if isinstance(schedule, ScalarSchedule) else 1.0

    def head_temperatures(self, base: BaseModelInfo, length: int) -> HeadGrid | None:
        schedule = self.temperature
        return schedule.at(self.scale(base, length)) if isinstance(schedule, HeadTemperatures) else None

    def with_head_temperatures(self, temperatures: HeadTemperatures) -> Self:
        return self.model_copy(update={"temperature": temperatures})

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        # theta has no effect; every rope type must name one.
        rope = nope_rope_parameters(10000.0)
        if base.config.get("model_type"):
            positions = base.positions
            # Layers with partial rotary embeddings slice the head themselves; `proportional` works on whole heads only.
            if 0 < 2 * positions.pairs < positions.head_dim and positions.rope["rope_type"] != rope["rope_type"]:
                rope = identity_llama3_rope_parameters(10000.0)
        return {"rope_parameters": rope, "max_position_embeddings": length}

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        heads = self.head_temperatures(base, length)
        with scale_softmax(model, self.attention_temperature(base, length)), scale_heads(model, heads):
            yield
