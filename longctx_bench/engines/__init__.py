"""Engines: from token ids to greedy text and log-likelihoods, by transformers, vLLM or a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.core.specs import Spec, validate
from longctx_bench.engines.base import Engine, EngineInfo
from longctx_bench.engines.openai_api.config import ServerConfig

ENGINES: PluginRegistry[type[Engine]] = PluginRegistry(
    "engine",
    {
        "hf": "longctx_bench.engines.hf.engine:HFEngine",
        "vllm": "longctx_bench.engines.vllm_backend.engine:VLLMEngine",
        "openai": "longctx_bench.engines.openai_api.engine:OpenAIEngine",
        "echo": "longctx_bench.engines.echo:EchoEngine",
    },
)
"""Engine classes by name, imported when they are used; their options are their keyword arguments."""

_UNSET = {"device": "auto", "dtype": "auto", "batch_tokens": None, "server": None, "tensor_parallel": 1,
          "compiled": False}  # fmt: skip
"""Defaults of the options that several engines share: they are not passed on."""
_FLAGS = {"compiled": "--compile", "server": "--base-url"}


def make_engine(name: str, arguments: Mapping[str, Any] | None = None, **options: Any) -> Engine:
    """Return an engine ready to load checkpoints.

    Args:
        name: ``hf``, ``vllm``, ``openai``, ``echo``, or one that was registered.
        arguments: options of this engine (:attr:`~longctx_bench.engines.base.Engine.Options`), as ``--engine-arg``
            gives them.
        options: options that several engines share; ignored at their defaults.

    Raises:
        UserError: no such engine or option, or the engine cannot run here.
    """
    if name not in ENGINES:
        raise UserError(f"--engine {name}: choose {', '.join(ENGINES.names())}")
    engine_class = ENGINES[name]
    shared_options = {key: value for key, value in options.items() if value != _UNSET.get(key)}
    for key in shared_options.keys() - engine_class.Options.model_fields.keys():
        owners = [engine for engine in ENGINES.shipped if key in ENGINES[engine].Options.model_fields]
        flag = _FLAGS.get(key, f"--{key.replace('_', '-')}")
        raise UserError(f"{flag}: goes with --engine {' or '.join(owners)}, not with {name}")
    validated: Spec = validate(
        engine_class.Options, {**shared_options, **(arguments or {})}, f"--engine {name}: --engine-arg"
    )
    return engine_class(**{key: getattr(validated, key) for key in engine_class.Options.model_fields})


def check_server(engine: EngineInfo) -> None:
    """Check that the server of an engine that has one can be reached, before prompts are made for it.

    Raises:
        UserError: it cannot be reached, or does not have the model.
    """
    check = getattr(engine, "check_server", None)
    if check is not None:
        check()


__all__ = ["ENGINES", "Engine", "EngineInfo", "ServerConfig", "check_server", "make_engine"]
