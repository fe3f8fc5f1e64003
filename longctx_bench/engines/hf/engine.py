"""The transformers engine: greedy decoding in batches on CPU or CUDA, one loaded model for every method."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

import longctx_bench.methods.modeling_drope  # noqa: F401  (registers the DroPE model types)
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import NATURAL, Generation, Losses, Request
from longctx_bench.engines import memory
from longctx_bench.engines.base import ALL_CAPABILITIES, DeviceOptions, MemoryEstimate, StoppingCriterion
from longctx_bench.engines.batching import batch_by_tokens, num_total_tokens
from longctx_bench.engines.devices import DTYPES, resolve_device, resolve_dtype
from longctx_bench.engines.hf.config_overrides import check_attention_only, check_position_table, override_config
from longctx_bench.engines.hf.fused_rope import use_fused_rope
from longctx_bench.engines.hf.loglikelihood import SuffixScore, require_unscaled_logits, score_requests
from longctx_bench.engines.hf.model_runner import eos_ids
from longctx_bench.engines.hf.scheduler import Decoder
from longctx_bench.engines.hf.torch_compile import compile_layers
from longctx_bench.methods.attention_override import refuse_unmasked
from longctx_bench.methods.rope_parameters import pinned
from longctx_bench.models.checkpoint import load_tokenizer, read_config, reason, refuse_unknown_quantisation
from longctx_bench.models.metadata import end_ids
from longctx_bench.models.variant import ModelUnderTest

_POOLS = {"cpu": 1, "cuda": 4}
"""Batches are so many times the tokens that are decoded beside each other, unless a user chose their size.

On a CPU decoding more examples at once gains nothing, and a smaller batch is sooner kept and shown.
"""


class HFOptions(DeviceOptions):
    """Options of :class:`HFEngine`."""

    compiled: bool = False
    """Fuse what a model does between its matrix products."""


class HFEngine:
    """Runs any causal language model of transformers; methods are applied in place and undone."""

    name = "hf"
    supports = ALL_CAPABILITIES
    Options: ClassVar[type[Spec]] = HFOptions

    def __init__(
        self, device: str = "auto", dtype: str = "auto", batch_tokens: int | None = None, compiled: bool = False
    ) -> None:
        """Choose device and precision.

        Args:
            device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device computes in it.
            batch_tokens: prompt and new tokens a batch; chosen from the free memory when None.
            compiled: fuse what a model does between its matrix products, which takes some seconds at first.

        Raises:
            UserError: the device or dtype is not to be had.
        """
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self._batch_tokens = batch_tokens
        self._compiled = compiled
        self._model: PreTrainedModel | None = None
        self._folder: Path | None = None
        self._footprint: MemoryEstimate | None = None
        self._decoder: Decoder | None = None

    def load(self, folder: Path) -> None:
        """Load a checkpoint folder, dropping the one before; loading the same folder again is free.

        Raises:
            UserError: the weights are missing, truncated or do not match the config.
        """
        if folder == self._folder:
            return
        self._model = self._decoder = self._folder = None
        self._release()
        self._footprint = self.estimate_memory(folder)
        self._model = load_model(folder, self.dtype, self.device)
        if self._compiled:
            compile_layers(self._model)
        self._folder = folder
        self._decoder = Decoder.on(self._model, load_tokenizer(folder), eos_ids(self._model))

    def estimate_memory(self, folder: Path) -> MemoryEstimate:
        """Return what the checkpoint takes on this device."""
        found = memory.estimate(read_config(folder), folder, self.dtype, self.device)
        loaded = sum(weight.nbytes for weight in self._model.parameters()) if self._model is not None else 0
        # Weights that are loaded are no longer among the free memory; another checkpoint's make room for this one.
        if folder == self._folder:
            return replace(found, weights=0)
        return replace(found, available=found.available + loaded)

    def measure_speed(self) -> tuple[float, float]:
        """Return floating-point operations and bytes a second, from one matrix product and one copy."""
        return memory.measure_speed(DTYPES[self.dtype], self.device)

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Group by token budget; prompts of different lengths apart when the method depends on each one's length."""
        # A loss is of all of a batch at once.
        decoded = self._batch_tokens is None and not any(request.scored for request in requests)
        times = _POOLS.get(self.device.partition(":")[0], 1) if decoded else 1
        return batch_by_tokens(requests, times * self._budget(), per_prompt, times * self._budget(shared_prefixes=True))

    def generate(
        self, batch: Sequence[Request], contestant: ModelUnderTest, settled: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue each request greedily; out of memory, the batch is halved until it fits.

        Raises:
            UserError: a single request does not fit in memory.
        """
        assert self._model is not None
        assert self._decoder is not None
        assert self._footprint is not None
        length = contestant.length
        if contestant.method.per_prompt or length == NATURAL:
            length = len(batch[0].input_ids) + batch[0].max_new_tokens
        check_position_table(self._model, max(map(num_total_tokens, batch)))
        with self._ready(contestant, length):
            yield from self._halving(list(batch), settled, self._budget())

    def loglikelihood(self, batch: Sequence[Request], contestant: ModelUnderTest) -> Iterator[Losses]:
        """Predict each request's end; continuations of one prompt share its reading, row by row if memory runs out.

        Raises:
            UserError: a single request does not fit in memory.
        """
        assert self._model is not None
        require_unscaled_logits(self._model)
        check_position_table(self._model, max(len(request.input_ids) for request in batch))
        started = perf_counter()
        found: list[SuffixScore] | None = None
        length = len(batch[0].input_ids) if contestant.method.per_prompt else contestant.length
        try:
            with self._ready(contestant, length):
                found = score_requests(self._model, batch)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        if found is not None:
            seconds = (perf_counter() - started) / len(batch)
            for request, tail in zip(batch, found, strict=True):
                yield Losses(request.example_id, tail.losses.tolist(), seconds, tail.greedy)
            return
        self._release()
        if len(batch) == 1:
            tokens = len(batch[0].input_ids)
            raise UserError(f"{tokens} tokens do not fit in the memory of {self.device}; choose a smaller --length")
        for request in batch:
            yield from self.loglikelihood([request], contestant)

    def settings(self) -> dict[str, Any]:
        """Return device name, dtype, attention, threads and batch tokens, of requests that begin alike too."""
        name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else "cpu"
        attention = self._model.config._attn_implementation if self._model is not None else "sdpa"
        if attention == "sdpa":
            attention += ", one query apart" if self.device.startswith("cuda") else ", cache apart"
        return {
            "engine": self.name,
            "device": name,
            "dtype": self.dtype,
            "attention": attention,
            "compiled": self._compiled,
            "threads": torch.get_num_threads(),
            "batch_tokens": self._budget() if self._footprint is not None else self._batch_tokens,
            "alike_tokens": self._budget(shared_prefixes=True) if self._footprint is not None else self._batch_tokens,
        }

    def peak_memory(self) -> int | None:
        """Return the most bytes held since this was last asked; on a CPU since the process began."""
        return memory.peak(self.device)

    @contextmanager
    def _ready(self, contestant: ModelUnderTest, length: int) -> Iterator[None]:
        """Have the model with a method applied, its kernels as they were asked for."""
        assert self._model is not None
        with apply_method(self._model, contestant, length), use_fused_rope(self._model, self._compiled):
            yield

    def _budget(self, shared_prefixes: bool = False) -> int:
        if self._batch_tokens is not None:
            return self._batch_tokens
        assert self._footprint is not None
        return memory.batch_tokens(self._footprint, self.device, shared_prefixes)

    def _release(self) -> None:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _halving(self, batch: list[Request], settled: StoppingCriterion, pool: int) -> Iterator[Generation]:
        assert self._decoder is not None
        assert self._footprint is not None
        started = perf_counter()
        try:
            held = min(pool, sum(map(num_total_tokens, batch)))
            room = memory.prefill_token_budget(self._footprint, held, self.device)
            decoded = self._decoder.decode(batch, settled, room, pool)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            decoded = None
        if decoded is not None:
            seconds = (perf_counter() - started) / len(batch)
            for request, (text, new_tokens, reason) in zip(batch, decoded, strict=True):
                yield Generation(request.example_id, text, len(request.input_ids), new_tokens, reason, seconds)
            return
        # Outside the except block, where the traceback no longer holds the tensors that filled the memory.
        self._release()
        if len(batch) == 1:
            raise UserError(
                f"a prompt of {len(batch[0].input_ids)} tokens does not fit in the memory of {self.device}; "
                f"choose a smaller --length, --dtype bfloat16 or another --device"
            )
        middle = len(batch) // 2
        yield from self._halving(batch[:middle], settled, pool // 2)
        yield from self._halving(batch[middle:], settled, pool // 2)


def load_config(folder: Path) -> PreTrainedConfig:
    """Return a checkpoint's config as transformers' class of its model.

    Raises:
        UserError: no model can have it, it names code to fetch, or its quantisation is none that transformers knows.
    """
    end_ids(folder)  # transformers takes anything for them, and stops at nothing
    refuse_unknown_quantisation(folder)
    with _transformers_errors(folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return config


def load_model(folder: Path, dtype: str, device: str, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Load a causal language model from safetensors alone, in evaluation mode.

    Args:
        folder: a checkpoint.
        dtype: ``float32`` or ``bfloat16``.
        device: where its weights go.
        config: in place of the folder's; one of :func:`load_config`, changed.

    Raises:
        UserError: as :func:`load_config`; weights missing, truncated, or of another shape than the config says.
    """
    config = load_config(folder) if config is None else config
    with _transformers_errors(folder):
        check_attention_only(folder, config)
        # sdpa leaves the cap on the logits out, without a word (Gemma 2).
        capped = getattr(config, "attn_logit_softcapping", None)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation="eager" if capped else "sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; fetch the model again"
        )
    try:
        return model.to(device).eval()  # type: ignore[no-any-return]
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: its weights do not fit in the memory of {device}; try --dtype bfloat16") from error


@contextmanager
def _transformers_errors(folder: Path) -> Iterator[None]:
    """Have transformers load something of a folder without a word, and say on one line why it could not."""
    from safetensors import SafetensorError

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{folder}: model.safetensors is truncated or damaged ({error}); fetch the model again"
        ) from error
    except (MemoryError, UserError):
        raise
    # What transformers raises for a config that cannot be, or that lacks a package, is of no one kind.
    except Exception as error:
        raise UserError(f"{folder}: the model cannot be loaded ({reason(error)})") from error
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def apply_method(model: PreTrainedModel, contestant: ModelUnderTest, length: int) -> Iterator[None]:
    """Apply a method to a loaded model for the duration of a block; the model is as before afterwards.

    Frequencies that transformers would let follow the longest prompt of a pass (``longrope``, ``dynamic``) are those
    of ``length`` throughout: a prompt's numbers do not depend on what is read beside it.

    Raises:
        UserError: the method cannot be applied to this model.
    """
    overrides = copy.deepcopy(contestant.method.model_overrides(contestant.base, length))
    rope = overrides.get("rope_parameters") or getattr(model.config, "rope_parameters", None) or {}
    fixed = pinned(rope, length, model.config)
    if fixed != rope:
        overrides["rope_parameters"] = fixed
    if any(isinstance(each, dict) and each.get("rope_type") == "longrope" for each in fixed.values()):
        kind = model.config.model_type
        raise UserError(f"a {kind} has longrope in some layers alone, which transformers fails to compute")
    with override_config(model, overrides), contestant.method.applied(model, contestant.base, length):
        refuse_unmasked(model)
        yield
