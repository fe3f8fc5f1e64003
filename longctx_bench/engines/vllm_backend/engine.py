"""The vLLM engine: greedy decoding by vLLM's scheduler, one vLLM engine a cell because its positions are fixed.

Token ids go in and come out; end tokens, stop tokens and text are judged here, as the transformers engine does.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import NATURAL, Generation, Losses, Request
from longctx_bench.engines import memory
from longctx_bench.engines.base import DeviceOptions, MemoryEstimate, StoppingCriterion
from longctx_bench.engines.batching import batch_by_tokens, num_total_tokens
from longctx_bench.engines.request_state import Row
from longctx_bench.engines.vllm_backend.hf_overrides import SUPPORTED, vllm_overrides
from longctx_bench.models.checkpoint import load_tokenizer, read_config
from longctx_bench.models.metadata import end_ids
from longctx_bench.models.variant import ModelUnderTest

_BATCH_TOKENS = {"cpu": 65536, "cuda": 4194304}
"""Tokens a batch, the unit of resuming; vLLM itself schedules as many of them at a time as its memory holds."""
_CPU_CACHE_TOKENS = 65536
"""Tokens whose keys and values are kept on a CPU, where vLLM cannot find out what is free; more if one prompt is."""
_CPU_CACHE_SHARE = 0.4
"""Of the free memory, that they may take beyond what one prompt needs."""
_BLOCK = 128
"""Tokens that vLLM's CPU cache gives out at a time."""


class VLLMOptions(DeviceOptions):
    """Options of :class:`VLLMEngine`."""

    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each layer."""


class VLLMEngine:
    """Runs Llama-like models by vLLM, every method that it runs as transformers does and no other."""

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
            batch_tokens: prompt and new tokens a batch.
            tensor_parallel: devices that share each layer.

        Raises:
            UserError: vLLM is not installed, or was built for another device.
        """
        if find_spec("vllm") is None:
            raise UserError("--engine vllm needs vLLM: pip install 'longctx-bench[vllm]' (README, vLLM)")
        _prepare_environment(tensor_parallel)
        from vllm.platforms import current_platform

        self.device = "cpu" if current_platform.is_cpu() else "cuda"
        if device not in ("auto", self.device):
            hint = "; choose GPUs with CUDA_VISIBLE_DEVICES" if device.startswith("cuda:") else ""
            raise UserError(f"--device {device}: the vLLM that is installed runs on {self.device}{hint}")
        if self.device == "cpu" and tensor_parallel == 1:
            # A process of its own costs a minute a cell and gives nothing back: a CPU's memory is freed here too.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        self.dtype = _dtype(dtype, self.device)
        self._batch_tokens = batch_tokens or _BATCH_TOKENS[self.device]
        self._tensor_parallel = tensor_parallel
        # Before vLLM takes its share, which it keeps between cells.
        self._free = memory.free_memory(self.device)
        self._folder: Path | None = None
        self._tokenizer: Any = None
        self._eos: frozenset[int] = frozenset()
        self._longest = 0
        self._built: tuple[Path, str] | None = None
        self._llm: Any = None

    def load(self, folder: Path) -> None:
        """Load a checkpoint's tokenizer; its weights are loaded with the first cell's positions."""
        if folder != self._folder:
            self._folder, self._tokenizer, self._eos = folder, load_tokenizer(folder), end_ids(folder)

    def estimate_memory(self, folder: Path) -> MemoryEstimate:
        """Return what the checkpoint takes, on all its devices together."""
        found = memory.estimate(read_config(folder), folder, self.dtype, self.device)
        return replace(found, available=self._free * self._tensor_parallel)

    def measure_speed(self) -> tuple[float, float]:
        """Return floating-point operations and bytes a second, from one matrix product and one copy."""
        import torch

        return memory.measure_speed(getattr(torch, self.dtype), self.device)

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Group by token budget; what differs between prompts vLLM does not run anyway."""
        self._longest = max(map(num_total_tokens, requests), default=0)
        return batch_by_tokens(requests, self._batch_tokens)

    def generate(
        self, batch: Sequence[Request], contestant: ModelUnderTest, settled: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue every request greedily; each leaves vLLM as soon as its score is settled.

        Raises:
            UserError: vLLM runs the method differently or not at all, or cannot load the model.
        """
        self.prepare(batch, contestant)
        started = perf_counter()
        rows = {str(place): Row(request) for place, request in enumerate(batch)}
        engine = self._llm.llm_engine
        for name, row in rows.items():
            engine.add_request(name, {"prompt_token_ids": list(row.request.input_ids)}, self._sampling(row.request))
        while engine.has_unfinished_requests():
            for output in engine.step():
                row = rows[output.request_id]
                done = any(
                    row.advance(token, self._tokenizer, self._eos, settled) for token in output.outputs[0].token_ids
                )
                if done and not output.finished:
                    engine.abort_request([output.request_id])
        seconds = (perf_counter() - started) / len(batch)
        for row in rows.values():
            request, reason = row.request, row.reason or "length"
            yield Generation(request.example_id, row.text, len(request.input_ids), len(row.tokens), reason, seconds)

    def loglikelihood(self, batch: Sequence[Request], contestant: ModelUnderTest) -> Iterator[Losses]:
        """Refuse: losses are the transformers engine's."""
        raise UserError("--engine vllm gives no losses; use --engine hf for this task")

    def settings(self) -> dict[str, Any]:
        """Return vLLM's version, device name, dtype and what else could change a number."""
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

    def collective_rpc(self, question: str, *arguments: Any) -> Any:
        """Ask the model that is loaded a question of ``vllm_plugin.WorkerExtension``; the first worker's answer."""
        return self._llm.collective_rpc(question, args=arguments)[0]

    def generate_with_logprobs(
        self, batch: Sequence[Request], contestant: ModelUnderTest, top: int
    ) -> list[tuple[list[int], list[dict[int, float]]]]:
        """Return each request's greedy tokens, and at each of them the ``top`` largest log-probabilities, in order.

        Raises:
            UserError: as :meth:`generate`.
        """
        self._longest = max(map(num_total_tokens, batch), default=0)
        self.prepare(batch, contestant)
        asked = [{"prompt_token_ids": list(request.input_ids)} for request in batch]
        params = [self._sampling(request, logprobs=top) for request in batch]
        found = [answer.outputs[0] for answer in self._llm.generate(asked, params, use_tqdm=False)]
        return [
            (list(best.token_ids), [{token: item.logprob for token, item in step.items()} for step in best.logprobs])
            for best in found
        ]

    def prepare(self, batch: Sequence[Request], contestant: ModelUnderTest) -> None:
        """Have a vLLM engine with the contestant's positions, the one there is if it has them.

        Raises:
            UserError: as :meth:`generate`.
        """
        assert self._folder is not None
        longest = max(self._longest, *map(num_total_tokens, batch))
        room = max(contestant.length, longest)
        lengths = (
            {num_total_tokens(request) for request in batch} if contestant.length == NATURAL else {contestant.length}
        )
        found = [vllm_overrides(contestant.base, contestant.method, length, room) for length in sorted(lengths)]
        if any(other != found[0] for other in found):
            raise UserError(
                f"--engine vllm cannot run {type(contestant.method).__name__} at --length natural: its factor is each "
                f"prompt's own, and vLLM's positions are fixed for all of them; use --engine hf"
            )
        key = (self._folder, repr((found[0], room)))
        if key != self._built:
            self._drop()
            self._llm = self._build(self._folder, found[0], room)
            self._built = key

    def _build(self, folder: Path, overrides: dict[str, Any], room: int) -> Any:
        from vllm import LLM

        more: dict[str, Any] = {}
        if self.device == "cpu":
            more = {"enforce_eager": True, "kv_cache_memory_bytes": self._cache_bytes(folder, room)}
        try:
            return LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                dtype=self.dtype,
                max_model_len=room,
                hf_overrides=overrides,
                generation_config="vllm",
                enable_prefix_caching=True,
                tensor_parallel_size=self._tensor_parallel,
                seed=0,
                use_tqdm_on_load=False,
                worker_extension_cls="longctx_bench.engines.vllm_backend.plugin.WorkerExtension",
                **more,
            )
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            raise UserError(f"{folder}: vLLM cannot load it ({type(error).__name__}: {error!s:.300})") from error

    def _cache_bytes(self, folder: Path, room: int) -> int:
        found = memory.estimate(read_config(folder), folder, self.dtype, self.device)
        pays = min(_CPU_CACHE_TOKENS, int(_CPU_CACHE_SHARE * found.available / found.per_token))
        # One prompt always fits, its last block begun and a spare one; whether the machine has that was asked before.
        return found.per_token * (max(room, pays) + 2 * _BLOCK)

    def _drop(self) -> None:
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._built = None
        gc.collect()

    def _sampling(self, request: Request, logprobs: int | None = None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            max_tokens=request.max_new_tokens,
            min_tokens=request.min_new_tokens,
            stop_token_ids=sorted(self._eos | request.stop_ids),
            # The end tokens are among the stop tokens, by our reading of the checkpoint and not by vLLM's.
            ignore_eos=True,
            detokenize=False,
            logprobs=logprobs,
            output_kind=RequestOutputKind.FINAL_ONLY if logprobs else RequestOutputKind.DELTA,
        )


def _prepare_environment(tensor_parallel: int) -> None:
    """Choose what vLLM reads from the environment when it is imported; what a user has set stays."""
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


def _dtype(wanted: str, device: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"
