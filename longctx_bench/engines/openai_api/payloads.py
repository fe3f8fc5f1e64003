"""Request payloads and validated responses of the OpenAI completions API."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from longctx_bench.core.types import Request

_ROUNDING = 1e-3
"""How far above 0 rounding may lift a log-probability."""


class Model(BaseModel):
    """An entry of ``/models``."""

    id: str = Field(max_length=500)
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of prompt and completion that it takes, where the server says so (vLLM)."""


class Models(BaseModel):
    """The response of ``/models``."""

    data: list[Model]


class LogProbs(BaseModel):
    """Log-probabilities per token, in nats."""

    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None = None


class Choice(BaseModel):
    """One completion."""

    text: str
    finish_reason: str
    stop_reason: int | str | None = None
    """The stop token, where the server says so (vLLM)."""
    logprobs: LogProbs | None = None


class Usage(BaseModel):
    """Token counts of the server."""

    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class Completion(BaseModel):
    """The response of ``/completions``."""

    id: str = ""
    choices: list[Choice]
    usage: Usage | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Prompt tokens as the server counts them; None where it does not say."""
        return self.usage.prompt_tokens if self.usage is not None else None

    @property
    def completion_tokens(self) -> int | None:
        """Generated tokens; None where the server does not say."""
        return self.usage.completion_tokens if self.usage is not None else None


def parse_models(content: bytes) -> Models:
    """Parse the response of ``/models``.

    Raises:
        ValueError: it is not valid.
    """
    return Models.model_validate_json(content)


def parse_completion(content: bytes) -> Completion:
    """Parse the response of ``/completions``.

    Raises:
        ValueError: it is not valid, or has no finished choice.
    """
    completion = Completion.model_validate_json(content)
    if len(completion.choices) != 1 or completion.choices[0].finish_reason not in {"stop", "length"}:
        raise ValueError("no finished choice")
    return completion


class ResponseParser:
    """Parses the responses of one server and detects those that belong to another request.

    vLLM copies the id of a request into the ``id`` of its response; once a server did so, every response must have it.
    From other servers the same bytes for two different requests are refused, unless all ids of the server are equal.
    """

    def __init__(self) -> None:
        self._echoes_request_ids = False
        self._ids = set[str]()
        self._requests = dict[bytes, bytes]()

    def parse(self, content: bytes, request_id: str, body: Mapping[str, Any]) -> Completion:
        """Parse a response as :func:`parse_completion` does.

        Args:
            content: of the response.
            request_id: of the request (``X-Request-Id``).
            body: of the request.

        Raises:
            ValueError: it is not valid, or belongs to another request.
        """
        completion = parse_completion(content)
        self._echoes_request_ids |= request_id in completion.id
        if self._echoes_request_ids:
            if request_id not in completion.id:
                raise ValueError("the answer to another request")
            return completion
        if len(self._ids) < 2:
            self._ids.add(completion.id)
        request = _digest(json.dumps(body).encode())
        if self._requests.setdefault(_digest(content), request) != request and len(self._ids) == 2:
            raise ValueError("the answer to another request")
        return completion


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def generation_payload(model: str, prompt: list[int] | str, request: Request, extras: bool) -> dict[str, Any]:
    """Return the payload for a greedy completion.

    Args:
        model: the server's name for it.
        prompt: token ids or text.
        request: its budget and its stop tokens.
        extras: whether the server knows vLLM's extra fields. They set stop tokens, and switch off the penalties of a
            checkpoint's generation_config.
    """
    body: dict[str, Any] = {
        "model": model, "prompt": prompt, "max_tokens": request.max_new_tokens, "temperature": 0, "n": 1,
        "stream": False,
    }  # fmt: skip
    if extras:
        body |= {
            "stop_token_ids": sorted(request.stop_ids), "min_tokens": request.min_new_tokens,
            "include_stop_str_in_output": True, "repetition_penalty": 1.0,
        }  # fmt: skip
    return body


def max_response_bytes(tokens: int) -> int:
    """Return the bytes that a response on so many tokens may have: texts, log-probabilities and alternatives."""
    return 1024 * tokens


def logprobs_payload(model: str, prompt: list[int]) -> dict[str, Any]:
    """Return the payload for the log-probabilities of a prompt's tokens."""
    return {
        "model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1,
        "stream": False,
    }  # fmt: skip


def parse_prompt_logprobs(
    completion: Completion, num_prompt_tokens: int, num_scored: int
) -> tuple[list[float], bool] | None:
    """Return the losses (nats) of a prompt's last tokens, and whether each was the most likely token.

    Args:
        completion: the response to :func:`logprobs_payload`.
        num_prompt_tokens: tokens of the prompt.
        num_scored: tokens at its end to score.

    Returns:
        None where the server does not give log-probabilities for every token.
    """
    logprobs = completion.choices[0].logprobs
    # One token is generated behind the prompt; some servers leave it out.
    tokens, scored = num_prompt_tokens, num_scored
    if logprobs is None or len(logprobs.token_logprobs) not in {tokens, tokens + 1}:
        return None
    suffix = logprobs.token_logprobs[tokens - scored : tokens]
    values = [value for value in suffix if value is not None and math.isfinite(value) and value < _ROUNDING]
    if len(values) != scored:
        return None
    tops = (logprobs.top_logprobs or [])[tokens - scored : tokens]
    is_greedy = len(tops) == scored and all(
        value >= max((best for best in (top or {}).values() if best is not None), default=math.inf)
        for value, top in zip(values, tops, strict=True)
    )
    return [-value for value in values], is_greedy
