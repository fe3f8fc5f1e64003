"""Server settings: URL, model name, concurrency, timeout, API key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from longctx_bench.core.errors import UserError

KEY_VARIABLES = ("LONGCTX_BENCH_API_KEY", "OPENAI_API_KEY")
"""Environment variables with the API key; the first that is set counts."""


@dataclass(frozen=True)
class ServerConfig:
    """A server with an OpenAI-compatible completions endpoint.

    Raises:
        UserError: the URL is invalid, or has a user name, password or query, so that keys would end up in results.
    """

    base_url: str
    """``http://host:port`` or ``https://host/v1``; ``/v1`` is added where there is no path."""
    model_name: str | None = None
    """The server's name for the model; the only model that it lists when None."""
    concurrency: int = 16
    """Requests in flight at a time."""
    timeout: float = 600.0
    """Read timeout in seconds, after which a request is retried; a whole response may take twice as long."""
    attempts: int = 8
    """How often a request is sent before the run fails."""
    backoff: float = 0.5
    """Seconds before the second attempt, roughly; doubled with each attempt, up to 30."""
    unencrypted_key: bool = False
    """Whether the key may also be sent over plain http to another machine."""

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.base_url)
            is_valid = bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            is_valid = False
        if not is_valid or url.scheme not in {"http", "https"} or not self.base_url.isprintable():
            raise UserError(f"--base-url {self.base_url!a:.80}: expected http://HOST:PORT or https://HOST/v1")
        if url.username or url.password or url.query or url.fragment:
            raise UserError(
                f"--base-url: give only the address of {url.hostname}; set the API key in {KEY_VARIABLES[0]}"
            )

    @property
    def root(self) -> str:
        """Return the base URL of the endpoints, without a trailing slash."""
        path = urlsplit(self.base_url).path.rstrip("/")
        return self.base_url.rstrip("/") + ("" if path else "/v1")

    @property
    def host(self) -> str:
        """Return the host name or address."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether requests stay on this machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def takes_key(self) -> bool:
        """Whether the key may be sent: nobody can read it on the way, or the user allows that."""
        return self.unencrypted_key or self.is_loopback or urlsplit(self.base_url).scheme == "https"


def key_from_environment() -> str | None:
    """Return the user's API key; it goes into a header and nowhere else.

    Raises:
        UserError: it has characters that no header can carry.
    """
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            if not (key.isascii() and key.isprintable()):
                raise UserError(f"{name}: has characters that no API key has; set it again")
            return key
    return None
