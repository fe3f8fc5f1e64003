"""Models without positions: the config that says so, the softmax temperature that their attention needs at length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import AppliedScalar, BaseModelInfo, Capability, Method
from longctx_bench.methods.override_validation import Change
from longctx_bench.methods.scalar_schedule import Calibration, ScalarSchedule, fitted_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def nope_rope_parameters(theta: float) -> dict[str, Any]:
    """Return rope_parameters whose rotation is the identity, in stock transformers."""
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": 0.0}


def identity_llama3_rope_parameters(theta: float) -> dict[str, Any]:
    """Return rope_parameters that turn by nothing in every server that knows Llama 3.1's.

    Every wavelength is longer than an original context of one token, so that every frequency is divided by a factor
    beyond what float32 resolves beside 1.
    """
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": 1e30, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1,
    }  # fmt: skip


def attention_layers(model: PreTrainedModel) -> list[Any]:
    """Return the attention modules of a model's layers, which have their softmax scale as ``scaling``.

    Raises:
        UserError: not every layer has one.
    """
    modules = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    layers = [module for module in modules if isinstance(getattr(module, "scaling", None), float)]
    if len(layers) != model.config.num_hidden_layers or not getattr(model, "_supports_attention_backend", False):
        raise UserError(
            f"a {model.config.model_type} computes the softmax of its attention by code of its own: it takes no "
            f"temperature"
        )
    return layers


@contextmanager
def scale_softmax(model: PreTrainedModel, beta: float) -> Iterator[None]:
    """Multiply every attention layer's softmax scale by beta; sdpa and eager attention honour it.

    Raises:
        UserError: the model's attention has no scale that could be multiplied.
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

    The base's own weights with the positions taken away, or a model trained without them where the base has one.
    Its softmax can be sharpened with length as DroPE's is; unless asked for, it is not.
    """

    id: ClassVar[str] = "nope"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"attention_temperature"})
    changes: ClassVar[frozenset[Change]] = frozenset({"rotary_pairs"})
    checkpoint: ClassVar[str | None] = "nope"
    needs_checkpoint: ClassVar[bool] = False
    changes_at_1x: ClassVar[bool] = True
    tunable: ClassVar[str | None] = "temperature"
    # A model trained under softer softmaxes wants a sharper one than others at the same length.
    tunable_span: ClassVar[float] = 1.1
    tunable_reach: ClassVar[float] = 1.0

    calibration: Calibration = "none"
    """Where beta comes from: ``retrieval`` and ``perplexity`` are our fits in the checkpoint's ``calibration.json``,
    ``paper`` is DroPE's law, ``auto`` the retrieval fit where there is one and else DroPE's law."""
    paper_c: float = 0.412
    """The DroPE paper's c: 0.412 for models trained from scratch, 0.103 for SmolLM."""
    temperature: ScalarSchedule | None = None
    """beta(s) itself; set by the calibration unless given here."""

    def with_calibration(self, fits: Mapping[str, Any]) -> Self:
        if self.temperature is not None:
            return self
        paper = ScalarSchedule(c=self.paper_c, source="paper")
        return self.model_copy(update={"temperature": fitted_schedule(self.calibration, fits, paper)})

    def with_scalar(self, value: float) -> Self:
        # A law without a slope holds the value at every length: the table's last entry is just above 1.
        return self.model_copy(update={"temperature": ScalarSchedule(table={1.0 + 1e-9: value})})

    def applied_scalar(self, base: BaseModelInfo, length: int) -> AppliedScalar | None:
        law = self.temperature
        return None if law is None else AppliedScalar("temperature", law.at(self.scale(base, length)), law.source)

    def attention_temperature(self, base: BaseModelInfo, length: int) -> float:
        tuning = self.applied_scalar(base, length)
        return 1.0 if tuning is None else tuning.value

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        # No frequency is used: the theta is there because every rope type must name one.
        rope = nope_rope_parameters(10000.0)
        if base.config.get("model_type"):
            own = base.positions
            # Layers that rotate a part of each head cut it off themselves, and `proportional` is of whole heads.
            if 0 < 2 * own.pairs < own.head_dim and own.rope["rope_type"] != rope["rope_type"]:
                rope = identity_llama3_rope_parameters(10000.0)
        return {"rope_parameters": rope, "max_position_embeddings": length}

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        with scale_softmax(model, self.attention_temperature(base, length)):
            yield
