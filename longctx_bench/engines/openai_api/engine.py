"""The openai engine: ``/v1/completions`` of any OpenAI-compatible server (vLLM, SGLang, llama.cpp and others).

A server runs one model as it is: nothing here can change its positions or its softmax. So only methods are run that
need no change of the served model (``rope``, ``crop``, ``rnope-swa``, and whatever ``longctx-bench export`` wrote); all
others are refused. ``--model`` names the checkpoint that is served; prompts are encoded by its tokenizer. That the
server has loaded these weights is up to its user, beyond the checks made here: the server lists the model, accepts the
length, and counts as many prompt tokens as were sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import Generation, LoglikelihoodResult, Request
from longctx_bench.engines.base import MemoryEstimate, Speed, StoppingCriterion
from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.openai_api import payloads
from longctx_bench.engines.openai_api.config import ServerConfig
from longctx_bench.engines.openai_api.http_client import ApiStatusError, CompletionsClient, RetriesExhausted
from longctx_bench.engines.openai_api.payloads import Completion
from longctx_bench.engines.openai_api.prefetch import RequestPrefetcher
from longctx_bench.methods.base import Capability
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.models.variant import ModelUnderTest

_CONTACT_ATTEMPTS = 3
_MAX_TOKEN_CHARACTERS = 1024
"""The longest tokens of known vocabularies, runs of spaces, have a few hundred characters."""
_IGNORED_CONFIG = ("max_position_embeddings",)
"""Config entries that change no result: the server has a maximum length of its own."""


class OpenAIOptions(Spec):
    """Options of :class:`OpenAIEngine`: device, dtype and batches are up to the server."""

    server: ServerConfig | None = None


class OpenAIEngine:
    """Requests greedy completions and log-probabilities of prompts from a server."""

    name = "openai"
    supports: frozenset[Capability] = frozenset({"prompt", "sliding_window"})
    Options: ClassVar[type[Spec]] = OpenAIOptions
    dtype = "server"
    device = "server"

    def __init__(self, server: ServerConfig | None) -> None:
        """Set the server; no request is sent yet.

        Raises:
            UserError: ``server`` is None.
        """
        if server is None:
            raise UserError("--engine openai needs --base-url, such as http://localhost:8000")
        self._server = server
        self._client = CompletionsClient(server)
        self._tokenizer: Any = None
        self._folder: Path | None = None
        self._model: payloads.Model | None = None
        self._sends_token_ids = self._sends_extras = self._reports_stops = False
        self._prefetcher: RequestPrefetcher[Completion] = RequestPrefetcher()
        self._parser = payloads.ResponseParser()

    def load(self, folder: Path) -> None:
        """Load the tokenizer and find out which requests the server accepts; both only once.

        Raises:
            UserError: the server cannot be reached, does not have the model or gives no completions; or another
                checkpoint was loaded before, as a server has only one.
        """
        if self._folder not in {None, folder}:
            raise UserError(
                f"{self._server.base_url} serves one model: {folder.name} needs a server and a run of its own"
            )
        if self._folder is None:
            self._tokenizer = load_tokenizer(folder)
            self._folder = folder
        if self._model is None:
            self._model = self._find_model()
            self._find_request_format(self._model)

    def check_server(self) -> None:
        """Check that the server can be reached and has the model, before prompts are made for it.

        Raises:
            UserError: as :meth:`load`.
        """
        self._find_model()

    def estimate_memory(self, folder: Path) -> MemoryEstimate | None:
        """Return None: the server does not report it."""
        return None

    def measure_speed(self) -> Speed:
        """Return infinities: the server computes."""
        return Speed(math.inf, math.inf, math.inf)

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Return batches of one request, the longest first; the server batches them as they arrive."""
        order = sorted(requests, key=num_total_tokens, reverse=True)
        self._prefetcher.cancel()
        self._prefetcher = RequestPrefetcher(order, self._server.concurrency)
        return [[request] for request in order]

    def generate(
        self, batch: Sequence[Request], model: ModelUnderTest, should_stop: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue each request greedily, with the requests after it already in flight.

        Raises:
            UserError: the server cannot run the method, refuses a request, or fails it after all attempts.
        """
        require_served_as_is(model)
        began = perf_counter()
        for request, completion in zip(batch, self._responses(batch, self._request_generation), strict=True):
            generation = self._generation(request, completion, perf_counter() - began)
            yield generation
            began = perf_counter()

    def loglikelihood(self, batch: Sequence[Request], model: ModelUnderTest) -> Iterator[LoglikelihoodResult]:
        """Score the end of each request, by the log-probabilities that the server echoes with a prompt.

        Raises:
            UserError: as :meth:`generate`, or the server does not give them.
        """
        require_served_as_is(model)
        if not self._sends_token_ids:
            raise self._refusal("takes no token ids, so that its log-probabilities belong to other tokens")
        began = perf_counter()
        for request, completion in zip(batch, self._responses(batch, self._request_logprobs), strict=True):
            scores = payloads.parse_prompt_logprobs(completion, len(request.input_ids), request.scored)
            if scores is None:
                raise self._refusal("gives no log-probabilities of prompts (echo with logprobs)")
            yield LoglikelihoodResult(request.example_id, scores[0], perf_counter() - began, scores[1])
            began = perf_counter()

    def settings(self) -> dict[str, Any]:
        """Return the server's address and model, how prompts are sent, and the concurrency."""
        return {
            "engine": self.name,
            "device": self.device,
            "dtype": self.dtype,
            "server": self._server.base_url,
            "served_model": self._client.key.masked(self._model.id) if self._model else self._server.model_name,
            "prompts": "token ids" if self._sends_token_ids else "text",
            "stop_tokens": "server" if self._reports_stops else "client",
            "concurrency": self._server.concurrency,
        }

    def peak_memory(self) -> int | None:
        """Return None: the server does not report it."""
        return None

    # -- what the server accepts -----------------------------------------------------------------------------

    def _find_model(self) -> payloads.Model:
        model_name = self._server.model_name
        try:
            listed = self._client.get("/models", payloads.parse_models, _CONTACT_ATTEMPTS).data
        except ApiStatusError as error:
            if model_name is None or error.status in {401, 403}:
                raise self._refusal(
                    f"{error}" + ("" if model_name else "; name its model with --model-name")
                ) from error
            return payloads.Model(id=model_name)
        except RetriesExhausted as error:
            raise self._refusal(f"{error}; is it running, and is --base-url right?") from error
        named = [model for model in listed if model_name in {None, model.id}]
        if len(named) != 1:
            names = ", ".join(f"{self._client.key.masked(model.id)!a:.80}" for model in listed[:5]) or "none"
            raise self._refusal(f"lists these models: {names}; name one of them with --model-name")
        return named[0]

    def _find_request_format(self, model: payloads.Model) -> None:
        """Request a token in each format until the server accepts one: ids before text, with vLLM's extra fields."""
        ids = list(self._tokenizer.encode("The quick brown fox jumps over the lazy dog"))
        request = Request("", ids, 1)
        last_error: Exception | None = None
        for as_ids, extras in product((True, False), (True, False)):
            body = payloads.generation_payload(model.id, ids if as_ids else self._text(ids), request, extras)
            try:
                completion = self._post(body, _CONTACT_ATTEMPTS, request.max_new_tokens).result()
            except ApiStatusError as error:
                if error.status in {401, 403, 404}:
                    raise self._refusal(f"{error} (/completions)") from error
                last_error = error
                continue
            except RetriesExhausted as error:
                if not error.answered:
                    self._model = None
                    raise self._refusal(f"{error}") from error
                last_error = error
                continue
            # A server that reads ids as text, or as prompts of one token each, counts other prompt tokens.
            if not as_ids or completion.prompt_tokens in {None, len(ids)}:
                self._sends_token_ids, self._sends_extras = as_ids, extras
                # Some servers ignore unknown fields; those that know stop tokens report which one it was.
                self._reports_stops = extras and "stop_reason" in completion.choices[0].model_fields_set
                return
        self._model = None
        raise self._refusal(f"takes no completions: {last_error}")

    # -- requests -------------------------------------------------------------------------------------------------

    def _responses(self, batch: Sequence[Request], send: Any) -> Iterator[Completion]:
        try:
            yield from self._prefetcher.results(batch, send)
        except ApiStatusError as error:
            raise self._refusal(f"{error}") from error
        except (RetriesExhausted, CancelledError) as error:
            # The next cell looks for the server first, and does not wait as long.
            self._model = None
            raise self._refusal(
                f"{error}, {self._server.attempts} times; what was measured is kept, run the same command again"
            ) from error

    def _request_generation(self, request: Request) -> Future[Completion]:
        model = self._model_for(request, request.max_new_tokens)
        prompt = list(request.input_ids) if self._sends_token_ids else self._text(list(request.input_ids))
        body = payloads.generation_payload(model.id, prompt, request, self._sends_extras)
        return self._post(body, self._server.attempts, request.max_new_tokens)

    def _request_logprobs(self, request: Request) -> Future[Completion]:
        model = self._model_for(request, 1)
        body = payloads.logprobs_payload(model.id, list(request.input_ids))
        return self._post(body, self._server.attempts, len(request.input_ids) + 1)

    def _post(self, body: dict[str, Any], attempts: int, tokens: int) -> Future[Completion]:
        """Send a request whose response has data on so many tokens."""
        parse = partial(self._parser.parse, body=body)
        return self._client.post("/completions", body, parse, attempts, payloads.max_response_bytes(tokens))

    def _model_for(self, request: Request, new_tokens: int) -> payloads.Model:
        assert self._model is not None
        needed, max_model_len = len(request.input_ids) + new_tokens, self._model.max_model_len
        if max_model_len is not None and needed > max_model_len:
            raise self._refusal(f"takes {max_model_len} tokens and {needed} are needed; start it with a longer context")
        return self._model

    def _text(self, ids: list[int]) -> str:
        """Return the text of token ids; the server adds what its tokenizer puts before prompts (BOS)."""
        decode = partial(self._tokenizer.decode, clean_up_tokenization_spaces=False)
        for skip in (False, True):
            text = decode(ids, skip_special_tokens=skip)
            if self._tokenizer.encode(text) == ids:
                return str(text)
        return str(decode(ids, skip_special_tokens=self._tokenizer.encode("")[:1] == ids[:1]))

    def _generation(self, request: Request, completion: Completion, seconds: float) -> Generation:
        sent, read = len(request.input_ids), completion.prompt_tokens
        # A server may tokenize text slightly differently.
        slack = 0 if self._sends_token_ids else max(2, sent // 50)
        if read is not None and abs(read - sent) > slack:
            raise self._refusal(f"read {read} tokens of a prompt of {sent}; it cuts prompts or has another tokenizer")
        choice = completion.choices[0]
        text, num_new_tokens = choice.text, completion.completion_tokens
        if num_new_tokens is not None and num_new_tokens > request.max_new_tokens:
            raise self._refusal(f"says that it wrote {num_new_tokens} tokens; {request.max_new_tokens} were asked for")
        ids = self._tokens(text, request)
        reason = "length" if choice.finish_reason == "length" else "stop" if choice.stop_reason is not None else "eos"
        if reason == "length" and num_new_tokens is not None and num_new_tokens < request.max_new_tokens:
            raise self._refusal(
                f"ended after {num_new_tokens} of {request.max_new_tokens} new tokens; its context is too short"
            )
        ends = frozenset() if self._reports_stops else request.stop_ids
        if ends or num_new_tokens is None:
            stops = (index for index, token in enumerate(ids) if token in ends)
            end = next((index + 1 for index in stops if index >= request.min_new_tokens), None)
            if end is not None:
                text, reason, num_new_tokens = self._tokenizer.decode(ids[:end], skip_special_tokens=True), "stop", end
            num_new_tokens = min(len(ids), request.max_new_tokens) if num_new_tokens is None else num_new_tokens
        text = self._client.key.masked_in_answer(text)
        return Generation(request.example_id, text, sent, num_new_tokens, reason, seconds)

    def _tokens(self, text: str, request: Request) -> list[int]:
        """Return the tokens of a text.

        Raises:
            UserError: the text is too long for the request's token budget.
        """
        budget = request.max_new_tokens
        # Checked by characters first: a text that is too long must not be tokenized.
        if len(text) <= _MAX_TOKEN_CHARACTERS * budget:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            # A model need not generate the tokenizer's tokens, and half a character decodes to three.
            if len(ids) <= 4 * budget + 16:
                return ids
        raise self._refusal(f"wrote {len(text)} characters, which is more than the {budget} tokens asked for can hold")

    def _refusal(self, why: str) -> UserError:
        return UserError(f"{self._server.base_url}: {why}")


def require_served_as_is(under_test: ModelUnderTest) -> None:
    """Raise if the served model would have to be changed.

    Raises:
        UserError: the method changes the model's config, its weights or its code.
    """
    method, base = under_test.method, under_test.base
    entries = method.model_overrides(base, under_test.length)
    if not method.capabilities_at(base, under_test.length) <= OpenAIEngine.supports or any(
        entries[key] != base.config.get(key) for key in entries if key not in _IGNORED_CONFIG
    ):
        raise UserError(
            f"{base.name}: a server runs its model as it is and cannot apply {type(method).__name__}; write it "
            f"into a checkpoint with `longctx-bench export`, serve that, and name its folder as --model"
        )
