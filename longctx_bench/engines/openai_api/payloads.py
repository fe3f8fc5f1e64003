"""OpenAI-compatible completions as data: what a server answers, checked, and what is asked of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from longctx_bench.core.types import Request

_ROUNDED = 1e-3
"""Above 0, how far rounding may lift the logarithm of a probability."""


class Model(BaseModel):
    """An entry of ``/models``."""

    id: str = Field(max_length=500)
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer that it takes, where the server says so (vLLM)."""


class Models(BaseModel):
    """The answer of ``/models``."""

    data: list[Model]


class LogProbs(BaseModel):
    """Log-probabilities by token, in nats."""

    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None = None


class Choice(BaseModel):
    """One continuation."""

    text: str
    finish_reason: str
    stop_reason: int | str | None = None
    """The stop token, where the server says so (vLLM)."""
    logprobs: LogProbs | None = None


class Usage(BaseModel):
    """Tokens as the server counted them."""

    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class Completion(BaseModel):
    """The answer of ``/completions``."""

    id: str = ""
    choices: list[Choice]
    usage: Usage | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt as the server read it; None where it does not say."""
        return self.usage.prompt_tokens if self.usage is not None else None

    @property
    def completion_tokens(self) -> int | None:
        """Tokens that were generated; None where the server does not say."""
        return self.usage.completion_tokens if self.usage is not None else None


def read_models(content: bytes) -> Models:
    """Parse the answer of ``/models``; ValueError where it is none."""
    return Models.model_validate_json(content)


def read_completion(content: bytes) -> Completion:
    """Parse the answer of ``/completions``; ValueError where it is none or holds no finished choice."""
    found = Completion.model_validate_json(content)
    if len(found.choices) != 1 or found.choices[0].finish_reason not in {"stop", "length"}:
        raise ValueError("no finished choice")
    return found


class Answers:
    """Reads the answers of one server, and notices what it answers to another request or twice.

    vLLM takes the name of a request over into the ``id`` of its answer; from a server that does so once, every answer
    must have it. Of others the same bytes for two different requests are refused, unless all ids of the server are the
    same.
    """

    def __init__(self) -> None:
        self._repeats_names = False
        self._ids = set[str]()
        self._requests = dict[bytes, bytes]()

    def read(self, content: bytes, name: str, body: Mapping[str, Any]) -> Completion:
        """Parse an answer as :func:`read_completion`.

        Args:
            content: the answer.
            name: of the request.
            body: of the request.

        Raises:
            ValueError: as there, or it answers another request.
        """
        found = read_completion(content)
        self._repeats_names |= name in found.id
        if self._repeats_names:
            if name not in found.id:
                raise ValueError("the answer to another request")
            return found
        if len(self._ids) < 2:
            self._ids.add(found.id)
        asked = _digest(json.dumps(body).encode())
        if self._requests.setdefault(_digest(content), asked) != asked and len(self._ids) == 2:
            raise ValueError("the answer to another request")
        return found


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def greedy(model: str, prompt: list[int] | str, request: Request, extras: bool) -> dict[str, Any]:
    """Return the body that asks for a greedy continuation.

    Args:
        model: the server's name for it.
        prompt: token ids or text.
        request: its budget and its stop tokens.
        extras: whether the server knows vLLM's additions. They say which tokens stop, and switch off the penalties
            that a model's own generation_config may bring.
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


def size(tokens: int) -> int:
    """Return the bytes that an answer about so many tokens may take: of each its text, its number and the likeliest."""
    return 1024 * tokens


def echoed(model: str, prompt: list[int]) -> dict[str, Any]:
    """Return the body that asks for the log-probabilities of a prompt's own tokens."""
    return {
        "model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1,
        "stream": False,
    }  # fmt: skip


def tail(found: Completion, tokens: int, scored: int) -> tuple[list[float], bool] | None:
    """Return the losses (nats) of a prompt's last tokens and whether each was the likeliest.

    Args:
        found: the answer to :func:`echoed`.
        tokens: of the prompt.
        scored: how many at its end are wanted.

    Returns:
        None where the server does not give them for every token.
    """
    given = found.choices[0].logprobs
    # One token more than the prompt's own is generated; some servers leave it out.
    if given is None or len(given.token_logprobs) not in {tokens, tokens + 1}:
        return None
    own = given.token_logprobs[tokens - scored : tokens]
    values = [value for value in own if value is not None and math.isfinite(value) and value < _ROUNDED]
    if len(values) != scored:
        return None
    tops = (given.top_logprobs or [])[tokens - scored : tokens]
    likeliest = len(tops) == scored and all(
        value >= max((best for best in (top or {}).values() if best is not None), default=math.inf)
        for value, top in zip(values, tops, strict=True)
    )
    return [-value for value in values], likeliest
