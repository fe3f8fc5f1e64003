"""Reaching a Ray cluster, and how many engines it has room for."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longctx_bench.core.errors import UserError

_MOST_CPUS = 8
"""CPUs that a worker with a GPU asks for at most: it only feeds the GPU."""


@dataclass(frozen=True)
class WorkerLayout:
    """Engines on a cluster, all alike."""

    workers: int
    cpus: int
    """CPUs of each; Ray lets torch use so many threads."""
    gpus: int
    """GPUs of each."""


def connect(address: str | None) -> tuple[Any, bool]:
    """Return the module ray, connected, and whether it was this that connected it.

    An address of None takes the cluster that Ray finds, or starts one on this machine.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs the package 'ray': pip install 'longctx-bench[ray]'") from error
    if ray.is_initialized():
        return ray, False
    # A benchmark tells nobody that it runs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = address or os.environ.get("RAY_ADDRESS")
    where = f"--ray-address {named}" if named else "--executor ray"
    hint = "start one with `ray start --head`, or leave --ray-address out to use this machine"
    if named:
        _refuse_silence(named, f"{where}: no Ray cluster answers there; {hint}")
    try:
        # Workers' output would stand between the lines of the progress; their errors come back as results.
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{where}: no Ray cluster can be reached or started ({reason}); {hint}") from error
    return ray, True


def layout(
    nodes: Sequence[Mapping[str, float]], workers: int | None, use_gpus: bool, gpus_each: int = 1
) -> WorkerLayout:
    """Return how many engines to start and what each gets.

    Args:
        nodes: each living node's resources as Ray counts them (``CPU``, ``GPU``).
        workers: wanted; one a GPU (or group of ``gpus_each``) when None, without GPUs one a node.
        use_gpus: False where the engines are to compute on CPUs in any case.
        gpus_each: GPUs an engine.

    Raises:
        UserError: more are wanted than there is room for.
    """
    gpus = [int(node.get("GPU", 0)) // gpus_each for node in nodes] if use_gpus else []
    if sum(gpus):
        if (workers or 0) > sum(gpus):
            raise UserError(f"--workers {workers}: the cluster has GPUs for {sum(gpus)}; each worker takes {gpus_each}")
        shares = [int(node.get("CPU", 0)) // n for node, n in zip(nodes, gpus, strict=True) if n]
        return WorkerLayout(workers or sum(gpus), min(_MOST_CPUS, *shares), gpus_each)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    wanted = workers or sum(1 for own in cpus if own)
    if not wanted or wanted > sum(cpus):
        raise UserError(f"--workers {wanted}: the cluster has {sum(cpus)} CPUs, and each worker needs one")
    # The largest share at which every worker still finds a node with room.
    share = next(each for each in range(sum(cpus) // wanted, 0, -1) if sum(own // each for own in cpus) >= wanted)
    return WorkerLayout(wanted, share, 0)


def _refuse_silence(address: str, message: str) -> None:
    """Ask whether anything listens at HOST:PORT; Ray itself would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise UserError(message) from error
