"""The vLLM engine: greedy decoding by vLLM, one ``LLM`` per cell because its positions are fixed.

Methods by distance whose bands follow each prompt (``jet-long``) take one ``LLM`` for all prompts with the same bands.

Token ids go in and come out; end tokens, stop tokens and the stopping criterion are applied here, by the same
:class:`~longctx_bench.engines.request_state.RequestState` as in the transformers engine.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import NATURAL, Generation, LoglikelihoodResult, Request
from longctx_bench.engines import memory
from longctx_bench.engines.base import DeviceOptions, MemoryEstimate, Speed, StoppingCriterion
from longctx_bench.engines.batching import batch_by_tokens, num_total_tokens
from longctx_bench.engines.request_state import RequestState
from longctx_bench.engines.vllm_backend.banded_config import banded_config, bands_digest
from longctx_bench.engines.vllm_backend.hf_overrides import SUPPORTED, vllm_overrides
from longctx_bench.models.checkpoint import load_tokenizer, read_config
from longctx_bench.models.metadata import eos_token_ids
from longctx_bench.models.variant import ModelUnderTest

_BATCH_TOKENS = {"cpu": 65536, "cuda": 4194304}
"""Tokens per batch, the unit of resuming; vLLM itself schedules as many of them at a time as fit in its memory."""
_CPU_CACHE_TOKENS = 65536
"""Tokens in the KV cache on a CPU, where vLLM cannot measure the free memory; more if one prompt is longer."""
_CPU_CACHE_SHARE = 0.4
"""Share of the free memory that the KV cache may take beyond what one prompt needs."""
_BLOCK = 128
"""Tokens per block of vLLM's KV cache on a CPU."""


class _EngineKey(NamedTuple):
    """The settings that are fixed when a vLLM engine is built: requests with other ones need another engine."""

    folder: Path
    hf_overrides: dict[str, Any]
    bands: str | None
    """Digest of the bands, for methods by distance."""
    max_model_len: int


@dataclass
class _Group:
    """Requests of a batch that one vLLM engine runs."""

    key: _EngineKey
    additional_config: dict[str, Any]
    indices: list[int]


class VLLMOptions(DeviceOptions):
    """Options of :class:`VLLMEngine`."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Devices over which each layer is split."""


class VLLMEngine:
    """Runs Llama-like models with every method that vLLM computes exactly as transformers does, and no other."""

    name = "vllm"
    supports = SUPPORTED
    Options: ClassVar[type[Spec]] = VLLMOptions

    def __init__(
        self, device: str = "auto", dtype: str = "auto", batch_tokens: int | None = None, tensor_parallel: int = 1
    ) -> None:
        """Choose device and precision; nothing is loaded yet.

        Args:
            device: ``auto``, or the one that the installed vLLM was built for: ``cpu`` or ``cuda``.
            dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device computes in it.
            batch_tokens: prompt and new tokens per batch.
            tensor_parallel: devices over which each layer is split.

        Raises:
            UserError: vLLM is not installed, or was built for another device.
        """
        if find_spec("vllm") is None:
            raise UserError("--engine vllm needs vLLM: pip install 'longctx-bench[vllm]' (docs/engines.md)")
        _prepare_environment(tensor_parallel)
        from vllm.platforms import current_platform

        self.device = "cpu" if current_platform.is_cpu() else "cuda"
        if device not in ("auto", self.device):
            hint = "; choose GPUs with CUDA_VISIBLE_DEVICES" if device.startswith("cuda:") else ""
            raise UserError(f"--device {device}: the vLLM that is installed runs on {self.device}{hint}")
        if self.device == "cpu" and tensor_parallel == 1:
            # A separate process costs a minute per cell and gains nothing: a CPU frees memory in this one too.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        self.dtype = _resolve_dtype(dtype, self.device)
        self._batch_tokens = batch_tokens or _BATCH_TOKENS[self.device]
        self._tensor_parallel = tensor_parallel
        # Measured before vLLM takes its share, which it keeps between cells.
        self._free = memory.free_memory(self.device)
        self._folder: Path | None = None
        self._tokenizer: Any = None
        self.eos_token_ids: frozenset[int] = frozenset()
        self._longest = 0
        self._built_key: _EngineKey | None = None
        self.llm: Any = None

    def load(self, folder: Path) -> None:
        """Load a checkpoint's tokenizer; the weights are loaded with the positions of the first cell."""
        if folder != self._folder:
            self._folder, self._tokenizer, self.eos_token_ids = folder, load_tokenizer(folder), eos_token_ids(folder)

    def estimate_memory(self, folder: Path) -> MemoryEstimate:
        """Return what the checkpoint needs, on all its devices together."""
        estimate = memory.estimate(read_config(folder), folder, self.dtype, self.device)
        return replace(estimate, available=self._free * self._tensor_parallel)

    def measure_speed(self) -> Speed:
        """Return what one device computes per second, measured."""
        import torch

        return memory.measure_speed(getattr(torch, self.dtype), self.device)

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Batch by token budget; requests that need different positions are separated later, within a batch."""
        self._longest = max(map(num_total_tokens, requests), default=0)
        return batch_by_tokens(requests, self._batch_tokens)

    def generate(
        self, batch: Sequence[Request], model: ModelUnderTest, should_stop: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue every request greedily; each is aborted in vLLM as soon as its score is final.

        Raises:
            UserError: vLLM computes the method differently or not at all, or cannot load the model.
        """
        generations: dict[int, Generation] = {}
        for group in self._groups(batch, model):
            self._prepare(group)
            requests = [batch[index] for index in group.indices]
            generations |= zip(group.indices, self._generate(requests, should_stop), strict=True)
        yield from (generations[index] for index in range(len(batch)))

    def _generate(self, requests: Sequence[Request], should_stop: StoppingCriterion) -> Iterator[Generation]:
        started = perf_counter()
        states = {str(index): RequestState(request) for index, request in enumerate(requests)}
        engine = self.llm.llm_engine
        for request_id, state in states.items():
            request = state.request
            engine.add_request(request_id, {"prompt_token_ids": list(request.input_ids)}, self._sampling(request))
        while engine.has_unfinished_requests():
            for output in engine.step():
                state = states[output.request_id]
                finished = any(
                    state.append_token(token, self._tokenizer, self.eos_token_ids, should_stop)
                    for token in output.outputs[0].token_ids
                )
                if finished and not output.finished:
                    engine.abort_request([output.request_id])
        seconds = (perf_counter() - started) / len(requests)
        for state in states.values():
            request, reason = state.request, state.finish_reason or "length"
            yield Generation(request.example_id, state.text, len(request.input_ids), len(state.tokens), reason, seconds)

    def loglikelihood(self, batch: Sequence[Request], model: ModelUnderTest) -> Iterator[LoglikelihoodResult]:
        """Raise: only the transformers engine computes log-likelihoods."""
        raise UserError("--engine vllm gives no losses; use --engine hf for this task")

    def settings(self) -> dict[str, Any]:
        """Return vLLM's version, device name, dtype and what else can change results."""
        from vllm import __version__
        from vllm.platforms import current_platform

        return {
            "engine": self.name,
            "vllm": __version__,
            "device": "cpu" if self.device == "cpu" else current_platform.get_device_name(),
            "dtype": self.dtype,
            "tensor_parallel": self._tensor_parallel,
            "prefix_caching": True,
            "batch_tokens": self._batch_tokens,
        }

    def peak_memory(self) -> int | None:
        """Return None: vLLM takes a fixed share of the memory, whatever a cell needs."""
        return None

    def collective_rpc(self, method: str, *arguments: Any) -> Any:
        """Call a method of ``plugin.WorkerExtension`` on all workers; return the first worker's result."""
        return self.llm.collective_rpc(method, args=arguments)[0]

    def generate_with_logprobs(
        self, batch: Sequence[Request], model: ModelUnderTest, num_logprobs: int
    ) -> list[tuple[list[int], list[dict[int, float]]]]:
        """Return each request's greedy tokens, and the ``num_logprobs`` largest log-probabilities at each, in order.

        Raises:
            UserError: as :meth:`generate`.
        """
        self._longest = max(map(num_total_tokens, batch), default=0)
        results: dict[int, tuple[list[int], list[dict[int, float]]]] = {}
        for group in self._groups(batch, model):
            self._prepare(group)
            requests = [batch[index] for index in group.indices]
            prompts = [{"prompt_token_ids": list(request.input_ids)} for request in requests]
            params = [self._sampling(request, logprobs=num_logprobs) for request in requests]
            outputs = self.llm.generate(prompts, params, use_tqdm=False)
            for index, output in zip(group.indices, outputs, strict=True):
                [completion] = output.outputs
                steps = [{token: item.logprob for token, item in step.items()} for step in completion.logprobs]
                results[index] = list(completion.token_ids), steps
        return [results[index] for index in range(len(batch))]

    def rotary_table(self, request: Request, model: ModelUnderTest) -> list[list[float]] | None:
        """Return the row ``[cos, sin]`` of position 1 with which a prompt is read; None for models without positions.

        Raises:
            UserError: as :meth:`generate`.
        """
        [group] = self._groups([request], model)
        self._prepare(group)
        rows: list[list[float]] | None = self.collective_rpc("rotary_table", [1])
        return rows

    def _groups(self, batch: Sequence[Request], model: ModelUnderTest) -> list[_Group]:
        """Return the vLLM engines that a batch needs, with its requests: more than one for bands that follow prompts.

        Raises:
            UserError: as :meth:`generate`.
        """
        assert self._folder is not None
        base, method = model.base, model.method
        max_model_len = max(model.length, self._longest, *map(num_total_tokens, batch))
        follows_prompts = model.length == NATURAL or method.per_prompt
        by_length: dict[int, list[int]] = {}
        for index, request in enumerate(batch):
            by_length.setdefault(num_total_tokens(request) if follows_prompts else model.length, []).append(index)
        groups: dict[str, _Group] = {}
        for length, indices in by_length.items():
            overrides = vllm_overrides(base, method, length, max_model_len)
            key = _EngineKey(self._folder, overrides, bands_digest(base, method, length, max_model_len), max_model_len)
            config = banded_config(base, method, length)
            groups.setdefault(repr(key), _Group(key, config, [])).indices.extend(indices)
        if len(groups) > 1 and "banded_attention" not in method.required_capabilities():
            raise UserError(
                f"--engine vllm cannot run {type(method).__name__} at --length natural: its factor follows each "
                f"prompt, and vLLM's positions are fixed for all prompts; use --engine hf"
            )
        return list(groups.values())

    def _prepare(self, group: _Group) -> None:
        """Build the vLLM engine of a group, unless it is the present one."""
        if group.key != self._built_key:
            self._drop()
            self.llm = self._build(group)
            self._built_key = group.key

    def _build(self, group: _Group) -> Any:
        from vllm import LLM

        key = group.key
        options: dict[str, Any] = {}
        if self.device == "cpu":
            options["kv_cache_memory_bytes"] = self._cache_bytes(key.folder, key.max_model_len)
        # Attention by bands has other shapes in each pass, which no CUDA graph can replay.
        options["enforce_eager"] = self.device == "cpu" or key.bands is not None
        try:
            return LLM(
                model=str(key.folder),
                skip_tokenizer_init=True,
                dtype=self.dtype,
                max_model_len=key.max_model_len,
                hf_overrides=key.hf_overrides,
                additional_config=group.additional_config,
                generation_config="vllm",
                enable_prefix_caching=True,
                tensor_parallel_size=self._tensor_parallel,
                seed=0,
                use_tqdm_on_load=False,
                worker_extension_cls="longctx_bench.engines.vllm_backend.plugin.WorkerExtension",
                **options,
            )
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            raise UserError(f"{key.folder}: vLLM cannot load it ({type(error).__name__}: {error!s:.300})") from error

    def _cache_bytes(self, folder: Path, max_model_len: int) -> int:
        estimate = memory.estimate(read_config(folder), folder, self.dtype, self.device)
        useful = min(_CPU_CACHE_TOKENS, int(_CPU_CACHE_SHARE * estimate.available / estimate.per_token))
        # One prompt always fits, with its last block and a spare one; whether memory suffices was checked before.
        return estimate.per_token * (max(max_model_len, useful) + 2 * _BLOCK)

    def _drop(self) -> None:
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = self._built_key = None
        gc.collect()

    def _sampling(self, request: Request, logprobs: int | None = None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            max_tokens=request.max_new_tokens,
            min_tokens=request.min_new_tokens,
            stop_token_ids=sorted(self.eos_token_ids | request.stop_ids),
            # End tokens are among the stop tokens, as this project reads them from the checkpoint, not vLLM.
            ignore_eos=True,
            detokenize=False,
            logprobs=logprobs,
            output_kind=RequestOutputKind.FINAL_ONLY if logprobs else RequestOutputKind.DELTA,
        )


def _prepare_environment(tensor_parallel: int) -> None:
    """Set the environment variables that vLLM reads on import; those that a user has set stay."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\..*")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    if tensor_parallel == 1:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0"):
        raise UserError(
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN is set: with it vLLM reads past its table of positions and is silently "
            "wrong; unset it"
        )


def _resolve_dtype(dtype: str, device: str) -> str:
    import torch

    if dtype != "auto":
        return dtype
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"
