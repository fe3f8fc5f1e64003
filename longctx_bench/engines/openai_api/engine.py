"""Models behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp and others, asked by ``/v1/completions``.

A server runs one model as it stands: nothing here can change its positions or its softmax. So a contestant is run only
where its method changes nothing that the server would have to change (``rope``, ``crop``, ``rnope-swa``, and whatever
``longctx-bench export`` wrote); every other is refused. ``--model`` names the checkpoint that is served; its tokenizer
writes the prompts. That the server has loaded these very weights is its user's word, beyond the checks made here: it
lists the model, takes the length, and counts as many prompt tokens as were sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import Generation, Losses, Request
from longctx_bench.engines.base import MemoryEstimate, StoppingCriterion
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
_LONGEST_TOKEN = 1024
"""Characters; the longest of known vocabularies, which are runs of spaces, have a few hundred."""
_UNSAID = ("max_position_embeddings",)
"""Config entries that change no number: the server has a length of its own."""


class OpenAIOptions(Spec):
    """Options of :class:`OpenAIEngine`: device, dtype and batches are the server's."""

    server: ServerConfig | None = None


class OpenAIEngine:
    """Asks a server for greedy continuations and for the likelihood of prompts."""

    name = "openai"
    supports: frozenset[Capability] = frozenset({"prompt"})
    Options: ClassVar[type[Spec]] = OpenAIOptions
    dtype = "server"
    device = "server"

    def __init__(self, server: ServerConfig | None) -> None:
        """Take a server; nothing is asked of it yet.

        Raises:
            UserError: none is named.
        """
        if server is None:
            raise UserError("--engine openai needs --base-url, such as http://localhost:8000")
        self._server = server
        self._asker = CompletionsClient(server)
        self._tokenizer: Any = None
        self._folder: Path | None = None
        self._model: payloads.Model | None = None
        self._as_ids = self._extras = self._stops = False
        self._ahead: RequestPrefetcher[Completion] = RequestPrefetcher()
        self._read = payloads.Answers()

    def load(self, folder: Path) -> None:
        """Load the tokenizer and find out what the server takes; what it took before is asked only once.

        Raises:
            UserError: the server cannot be reached, does not have the model or gives no completions; or it was
                asked for another checkpoint before, as a server has only one.
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
            self._find_style(self._model)

    def contact(self) -> None:
        """Ask whether the server is there and has the model, before anything is prepared for it.

        Raises:
            UserError: as :meth:`load`.
        """
        self._find_model()

    def estimate_memory(self, folder: Path) -> MemoryEstimate | None:
        """Return None: the memory is the server's."""
        return None

    def measure_speed(self) -> tuple[float, float]:
        """Return infinities: the server computes."""
        return float("inf"), float("inf")

    def batches(self, requests: Sequence[Request], per_prompt: bool) -> list[list[Request]]:
        """Put each request into a batch of its own, the longest first; the server batches them as they come."""
        order = sorted(requests, key=num_total_tokens, reverse=True)
        self._ahead.drop()
        self._ahead = RequestPrefetcher(order, self._server.concurrency)
        return [[request] for request in order]

    def generate(
        self, batch: Sequence[Request], contestant: ModelUnderTest, settled: StoppingCriterion
    ) -> Iterator[Generation]:
        """Continue each request greedily, with the requests that follow it already under way.

        Raises:
            UserError: the server cannot run the method, refuses a request, or does not answer after all attempts.
        """
        require_served_as_is(contestant)
        began = perf_counter()
        for request, found in zip(batch, self._answers(batch, self._continue), strict=True):
            generation = self._generation(request, found, perf_counter() - began)
            yield generation
            began = perf_counter()

    def loglikelihood(self, batch: Sequence[Request], contestant: ModelUnderTest) -> Iterator[Losses]:
        """Predict each request's end, from the log-probabilities that the server echoes with a prompt.

        Raises:
            UserError: as :meth:`generate`, or the server does not give them.
        """
        require_served_as_is(contestant)
        if not self._as_ids:
            raise self._refusal("takes no token ids, so that its log-probabilities belong to other tokens")
        began = perf_counter()
        for request, found in zip(batch, self._answers(batch, self._echo), strict=True):
            tail = payloads.tail(found, len(request.input_ids), request.scored)
            if tail is None:
                raise self._refusal("gives no log-probabilities of prompts (echo with logprobs)")
            yield Losses(request.example_id, tail[0], perf_counter() - began, tail[1])
            began = perf_counter()

    def settings(self) -> dict[str, Any]:
        """Return the server's address and model, how prompts reach it, and what it was asked at once."""
        return {
            "engine": self.name,
            "device": self.device,
            "dtype": self.dtype,
            "server": self._server.base_url,
            "served_model": self._asker.key.masked(self._model.id) if self._model else self._server.model_name,
            "prompts": "token ids" if self._as_ids else "text",
            "stop_tokens": "server" if self._stops else "client",
            "concurrency": self._server.concurrency,
        }

    def peak_memory(self) -> int | None:
        """Return None: the memory is the server's."""
        return None

    # -- getting to know the server -----------------------------------------------------------------------------

    def _find_model(self) -> payloads.Model:
        wanted = self._server.model_name
        try:
            listed = self._asker.get("/models", payloads.read_models, _CONTACT_ATTEMPTS).data
        except ApiStatusError as error:
            if wanted is None or error.status in {401, 403}:
                raise self._refusal(f"{error}" + ("" if wanted else "; name its model with --model-name")) from error
            return payloads.Model(id=wanted)
        except RetriesExhausted as error:
            raise self._refusal(f"{error}; is it running, and is --base-url right?") from error
        named = [model for model in listed if wanted in {None, model.id}]
        if len(named) != 1:
            names = ", ".join(f"{self._asker.key.masked(model.id)!a:.80}" for model in listed[:5]) or "none"
            raise self._refusal(f"lists these models: {names}; name one of them with --model-name")
        return named[0]

    def _find_style(self, model: payloads.Model) -> None:
        """Ask for one token in each way until the server takes one: token ids before text, with vLLM's additions."""
        ids = list(self._tokenizer.encode("The quick brown fox jumps over the lazy dog"))
        request = Request("", ids, 1)
        last: Exception | None = None
        for as_ids, extras in product((True, False), (True, False)):
            body = payloads.greedy(model.id, ids if as_ids else self._text(ids), request, extras)
            try:
                found = self._post(body, _CONTACT_ATTEMPTS, request.max_new_tokens).result()
            except ApiStatusError as error:
                if error.status in {401, 403, 404}:
                    raise self._refusal(f"{error} (/completions)") from error
                last = error
                continue
            except RetriesExhausted as error:
                if not error.answered:
                    self._model = None
                    raise self._refusal(f"{error}") from error
                last = error
                continue
            # A server that takes ids for text, or for prompts of one token each, counts others.
            if not as_ids or found.prompt_tokens in {None, len(ids)}:
                self._as_ids, self._extras = as_ids, extras
                # Some servers take any field and pass over it; those that know stop tokens say which one it was.
                self._stops = extras and "stop_reason" in found.choices[0].model_fields_set
                return
        self._model = None
        raise self._refusal(f"takes no completions: {last}")

    # -- asking -------------------------------------------------------------------------------------------------

    def _answers(self, batch: Sequence[Request], ask: Any) -> Iterator[Completion]:
        try:
            yield from self._ahead.results(batch, ask)
        except ApiStatusError as error:
            raise self._refusal(f"{error}") from error
        except (RetriesExhausted, CancelledError) as error:
            # Known again only after it has answered again: the cells that follow must not wait as long.
            self._model = None
            raise self._refusal(
                f"{error}, {self._server.attempts} times; what was measured is kept, run the same command again"
            ) from error

    def _continue(self, request: Request) -> Future[Completion]:
        model = self._known(request, request.max_new_tokens)
        prompt = list(request.input_ids) if self._as_ids else self._text(list(request.input_ids))
        body = payloads.greedy(model.id, prompt, request, self._extras)
        return self._post(body, self._server.attempts, request.max_new_tokens)

    def _echo(self, request: Request) -> Future[Completion]:
        model = self._known(request, 1)
        body = payloads.echoed(model.id, list(request.input_ids))
        return self._post(body, self._server.attempts, len(request.input_ids) + 1)

    def _post(self, body: dict[str, Any], attempts: int, tokens: int) -> Future[Completion]:
        """Send a request whose answer tells of so many tokens."""
        read = partial(self._read.read, body=body)
        return self._asker.post("/completions", body, read, attempts, payloads.size(tokens))

    def _known(self, request: Request, new: int) -> payloads.Model:
        assert self._model is not None
        needed, room = len(request.input_ids) + new, self._model.max_model_len
        if room is not None and needed > room:
            raise self._refusal(f"takes {room} tokens and {needed} are needed; start it with a longer context")
        return self._model

    def _text(self, ids: list[int]) -> str:
        """Return the text whose tokens are these ids; the server adds what its tokenizer begins prompts with."""
        decode = partial(self._tokenizer.decode, clean_up_tokenization_spaces=False)
        for skip in (False, True):
            text = decode(ids, skip_special_tokens=skip)
            if self._tokenizer.encode(text) == ids:
                return str(text)
        return str(decode(ids, skip_special_tokens=self._tokenizer.encode("")[:1] == ids[:1]))

    def _generation(self, request: Request, found: Completion, seconds: float) -> Generation:
        sent, read = len(request.input_ids), found.prompt_tokens
        # Text may be cut into tokens in another way than ours, but only a few of them.
        slack = 0 if self._as_ids else max(2, sent // 50)
        if read is not None and abs(read - sent) > slack:
            raise self._refusal(f"read {read} tokens of a prompt of {sent}; it cuts prompts or has another tokenizer")
        choice = found.choices[0]
        text, new = choice.text, found.completion_tokens
        if new is not None and new > request.max_new_tokens:
            raise self._refusal(f"says that it wrote {new} tokens; {request.max_new_tokens} were asked for")
        ids = self._tokens(text, request)
        reason = "length" if choice.finish_reason == "length" else "stop" if choice.stop_reason is not None else "eos"
        if reason == "length" and new is not None and new < request.max_new_tokens:
            raise self._refusal(f"ended after {new} of {request.max_new_tokens} new tokens; its context is too short")
        ends = frozenset() if self._stops else request.stop_ids
        if ends or new is None:
            stops = (place for place, token in enumerate(ids) if token in ends)
            end = next((place + 1 for place in stops if place >= request.min_new_tokens), None)
            if end is not None:
                text, reason, new = self._tokenizer.decode(ids[:end], skip_special_tokens=True), "stop", end
            new = min(len(ids), request.max_new_tokens) if new is None else new
        text = self._asker.key.masked_in_answer(text)
        return Generation(request.example_id, text, sent, new, reason, seconds)

    def _tokens(self, text: str, request: Request) -> list[int]:
        """Return the tokens of a text.

        Raises:
            UserError: no such text is written with the request's budget.
        """
        budget = request.max_new_tokens
        # First by its characters: what is refused for its length must not be cut into tokens.
        if len(text) <= _LONGEST_TOKEN * budget:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            # A model need not choose the tokens that its tokenizer does, and half a character comes back as three.
            if len(ids) <= 4 * budget + 16:
                return ids
        raise self._refusal(f"wrote {len(text)} characters, which is more than the {budget} tokens asked for can hold")

    def _refusal(self, why: str) -> UserError:
        return UserError(f"{self._server.base_url}: {why}")


def require_served_as_is(contestant: ModelUnderTest) -> None:
    """Refuse methods that a server would have to apply.

    Raises:
        UserError: the method changes the model's config, its weights or its code.
    """
    method, base = contestant.method, contestant.base
    entries = method.model_overrides(base, contestant.length)
    if not method.capabilities <= OpenAIEngine.supports or any(
        entries[key] != base.config.get(key) for key in entries if key not in _UNSAID
    ):
        raise UserError(
            f"{base.name}: a server runs its model as it stands and cannot apply {type(method).__name__}; write it "
            f"into a checkpoint with `longctx-bench export`, serve that, and name its folder as --model"
        )
