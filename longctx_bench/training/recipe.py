"""What a training run is, as YAML: checked in full before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, model_validator

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import shipped_folder
from longctx_bench.core.specs import Spec, read_yaml, validate

Positions = Literal["rope", "nope", "alibi", "rnope-swa", "drope"]
ExerciseMix = Literal["one-question", "mixed", "several-answers"]
"""See :attr:`Recipe.retrieval_exercises`."""


class TextSource(Spec):
    """Where documents come from: files below the recipe's ``corpus`` folder, or a dataset on the hub."""

    path: str | None = None
    """File, folder or glob pattern of .txt .md .jsonl .parquet, also .xz or .zst compressed."""
    hub: str | None = None
    """Dataset id on the hub, streamed."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    """Column of .jsonl, .parquet and hub rows that holds the document."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either 'path' or 'hub'")
        return self


class Shape(Spec):
    """A fresh model's sizes."""

    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    ffn: int = Field(gt=0)
    vocab_size: int = Field(gt=256)
    """Of the tokenizer to train; with a given tokenizer, at least its size."""
    rope_theta: float = Field(default=10000.0, gt=0)
    tie: bool = True
    """Input and output embeddings are one matrix."""
    window: int = Field(default=128, gt=0)
    """Tokens that a sliding-window layer of ``rnope-swa`` sees."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError("hidden_size must be a multiple of heads, and heads of kv_heads")
        return self


class Lora(Spec):
    """Low-rank adapters on attention and MLP projections; norms are trained whole. Merged when saved."""

    rank: int = Field(default=32, gt=0)
    alpha: int = Field(default=64, gt=0)


class VirtualLength(Spec):
    """Longer contexts simulated within the training context, for models without positions.

    To attention without positions, a key that stands r times in the context is one key whose logit is ln r higher:
    the softmax gives both the weight r e^z. So a sequence draws ln r and raises the logits of some of its keys, in all
    layers and heads. Nothing is raised when validating, nor at test time.

    By ``spans``, ln r is added to some keys and to no others: in a retrieval exercise to those of the haystack (not of
    needles, instruction, questions and answers), in ordinary text to those of one to three random spans. Inside such a
    span near and far keys keep their proportions, which a longer context changes.

    By ``distance``, a key d tokens before its query stands for e^(b d / L) keys, so that a query sees its neighbours
    once and a whole row of L tokens as r L: b solves (e^b - 1) / b = r. As the softmax takes no notice of what is added
    to all keys of a query, that is a bias of the keys alone, -b k / L at place k. In an exercise, needles and
    instruction have the bias of the place where the questions begin: those see each of them once.
    """

    factor: float = Field(default=16.0, gt=1)
    """Largest r: ln r is uniform in [0, ln factor]."""
    share: float = Field(default=0.75, gt=0, le=1)
    """Share of the sequences that draw ln r; the others have r = 1."""
    by: Literal["spans", "distance"] = "spans"
    """Which keys stand for several: see above."""


class Recipe(Spec):
    """One training run. Sizes are in tokens unless a name says otherwise."""

    name: str
    description: str = ""
    kind: Literal["pretrain", "recalibrate", "control"]
    positions: Positions
    shape: Shape | None = None
    """Sizes of a fresh model; ``pretrain`` only."""
    base: str | None = None
    """Folder, embedded name, name in ``models.yaml`` or hub id of the checkpoint to continue; not for ``pretrain``."""
    base_revision: str | None = None
    qk_norm: bool = False
    """Recalibration adds an RMSNorm over the whole query and key projections."""
    rope_theta: float | None = Field(default=None, gt=0)
    """A control's rotary base from its first step on, where the base model's is made for a longer context."""
    tokenizer: str | None = None
    """Folder or hub id; without it the base's own, or a new one trained on the data."""
    corpus: Path = Path()
    """Folder that the ``path`` of every source is relative to."""
    data: tuple[TextSource, ...] = Field(min_length=1)
    data_description: str = ""
    """What the text is, for the model card; file names say little."""
    validation: TextSource
    validation_tokens: int = Field(default=262_144, gt=0)
    retrieval_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the sequences that hold a synthetic retrieval exercise; disclosed in the model card."""
    retrieval_pool: int = Field(default=65_536, gt=0)
    """Distinct retrieval sequences."""
    retrieval_needles: int = Field(default=10, ge=1)
    """Maximum needles in a retrieval sequence."""
    retrieval_exercises: ExerciseMix = "mixed"
    """``one-question`` as in RULER: one question, which may ask for several values, and collapsed white space in the
    haystack. ``mixed``: half of the exercises hide one to four needles and ask one or two questions, each with its
    answer before the next, and haystacks keep their line breaks. ``several-answers``: as ``mixed``, but a third of the
    exercises, in place of a fifth, ask for several values at once, and those of one key are given in the order of
    their needles, in place of any order."""
    crops: Literal["fixed", "random"] = "random"
    """Each pass over the text cuts it into sequences at the same places, or at other ones."""
    virtual_length: VirtualLength | None = None
    """For models without positions (``nope``, ``drope``)."""
    softmax_temperatures: tuple[PositiveFloat, PositiveFloat] | None = None
    """Each training sequence multiplies its attention logits by a number drawn log-uniformly between these two, so that
    the model tolerates the sharper softmax that a longer context needs; 1 without it, and when validating."""
    temperatures_by: Literal["sequence", "head"] = "sequence"
    """One draw for a whole sequence, or one for each of its heads (the same in all layers)."""
    sequence_length: int = Field(gt=1)
    """Tokens of a sequence: the training context that the saved config names."""
    tokens: int = Field(gt=0)
    """Budget of the whole run, rounded down to whole steps."""
    tokens_per_step: int = Field(gt=0)
    micro_batch: int = Field(default=16, gt=0)
    """Sequences in one pass of one device."""
    lr: float = Field(gt=0)
    warmup_steps: int = Field(default=200, ge=0)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """Last share of the steps, in which ``wsd`` decays linearly."""
    final_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)
    lora: Lora | None = None
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    residual: Literal["bf16", "fp32"] = "fp32"
    """Precision of the residual stream and the norms under ``precision: bf16``. Models without positions tell positions
    apart by small differences in it, which bf16 rounds away."""
    compile: bool = True
    evaluate_every: int = Field(default=500, gt=0)
    """Steps between two validation losses."""
    checkpoint_every: int = Field(default=1000, gt=0)
    """Steps between two states from which a killed run resumes."""
    candidates: int = Field(default=0, ge=0)
    """Checkpoints saved late in the run besides the last one, to choose from."""
    candidate_every: int = Field(default=250, gt=0)
    """Steps between two candidates."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "pretrain":
            if self.shape is None or self.base is not None:
                raise ValueError("'pretrain' needs 'shape' and no 'base'")
            if self.positions == "drope" or self.lora is not None:
                raise ValueError("'pretrain' takes no 'lora' and not positions 'drope': DroPE recalibrates a base")
        elif self.base is None or self.shape is not None:
            raise ValueError(f"'{self.kind}' needs 'base' and no 'shape'")
        if (self.kind == "recalibrate") != (self.positions == "drope"):
            raise ValueError("kind 'recalibrate' goes with positions 'drope', and only that")
        if self.qk_norm and self.kind != "recalibrate":
            raise ValueError("'qk_norm' is for kind 'recalibrate'")
        if self.rope_theta is not None and self.kind != "control":
            raise ValueError("'rope_theta' is for kind 'control': a fresh model has 'shape.rope_theta', DroPE has none")
        if self.tokens_per_step % self.sequence_length:
            raise ValueError("tokens_per_step must be a multiple of sequence_length")
        if self.steps < 1:
            raise ValueError("tokens is less than one step (tokens_per_step)")
        return self

    @model_validator(mode="after")
    def _attention(self) -> Self:
        if self.softmax_temperatures is not None:
            low, high = self.softmax_temperatures
            if low > high:
                raise ValueError("softmax_temperatures: the first is the smaller one")
            if self.positions == "alibi":
                raise ValueError("softmax_temperatures: the attention of 'alibi' has none")
        if self.virtual_length is not None and self.positions not in ("nope", "drope"):
            raise ValueError(
                f"virtual_length: is for 'nope' and 'drope'; with positions '{self.positions}' a key that stands r "
                f"times is not one key whose logit is ln r higher"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps in the budget."""
        return self.tokens // self.tokens_per_step

    @property
    def batch(self) -> int:
        """Sequences in one optimiser step."""
        return self.tokens_per_step // self.sequence_length

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights: the recipe without its names, places and machine settings."""
        names_and_machine = {"name", "description", "data_description", "corpus", "compile", "micro_batch"}
        intervals = {"evaluate_every", "checkpoint_every", "candidates", "candidate_every"}
        values = self.model_dump(mode="json", exclude=names_and_machine | intervals)
        # Options of later versions are left out at what runs did before them, so that those runs still resume.
        for name, former_value in _FORMER_VALUES.items():
            if values[name] == former_value:
                del values[name]
        if self.softmax_temperatures is None:
            del values["temperatures_by"]
        if self.virtual_length is not None and self.virtual_length.by == "spans":
            del values["virtual_length"]["by"]
        return values


_FORMER_VALUES = {
    "softmax_temperatures": None,
    "virtual_length": None,
    "crops": "fixed",
    "retrieval_exercises": "one-question",
}


def builtin_recipe(name: str) -> Path:
    """Return the file that a built-in recipe of this name has, which may not be there."""
    return shipped_folder("baselines") / "recipes" / f"{name}.yaml"


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe given by path or by built-in name.

    Raises:
        UserError: there is no such file and no such name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    builtin = builtin_recipe(str(name))
    if not builtin.is_file():
        known = [file.stem for file in builtin.parent.glob("*.yaml")]
        raise UserError(f"recipe '{name}' is not known{did_you_mean(str(name), known)}")
    return builtin


def read_recipe(name: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe and put ``--set`` values over it; dots reach inside (``shape.layers``, ``data.0.path``).

    Raises:
        UserError: the recipe or an override is wrong.
    """
    path = find_recipe(name)
    values = {"name": path.stem, **read_yaml(path)}
    for key, value in (overrides or {}).items():
        _put(values, key, yaml.safe_load(value) if isinstance(value, str) else value)
    return validate(Recipe, values, str(path))


def parse_overrides(settings: Iterable[str]) -> dict[str, str]:
    """Return the values of ``KEY=VALUE`` settings by key.

    Raises:
        UserError: a setting has no ``=``.
    """
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected KEY=VALUE, such as lr=3e-4")
        overrides[key] = value
    return overrides


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place: Any = values
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--set {key}: the recipe has no such key") from error
