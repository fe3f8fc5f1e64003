"""What a user says about a server: where it is, which of its models is meant, how hard it may be asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from longctx_bench.core.errors import UserError

KEY_VARIABLES = ("LONGCTX_BENCH_API_KEY", "OPENAI_API_KEY")
"""Where a key is looked for, in this order."""


@dataclass(frozen=True)
class ServerConfig:
    """A server with an OpenAI-compatible completions endpoint.

    Raises:
        UserError: the URL is none, or holds a name, password or query, where keys would end up in results.
    """

    base_url: str
    """``http://host:port`` or ``https://host/v1``; ``/v1`` is added where there is no path."""
    model_name: str | None = None
    """The server's name for the model; the only one that it lists when None."""
    concurrency: int = 16
    """Requests under way at once."""
    timeout: float = 600.0
    """Seconds without an answer after which a request is sent again; a whole answer may take twice as long."""
    attempts: int = 8
    """How often a request is sent before the run gives up."""
    backoff: float = 0.5
    """Seconds before the second attempt, about; they double with each, up to 30."""
    unencrypted_key: bool = False
    """Whether the key may be sent over plain http to another machine, too."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            named = False
        if not named or parts.scheme not in {"http", "https"} or not self.base_url.isprintable():
            raise UserError(f"--base-url {self.base_url!a:.80}: expected http://HOST:PORT or https://HOST/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"--base-url: give the address of {parts.hostname} alone; a key belongs into {KEY_VARIABLES[0]}"
            )

    @property
    def root(self) -> str:
        """Return the URL that endpoints are added to, without a slash at its end."""
        path = urlsplit(self.base_url).path.rstrip("/")
        return self.base_url.rstrip("/") + ("" if path else "/v1")

    @property
    def host(self) -> str:
        """Return the name or address of the machine."""
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
        """Whether a key may be sent: nobody on the way can read it, or the user allows that."""
        return self.unencrypted_key or self.is_loopback or urlsplit(self.base_url).scheme == "https"


def key_from_environment() -> str | None:
    """Return the user's key; it goes into a header and nowhere else.

    Raises:
        UserError: it holds what no header can carry.
    """
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            if not (key.isascii() and key.isprintable()):
                raise UserError(f"{name}: holds characters that no key has; set it again")
            return key
    return None
