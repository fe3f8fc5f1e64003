"""Options of ``run`` that choose the engine and the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from longctx_bench.cli.options import add_options, engine_options
from longctx_bench.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

_CHOICE = (
    click.option("--engine", "name", default="hf", show_default=True,
                 metavar="NAME", help="Inference engine: hf, vllm, openai, echo, or one from an installed package."),
    click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE",
                 help="Engine-specific option; may be repeated."),
    engine_options,
    click.option("--tensor-parallel", default=1, show_default=True, type=click.IntRange(min=1), metavar="GPUS",
                 help="Tensor-parallel GPUs, with --engine vllm."),
    click.option("--compile", "compiled", is_flag=True,
                 help="Use torch.compile, with --engine hf; pays off on long GPU runs."),
    click.option("--base-url", metavar="URL",
                 help="Server URL for --engine openai, e.g. http://localhost:8000. The API key is read from "
                 "LONGCTX_BENCH_API_KEY or OPENAI_API_KEY and sent over https or to this machine only."),
    click.option("--unencrypted-key", is_flag=True,
                 help="Also send the API key to other machines over plain http, unencrypted."),
    click.option("--model-name", metavar="NAME", help="Model name on the server (default: its only model)."),
    click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1, 1024),
                 help="Concurrent requests to the server."),
    click.option("--request-timeout", default=600.0, show_default=True, type=click.FloatRange(min=0.1),
                 metavar="SECONDS",
                 help="Read timeout before a request is retried; a whole response may take twice that."),
)  # fmt: skip

_EXECUTOR = (
    click.option("--executor", default="local", show_default=True, type=click.Choice(["local", "ray"]),
                 help="Run batches in this process (local) or on a Ray cluster (ray)."),
    click.option("--workers", type=click.IntRange(min=1),
                 help="Engines on the Ray cluster (default: one per GPU, or one per node without GPUs)."),
    click.option("--ray-address", metavar="HOST:PORT",
                 help="Ray cluster address (default: the one Ray finds, or a new one on this machine)."),
)  # fmt: skip


def engine_choice(command: F) -> F:
    """Add the options that :func:`engine_arguments` reads."""
    return add_options(command, _CHOICE)


def executor_options(command: F) -> F:
    """Add --executor, --workers and --ray-address."""
    return add_options(command, _EXECUTOR)


def engine_arguments(
    base_url: str | None,
    model_name: str | None,
    concurrency: int,
    request_timeout: float,
    unencrypted_key: bool,
    engine_args: tuple[str, ...],
    **engine: Any,
) -> dict[str, Any]:
    """Convert the shared options to arguments of :func:`longctx_bench.engines.make_engine`.

    Raises:
        UserError: the URL is invalid, or an --engine-arg is not KEY=VALUE.
    """
    from longctx_bench.engines.openai_api.config import ServerConfig

    arguments = {}
    for text in engine_args:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UserError(f"--engine-arg {text}: expected KEY=VALUE")
        arguments[key] = value
    engine |= {"arguments": arguments}
    if base_url is None:
        return {**engine, "server": None}
    server = ServerConfig(base_url, model_name, concurrency, request_timeout, unencrypted_key=unencrypted_key)
    return {**engine, "server": server}
