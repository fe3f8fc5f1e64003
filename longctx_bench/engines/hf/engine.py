"""The transformers engine: greedy decoding in batches on CPU or CUDA, one loaded model for every method."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from longctx_bench.core.types import NATURAL, Generation, LoglikelihoodResult, Request
from longctx_bench.engines import memory
from longctx_bench.engines.base import ALL_CAPABILITIES, DeviceOptions, MemoryEstimate, Speed, StoppingCriterion
from longctx_bench.engines.batching import batch_by_tokens, num_total_tokens
from longctx_bench.engines.devices import DTYPES, resolve_device, resolve_dtype
from longctx_bench.engines.hf.config_overrides import check_attention_only, check_position_table, override_config
from longctx_bench.engines.hf.engine_core import EngineCore
from longctx_bench.engines.hf.exact import generate_exact
from longctx_bench.engines.hf.fused_rope import use_fused_rope
from longctx_bench.engines.hf.loglikelihood import SuffixScore, require_unscaled_logits, score_requests
from longctx_bench.engines.hf.model_runner import model_eos_token_ids
from longctx_bench.engines.hf.scheduler import SchedulerConfig
from longctx_bench.engines.hf.torch_compile import compile_layers
from longctx_bench.engines.request_state import RequestState
from longctx_bench.methods.attention_override import require_attention_mask
from longctx_bench.methods.query_scale import scale_queries
from longctx_bench.methods.rope_parameters import fix_to_length
from longctx_bench.models.checkpoint import error_summary, load_tokenizer, read_config, require_known_quantization
from longctx_bench.models.metadata import eos_token_ids
from longctx_bench.models.variant import ModelUnderTest

_BATCHES_PER_POOL = {"cpu": 1, "cuda": 4}
"""Size of a batch in multiples of the tokens that are decoded at a time, unless a user chose it.

On a CPU larger batches gain nothing, and a smaller batch is stored and shown sooner.
"""


class HFOptions(DeviceOptions):
    """Options of :class:`HFEngine`."""

    compiled: bool = False
    """Compile the layers with ``torch.compile``."""
    exact: bool = False
    """Plain ``generate``, one prompt at a time; all switches below are off."""
    reference_drafts: bool = True
    """Speculative decoding with the reference answer as draft; the draft changes no token."""
    prompt_lookup: bool = True
    """Speculative decoding with n-grams of the prompt as draft."""
    prefix_sharing: bool = True
    """Prefill a common prefix of prompts once."""
    cuda_graph: bool = True
    """Decode by a captured step on a GPU."""
    kernels: bool = True
    """This project's attention and rotary kernels; off: transformers' own."""


class HFEngine:
    """Runs any causal language model of transformers; methods are applied in place and undone."""

    name = "hf"
    supports = ALL_CAPABILITIES
    Options: ClassVar[type[Spec]] = HFOptions

    def __init__(
        self,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        compiled: bool = False,
        *,
        exact: bool = False,
        reference_drafts: bool = True,
        prompt_lookup: bool = True,
        prefix_sharing: bool = True,
        cuda_graph: bool = True,
        kernels: bool = True,
    ) -> None:
        """Choose device and precision; nothing is loaded yet.

        Args:
            device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 if the device computes in it.
            batch_tokens: prompt and new tokens per batch; from the free memory when None.
            compiled: compile the layers with ``torch.compile``, which takes some seconds at first.
            exact: plain ``generate``, one prompt at a time, without any of the following.
            reference_drafts: see :class:`HFOptions`, as for the others.
            prompt_lookup: drafts from the prompt.
            prefix_sharing: prefill common prefixes once.
            cuda_graph: decode by a captured step on a GPU.
            kernels: this project's kernels.

        Raises:
            UserError: the device or dtype is not available, or ``exact`` and ``compiled`` are both asked for.
        """
        if exact and compiled:
            raise UserError("--engine-arg exact=true is plain generate; run it without --compile")
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self._batch_tokens = batch_tokens
        self._compiled, self._exact, self._kernels = compiled, exact, kernels and not exact
        self._switches = SchedulerConfig(
            reference_drafts=reference_drafts,
            prompt_lookup=prompt_lookup,
            prefix_sharing=prefix_sharing,
            cuda_graph=None if cuda_graph else False,
        )
        switches = {
            "reference_drafts": reference_drafts, "prompt_lookup": prompt_lookup, "prefix_sharing": prefix_sharing,
            "cuda_graph": cuda_graph, "kernels": kernels,
        }  # fmt: skip
        self._switched_off = sorted(name for name, is_on in switches.items() if not is_on)
        self._model: PreTrainedModel | None = None
        self._folder: Path | None = None
        self._memory_estimate: MemoryEstimate | None = None
        self._core: EngineCore | None = None

    @property
    def core(self) -> EngineCore:
        """Return what decodes with the loaded model; :meth:`load` comes first."""
        assert self._core is not None
        return self._core

    @property
    def model(self) -> PreTrainedModel:
        """Return the loaded model; :meth:`load` comes first."""
        assert self._model is not None
        return self._model

    def load(self, folder: Path) -> None:
        """Load a checkpoint folder, dropping the one before; loading the same folder again is free.

        Raises:
            UserError: the weights are missing, truncated or do not match the config.
        """
        if folder == self._folder:
            return
        self._model = self._core = self._folder = None
        self._free_memory()
        self._memory_estimate = self.estimate_memory(folder)
        self._model = load_model(folder, self.dtype, self.device)
        if self._compiled:
            compile_layers(self._model)
        self._folder = folder
        self._core = EngineCore.for_model(
            self._model, load_tokenizer(folder), model_eos_token_ids(self._model), self._kernels, self._switches
        )

    def estimate_memory(self, folder: Path) -> MemoryEstimate:
        """Return what the checkpoint needs on this device."""
        estimate = memory.estimate(read_config(folder), folder, self.dtype, self.device)
        loaded = sum(weight.nbytes for weight in self._model.parameters()) if self._model is not None else 0
        # Loaded weights are no longer part of the free memory; another checkpoint's are freed for this one.
        if folder == self._folder:
            return replace(estimate, weights=0)
        return replace(estimate, available=estimate.available + loaded)

    def measure_speed(self) -> Speed:
        """Return what the device computes per second, measured."""
        return memory.measure_speed(DTYPES[self.dtype], self.device)

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Batch by token budget; only equal lengths when the method depends on each prompt's length."""
        if self._exact:
            return [[request] for request in sorted(requests, key=num_total_tokens, reverse=True)]
        # Log-likelihoods take all of a batch at once.
        is_decoded = self._batch_tokens is None and not any(request.scored for request in requests)
        times = _BATCHES_PER_POOL.get(self.device.partition(":")[0], 1) if is_decoded else 1
        shared_prefix_budget = times * self._max_batch_tokens(shared_prefixes=True)
        return batch_by_tokens(requests, times * self._max_batch_tokens(), per_prompt, shared_prefix_budget)

    def generate(
        self, batch: Sequence[Request], model: ModelUnderTest, should_stop: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue each request greedily; out of memory, the batch is halved until it fits.

        Raises:
            UserError: a single request does not fit in memory.
        """
        length = model.length
        if model.method.per_prompt or length == NATURAL:
            length = len(batch[0].input_ids) + batch[0].max_new_tokens
        check_position_table(self.model, max(map(num_total_tokens, batch)))
        with self._applied(model, length):
            yield from self._generate_or_halve(list(batch), should_stop, self._max_batch_tokens())

    def loglikelihood(self, batch: Sequence[Request], model: ModelUnderTest) -> Iterator[LoglikelihoodResult]:
        """Score the end of each request; continuations of one prompt share its prefill, unless memory runs out.

        Raises:
            UserError: a single request does not fit in memory.
        """
        require_unscaled_logits(self.model)
        check_position_table(self.model, max(len(request.input_ids) for request in batch))
        started = perf_counter()
        scores: list[SuffixScore] | None = None
        length = len(batch[0].input_ids) if model.method.per_prompt else model.length
        try:
            with self._applied(model, length):
                scores = score_requests(self.model, batch, self._kernels)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        if scores is not None:
            seconds = (perf_counter() - started) / len(batch)
            for request, score in zip(batch, scores, strict=True):
                yield LoglikelihoodResult(request.example_id, score.losses.tolist(), seconds, score.greedy)
            return
        self._free_memory()
        if len(batch) == 1:
            tokens = len(batch[0].input_ids)
            raise UserError(f"{tokens} tokens do not fit in the memory of {self.device}; choose a smaller --length")
        for request in batch:
            yield from self.loglikelihood([request], model)

    def settings(self) -> dict[str, Any]:
        """Return device name, dtype, attention, threads, batch sizes, and the switches that are off."""
        name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else "cpu"
        attention = self._model.config._attn_implementation if self._model is not None else "sdpa"
        if attention == "sdpa" and self._kernels:
            attention += ", one query apart" if self.device.startswith("cuda") else ", cache apart"
        known = self._memory_estimate is not None
        settings = {
            "engine": self.name,
            "device": name,
            "dtype": self.dtype,
            "attention": attention,
            "compiled": self._compiled,
            "threads": torch.get_num_threads(),
            "batch_tokens": self._max_batch_tokens() if known else self._batch_tokens,
            "alike_tokens": self._max_batch_tokens(shared_prefixes=True) if known else self._batch_tokens,
        }
        if self._exact:
            return settings | {"exact": True}
        return settings | ({"switched_off": self._switched_off} if self._switched_off else {})

    def peak_memory(self) -> int | None:
        """Return the peak memory in bytes since the last call; on a CPU since the process began."""
        return memory.peak(self.device)

    @contextmanager
    def _applied(self, model: ModelUnderTest, length: int) -> Iterator[None]:
        """Apply a method to the loaded model, and the kernels that are switched on."""
        rope = use_fused_rope(self.model, self._compiled) if self._kernels else nullcontext()
        with apply_method(self.model, model, length), rope:
            yield

    def _max_batch_tokens(self, shared_prefixes: bool = False) -> int:
        if self._batch_tokens is not None:
            return self._batch_tokens
        assert self._memory_estimate is not None
        return memory.batch_tokens(self._memory_estimate, self.device, shared_prefixes)

    def _free_memory(self) -> None:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _generate(
        self, batch: list[Request], should_stop: StoppingCriterion, max_batch_tokens: int
    ) -> list[RequestState]:
        if self._exact:
            core = self.core
            ends = core.runner.eos_token_ids
            return [generate_exact(self.model, core.tokenizer, ends, request, should_stop) for request in batch]
        assert self._memory_estimate is not None
        totals = [num_total_tokens(request) for request in batch]
        fitting = memory.cache_token_budget(self._memory_estimate, max(totals), self.device)
        max_batch_tokens = min(max_batch_tokens, fitting)
        cached = min(max_batch_tokens, sum(totals))
        budget = memory.prefill_token_budget(self._memory_estimate, cached, self.device)
        return self.core.generate(batch, should_stop, budget, max_batch_tokens)

    def _generate_or_halve(
        self, batch: list[Request], should_stop: StoppingCriterion, max_batch_tokens: int
    ) -> Iterator[Generation]:
        started = perf_counter()
        try:
            states = self._generate(batch, should_stop, max_batch_tokens)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            states = None
        if states is not None:
            seconds = (perf_counter() - started) / len(batch)
            for state in states:
                request = state.request
                yield Generation(
                    request.example_id, state.text, len(request.input_ids), len(state.tokens), state.finish_reason,
                    seconds,
                )  # fmt: skip
            return
        # Outside the except block, whose traceback holds the tensors that filled the memory.
        self._free_memory()
        if len(batch) == 1:
            raise UserError(
                f"a prompt of {len(batch[0].input_ids)} tokens does not fit in the memory of {self.device}; "
                f"choose a smaller --length, --dtype bfloat16 or another --device"
            )
        middle = len(batch) // 2
        yield from self._generate_or_halve(batch[:middle], should_stop, max_batch_tokens // 2)
        yield from self._generate_or_halve(batch[middle:], should_stop, max_batch_tokens // 2)


def load_config(folder: Path) -> PreTrainedConfig:
    """Return a checkpoint's config as transformers' class of its model.

    Raises:
        UserError: the config is invalid, names code to fetch, or has a quantisation that transformers does not know.
    """
    eos_token_ids(folder)  # transformers accepts invalid ones, and then never stops
    require_known_quantization(folder)
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
        # sdpa silently ignores a cap on the logits (Gemma 2).
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
    """Silence transformers while it loads a folder, and turn its errors into one line."""
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
    # For an invalid config or a missing package transformers raises errors of many types.
    except Exception as error:
        raise UserError(f"{folder}: the model cannot be loaded ({error_summary(error)})") from error
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def apply_method(model: PreTrainedModel, under_test: ModelUnderTest, length: int) -> Iterator[None]:
    """Apply a method to a loaded model for the duration of a block; the model is as before afterwards.

    Rotary frequencies that transformers derives from the longest prompt of a pass (``longrope``, ``dynamic``) are those
    of ``length`` throughout: a prompt's logits do not depend on the batch that it is in.

    Raises:
        UserError: the method cannot be applied to this model.
    """
    method, base = under_test.method.at(under_test.base, length), under_test.base
    overrides = copy.deepcopy(method.model_overrides(base, length))
    rope = overrides.get("rope_parameters") or getattr(model.config, "rope_parameters", None) or {}
    fixed = fix_to_length(rope, length, model.config)
    if fixed != rope:
        overrides["rope_parameters"] = fixed
    if any(isinstance(each, dict) and each.get("rope_type") == "longrope" for each in fixed.values()):
        kind = model.config.model_type
        raise UserError(f"a {kind} has longrope in some layers alone, which transformers fails to compute")
    with (
        override_config(model, overrides),
        method.patch(model, base, length),
        scale_queries(model, method.query_scale, method.query_scale_beta, base.training_context),
    ):
        require_attention_mask(model)
        yield
