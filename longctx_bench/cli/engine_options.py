"""The options of ``run`` that say what runs the model, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from longctx_bench.cli.options import added, engine_options
from longctx_bench.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

_CHOICE = (
    click.option("--engine", "name", default="hf", show_default=True,
                 metavar="NAME", help="What runs the model: hf, vllm, openai, echo, or one of an installed package."),
    click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE",
                 help="An option of the engine's own; may be repeated."),
    engine_options,
    click.option("--tensor-parallel", default=1, show_default=True, type=click.IntRange(min=1), metavar="GPUS",
                 help="GPUs that share each layer, with --engine vllm."),
    click.option("--compile", "compiled", is_flag=True,
                 help="Fuse a model's small kernels, with --engine hf: for long runs on a GPU."),
    click.option("--base-url", metavar="URL",
                 help="The server of --engine openai, such as http://localhost:8000; a key in LONGCTX_BENCH_API_KEY or "
                 "OPENAI_API_KEY, which is sent over https or to this machine only."),
    click.option("--unencrypted-key", is_flag=True,
                 help="Send the key over plain http to another machine, too, where others may read it."),
    click.option("--model-name", metavar="NAME", help="The server's name for the model; the only one by default."),
    click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1, 1024),
                 help="Requests to a server at once."),
    click.option("--request-timeout", default=600.0, show_default=True, type=click.FloatRange(min=0.1),
                 metavar="SECONDS",
                 help="Silence of a server after which a request is sent again; an answer may take twice as long."),
)  # fmt: skip

_EXECUTOR = (
    click.option("--executor", default="local", show_default=True, type=click.Choice(["local", "ray"]),
                 help="Where batches run: in this process, or on the workers of a Ray cluster."),
    click.option("--workers", type=click.IntRange(min=1),
                 help="Engines on the Ray cluster; by default one a GPU, without GPUs one a node."),
    click.option("--ray-address", metavar="HOST:PORT",
                 help="Of the Ray cluster; by default the one that Ray finds, or a new one on this machine."),
)  # fmt: skip


def engine_choice(command: F) -> F:
    """Add the options that :func:`engine_arguments` reads."""
    return added(command, _CHOICE)


def executor_options(command: F) -> F:
    """Add the options that say where batches run."""
    return added(command, _EXECUTOR)


def engine_arguments(
    base_url: str | None,
    model_name: str | None,
    concurrency: int,
    request_timeout: float,
    unencrypted_key: bool,
    engine_args: tuple[str, ...],
    **engine: Any,
) -> dict[str, Any]:
    """Return the arguments of :func:`longctx_bench.engines.make_engine` from the shared options.

    Raises:
        UserError: the URL is none, or an argument of the engine has no value.
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
