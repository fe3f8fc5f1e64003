"""Executors by name, imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.base import Executor

EXECUTORS = ("local", "ray")


def make_executor(
    name: str,
    engine: Mapping[str, Any],
    registry: Registry,
    workers: int | None = None,
    address: str | None = None,
) -> Executor:
    """Create an executor whose engines have the same settings.

    Args:
        name: ``local`` or ``ray``.
        engine: arguments of :func:`longctx_bench.engines.make_engine`.
        registry: resolves names.
        workers: engines on a Ray cluster; if None, one per GPU, or one per node without GPUs.
        address: of a Ray cluster; if None, the one that Ray finds, or a new one on this machine.

    Raises:
        UserError: unknown executor, an option that does not go with it, or it cannot be started.
    """
    if name == "ray":
        from longctx_bench.runner.executors.ray_executor.executor import RayExecutor

        return RayExecutor(engine, registry, workers, address)
    if name != "local":
        raise UserError(f"--executor {name}: choose {' or '.join(EXECUTORS)}")
    for option, value in (("--workers", workers), ("--ray-address", address)):
        if value is not None:
            raise UserError(f"{option} {value}: goes with --executor ray; add that, or leave {option} out")
    from longctx_bench.engines import make_engine
    from longctx_bench.runner.executors.local import LocalExecutor

    return LocalExecutor(make_engine(**engine), registry)
