"""Connecting to a Ray cluster and placing engines on it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longctx_bench.core.errors import UserError

_MAX_CPUS = 8
"""Maximum CPUs per GPU worker, which only feeds the GPU."""


@dataclass(frozen=True)
class WorkerLayout:
    """Number of engines on a cluster and the resources of each."""

    workers: int
    cpus: int
    """CPUs per worker, which is also the number of torch threads."""
    gpus: int
    """GPUs per worker."""


def connect(address: str | None) -> tuple[Any, bool]:
    """Return the connected module ray, and whether this call connected it.

    An address of None uses the cluster that Ray finds, or starts one on this machine.

    Raises:
        UserError: Ray is not installed, or no cluster responds.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs the package 'ray': pip install 'longctx-bench[ray]'") from error
    if ray.is_initialized():
        return ray, False
    # No usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = address or os.environ.get("RAY_ADDRESS")
    where = f"--ray-address {named}" if named else "--executor ray"
    hint = "start one with `ray start --head`, or leave --ray-address out to use this machine"
    if named:
        _require_listener(named, f"{where}: no Ray cluster responds there; {hint}")
    try:
        # Worker output would break up the progress; errors come back as results.
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{where}: no Ray cluster can be reached or started ({reason}); {hint}") from error
    return ray, True


def layout(
    nodes: Sequence[Mapping[str, float]], workers: int | None, use_gpus: bool, gpus_each: int = 1
) -> WorkerLayout:
    """Return how many engines to start and the resources of each.

    Args:
        nodes: each living node's resources as Ray counts them (``CPU``, ``GPU``).
        workers: requested number; if None, one per GPU (or group of ``gpus_each``), or one per node without GPUs.
        use_gpus: False to use CPUs in any case.
        gpus_each: GPUs per engine.

    Raises:
        UserError: the cluster has too few resources.
    """
    gpus = [int(node.get("GPU", 0)) // gpus_each for node in nodes] if use_gpus else []
    if sum(gpus):
        if (workers or 0) > sum(gpus):
            raise UserError(f"--workers {workers}: the cluster has GPUs for {sum(gpus)}; each worker takes {gpus_each}")
        shares = [int(node.get("CPU", 0)) // n for node, n in zip(nodes, gpus, strict=True) if n]
        return WorkerLayout(workers or sum(gpus), min(_MAX_CPUS, *shares), gpus_each)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    num_workers = workers or sum(1 for node_cpus in cpus if node_cpus)
    if not num_workers or num_workers > sum(cpus):
        raise UserError(f"--workers {num_workers}: the cluster has {sum(cpus)} CPUs, and each worker needs one")
    # The largest share at which every worker still fits on a node.
    candidates = range(sum(cpus) // num_workers, 0, -1)
    share = next(share for share in candidates if sum(node_cpus // share for node_cpus in cpus) >= num_workers)
    return WorkerLayout(num_workers, share, 0)


def _require_listener(address: str, message: str) -> None:
    """Raise if nothing listens at HOST:PORT; Ray itself would retry for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise UserError(message) from error
