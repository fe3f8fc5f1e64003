"""Our methods as an lm-eval model: ``longctx-bench lm-eval --model longctx --model_args method=drope,base=tiny``."""

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
"""What lm-eval asks for: a key for its cache, the context's tokens, the continuation's."""


class LongCtxLM(TemplateLM):  # type: ignore[misc]
    """A contestant on an engine, as lm-eval sees a model.

    A log-likelihood needs the logits of the continuation alone, and the continuations of one context (the choices of
    a question) share one reading of it. Tokens are those of lm-eval's own ``hf`` model.
    """

    def __init__(self, engine: Engine, contestant: ModelUnderTest, tokenizer: Any) -> None:
        """Wrap an engine that has loaded the contestant's weights."""
        super().__init__()
        self._engine = engine
        self._contestant = contestant
        self.tokenizer = tokenizer

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> LongCtxLM:
        """Build the model from ``--model_args``, as lm-eval does."""
        pairs = (pair.partition("=") for pair in arg_string.split(",") if pair.strip())
        return cls.create_from_arg_obj({key.strip(): value for key, _, value in pairs}, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LongCtxLM:
        """Build the model from named arguments.

        Args:
            arg_dict: ``method`` and ``base`` (a listed name, a folder or a hub id), or ``model`` (as ``--model`` takes
                it); ``max_length`` (tokens; the training context unless given), ``dtype``, ``batch_tokens``.
            additional_config: of which ``device`` is used.

        Raises:
            UserError: an unknown argument or name.
        """
        known = {"method", "base", "model", "max_length", "dtype", "batch_tokens", "device"}
        given = {"device": _device((additional_config or {}).get("device")), **arg_dict}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UserError(f"--model_args {unknown[0]}: longctx has no such argument{did_you_mean(unknown[0], known)}")
        method, base = given.get("method"), given.get("base", "tiny")
        variant = Registry().variant(given.get("model") or (f"{method}:{base}" if method else base))
        resolved = variant.resolve()
        length = _positive(given.get("max_length"), "max_length") or variant.model.original_length
        budget = _positive(given.get("batch_tokens"), "batch_tokens")
        engine = HFEngine(given.get("device") or "auto", given.get("dtype") or "auto", budget)
        engine.load(resolved.folder)
        return cls(engine, resolved.at(length), load_tokenizer(resolved.folder))

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together; longer ones are cut on the left."""
        return self._contestant.length

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task does not say."""
        return 256

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation without a context."""
        begin = self.tokenizer.bos_token_id
        return int(begin) if begin is not None else self.eot_token_id

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
        """Return token ids; special tokens as the tokenizer adds them, never a second BOS."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers: dict[int, tuple[float, bool]] = {}
        made = [self._request(place, pair) for place, pair in enumerate(requests)]
        with tqdm(total=len(made), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for batch in self._batches(made):
                for found in self._engine.loglikelihood(batch, self._contestant):
                    place = int(found.example_id)
                    answers[place] = _answer(found)
                    if requests[place][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[place][0], answers[place])
                    bar.update()
        return [answers[place] for place in range(len(requests))]

    def _request(self, place: int, pair: Pair) -> Request:
        _, context, continuation = pair
        ids = (context + continuation)[-(self.max_length + 1) :]
        ids = list(self._contestant.method.prompt(self._contestant.base, ids, 0))
        return Request(str(place), ids, 0, scored=min(len(continuation), len(ids) - 1))

    def _batches(self, made: Sequence[Request]) -> Iterator[list[Request]]:
        """Put the continuations of one long context together, and all others by length."""
        per_prompt = self._contestant.method.per_prompt
        alone = []
        for _, group in groupby(made, key=lambda request: tuple(request.input_ids[: -request.scored])):
            batch = list(group)
            if not per_prompt and len(batch) > 1 and len(batch[0].input_ids) - batch[0].scored >= SHARED_FROM:
                # Batches of one context: what they share is read once in each.
                yield from self._engine.batches(batch, per_prompt)
            else:
                alone += batch
        yield from self._engine.batches(alone, per_prompt)

    def _stop_ids(self, stops: Sequence[str]) -> frozenset[int]:
        """Return the stop texts that are special tokens, which a decoded text does not show."""
        special = dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        return frozenset(special[stop] for stop in stops if stop in special)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows of ``max_length`` as lm-eval cuts them."""
        windows: list[Pair] = []
        sizes = []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own: list[Pair] = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += own
            sizes.append(len(own))
        found = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(found)[0] for _ in range(size)) for size in sizes]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts greedily until a stop text.

        Raises:
            UserError: a task asks for anything but greedy decoding, or for more new tokens than ``max_length`` holds.
        """
        stops: dict[str, list[str]] = {}
        made = []
        for place, (context, options) in enumerate(request.args for request in requests):
            settings = _greedy(normalize_gen_kwargs(options, self.max_gen_toks))
            new = int(settings["max_gen_toks"])
            if new >= self.max_length:
                raise UserError(f"max_length {self.max_length}: a task's {new} new tokens leave no room for its prompt")
            stops[str(place)] = handle_stop_sequences(settings.get("until"), eos=self.tokenizer.eos_token)
            ids = self.tok_encode(context)[-(self.max_length - new) :]
            ids = list(self._contestant.method.prompt(self._contestant.base, ids, new))
            made.append(Request(str(place), ids, new, self._stop_ids(stops[str(place)])))

        def settled(example_id: str, text: str) -> bool:
            return any(stop and stop in text for stop in stops[example_id])

        texts: dict[str, str] = {}
        with tqdm(total=len(made), disable=disable_tqdm, desc="generations") as bar:
            for batch in self._engine.batches(made, self._contestant.method.per_prompt):
                for item in self._engine.generate(batch, self._contestant, settled):
                    text = postprocess_generated_text(item.text, stops[item.example_id], None)
                    texts[item.example_id] = text
                    self.cache_hook.add_partial("generate_until", requests[int(item.example_id)].args, text)
                    bar.update()
        return [texts[str(place)] for place in range(len(requests))]


def _positive(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise UserError(f"--model_args {name}={value}: expected a number of tokens, such as 4096")
    return int(value)


def _device(given: str | None) -> str | None:
    """Return the device of lm-eval's ``--device``, whose default is ``cuda:0`` on every machine.

    Without a GPU it is the CPU, as for lm-eval's own ``hf`` model; ``device`` among the model's arguments is taken at
    its word.
    """
    if given is not None and given.startswith("cuda") and resolve_device("auto") == "cpu":
        _log.warning("torch sees no CUDA device here: longctx runs on the CPU in place of %s", given)
        return "cpu"
    return given


def _greedy(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a task's generation settings, all of which greedy decoding honours.

    Raises:
        UserError: one of them asks for something else.
    """
    neutral = {"temperature": 0.0, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "top_p": 1.0}
    for name, value in settings.items():
        if name in ("until", "max_gen_toks", "top_k") or value is None:
            continue
        if name not in neutral or float(value) != float(neutral[name]):
            raise UserError(f"longctx decodes greedily: the task's generation_kwargs ask for {name}={value}")
    return settings


def _answer(found: LoglikelihoodResult) -> tuple[float, bool]:
    return -sum(found.losses), found.greedy
