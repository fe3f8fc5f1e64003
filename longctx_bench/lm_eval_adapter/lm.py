"""The lm-eval model ``longctx``: ``longctx-bench lm-eval --model longctx --model_args method=drope,base=tiny``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from longctx_bench.benchmarks.chat_templates import ChatTemplate
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.types import LoglikelihoodResult, Request
from longctx_bench.engines.base import Engine
from longctx_bench.engines.devices import resolve_device
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.engines.hf.loglikelihood import SHARED_FROM
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

_log = logging.getLogger(__name__)

Pair = tuple[Any, list[int], list[int]]
"""An lm-eval request: cache key, context tokens, continuation tokens."""


class LongCtxLM(TemplateLM):  # type: ignore[misc]
    """An lm-eval model that runs a base with a method on our engine.

    Only the logits of continuations are computed, and continuations of one context (the choices of a question) share
    its prefill. Tokenization is that of lm-eval's own ``hf`` model.
    """

    def __init__(self, engine: Engine, model: ModelUnderTest, tokenizer: Any) -> None:
        """Wrap an engine that has loaded the model's weights."""
        super().__init__()
        self._engine = engine
        self._model_under_test = model
        self.tokenizer = tokenizer

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> LongCtxLM:
        """Create the model from the string of ``--model_args``."""
        pairs = (pair.partition("=") for pair in arg_string.split(",") if pair.strip())
        return cls.create_from_arg_obj({key.strip(): value for key, _, value in pairs}, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LongCtxLM:
        """Create the model from named arguments.

        Args:
            arg_dict: ``method`` and ``base`` (a listed name, a folder or a hub id), or ``model`` (as ``--model`` takes
                it); ``max_length`` (tokens; the training context unless given), ``dtype``, ``batch_tokens``.
            additional_config: only ``device`` is used.

        Raises:
            UserError: an unknown argument or name.
        """
        names = {"method", "base", "model", "max_length", "dtype", "batch_tokens", "device"}
        arguments = {"device": _device((additional_config or {}).get("device")), **arg_dict}
        unknown = sorted(set(arguments) - names)
        if unknown:
            raise UserError(f"--model_args {unknown[0]}: longctx has no such argument{did_you_mean(unknown[0], names)}")
        method, base = arguments.get("method"), arguments.get("base", "tiny")
        variant = Registry().variant(arguments.get("model") or (f"{method}:{base}" if method else base))
        resolved = variant.resolve()
        length = _positive(arguments.get("max_length"), "max_length") or variant.model.original_length
        batch_tokens = _positive(arguments.get("batch_tokens"), "batch_tokens")
        engine = HFEngine(arguments.get("device") or "auto", arguments.get("dtype") or "auto", batch_tokens)
        engine.load(resolved.folder)
        return cls(engine, resolved.at(length), load_tokenizer(resolved.folder))

    @property
    def max_length(self) -> int:
        """Maximum tokens of context and continuation together; longer ones are truncated on the left."""
        return self._model_under_test.length

    @property
    def max_gen_toks(self) -> int:
        """New tokens if a task sets no limit."""
        return 256

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a continuation without context: BOS, or else EOS."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in lm-eval's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text.

        Raises:
            UserError: the chat template cannot be rendered.
        """
        return self._template.render(chat_history, add_generation_prompt, not add_generation_prompt)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return token ids, with the tokenizer's special tokens but never a second BOS."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        results: dict[int, tuple[float, bool]] = {}
        own_requests = [self._request(index, pair) for index, pair in enumerate(requests)]
        with tqdm(total=len(own_requests), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for batch in self._batches(own_requests):
                for losses in self._engine.loglikelihood(batch, self._model_under_test):
                    index = int(losses.example_id)
                    results[index] = _loglikelihood(losses)
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
                    bar.update()
        return [results[index] for index in range(len(requests))]

    def _request(self, index: int, pair: Pair) -> Request:
        _, context, continuation = pair
        ids = (context + continuation)[-(self.max_length + 1) :]
        ids = list(self._model_under_test.method.prompt(self._model_under_test.base, ids, 0))
        return Request(str(index), ids, 0, scored=min(len(continuation), len(ids) - 1))

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Batch the continuations of each long context together, and all others by length."""
        per_prompt = self._model_under_test.method.per_prompt
        others = []
        for _, group in groupby(requests, key=lambda request: tuple(request.input_ids[: -request.scored])):
            batch = list(group)
            if not per_prompt and len(batch) > 1 and len(batch[0].input_ids) - batch[0].scored >= SHARED_FROM:
                # Batches of one context: its prefill is shared.
                yield from self._engine.batches(batch, per_prompt)
            else:
                others += batch
        yield from self._engine.batches(others, per_prompt)

    def _stop_ids(self, stops: Sequence[str]) -> frozenset[int]:
        """Return the ids of stop strings that are special tokens, which decoding drops from the text."""
        special = dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        return frozenset(special[stop] for stop in stops if stop in special)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihoods of whole texts, in lm-eval's disjoint windows of ``max_length``."""
        windows: list[Pair] = []
        sizes = []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            text_windows: list[Pair] = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += text_windows
            sizes.append(len(text_windows))
        loglikelihoods = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(loglikelihoods)[0] for _ in range(size)) for size in sizes]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate greedily until a stop string.

        Raises:
            UserError: a task requires other than greedy decoding, or more new tokens than ``max_length``.
        """
        stops: dict[str, list[str]] = {}
        own_requests = []
        for index, (context, options) in enumerate(request.args for request in requests):
            settings = _greedy(normalize_gen_kwargs(options, self.max_gen_toks))
            max_new_tokens = int(settings["max_gen_toks"])
            if max_new_tokens >= self.max_length:
                raise UserError(
                    f"max_length {self.max_length}: a task's {max_new_tokens} new tokens leave no room for its prompt"
                )
            stops[str(index)] = handle_stop_sequences(settings.get("until"), eos=self.tokenizer.eos_token)
            ids = self.tok_encode(context)[-(self.max_length - max_new_tokens) :]
            ids = list(self._model_under_test.method.prompt(self._model_under_test.base, ids, max_new_tokens))
            own_requests.append(Request(str(index), ids, max_new_tokens, self._stop_ids(stops[str(index)])))

        def is_final(example_id: str, text: str) -> bool:
            return any(stop and stop in text for stop in stops[example_id])

        texts: dict[str, str] = {}
        with tqdm(total=len(own_requests), disable=disable_tqdm, desc="generations") as bar:
            for batch in self._engine.batches(own_requests, self._model_under_test.method.per_prompt):
                for item in self._engine.generate(batch, self._model_under_test, is_final):
                    text = postprocess_generated_text(item.text, stops[item.example_id], None)
                    texts[item.example_id] = text
                    self.cache_hook.add_partial("generate_until", requests[int(item.example_id)].args, text)
                    bar.update()
        return [texts[str(index)] for index in range(len(requests))]


def _positive(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise UserError(f"--model_args {name}={value}: expected a number of tokens, such as 4096")
    return int(value)


def _device(device: str | None) -> str | None:
    """Return the device for lm-eval's ``--device``, whose default is ``cuda:0`` on every machine.

    Falls back to the CPU without a GPU, like lm-eval's own ``hf`` model; ``device`` in ``--model_args`` does not.
    """
    if device is not None and device.startswith("cuda") and resolve_device("auto") == "cpu":
        _log.warning("no CUDA device on this machine: longctx runs on the CPU instead of %s", device)
        return "cpu"
    return device


def _greedy(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a task's generation settings if greedy decoding satisfies them.

    Raises:
        UserError: a setting requires something else.
    """
    neutral = {"temperature": 0.0, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "top_p": 1.0}
    for name, value in settings.items():
        if name in ("until", "max_gen_toks", "top_k") or value is None:
            continue
        if name not in neutral or float(value) != float(neutral[name]):
            raise UserError(f"longctx decodes greedily: the task's generation_kwargs set {name}={value}")
    return settings


def _loglikelihood(losses: LoglikelihoodResult) -> tuple[float, bool]:
    return -sum(losses.losses), losses.greedy
