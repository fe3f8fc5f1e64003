"""Worker pool of a Ray cluster: starts workers, collects results, replaces lost workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Generic, TypeVar

from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.runner.executors.base import Note
from longctx_bench.runner.executors.ray_executor.cluster import WorkerLayout
from longctx_bench.runner.executors.ray_executor.registry_bundle import RegistryBundle
from longctx_bench.runner.executors.ray_executor.worker import Failure, Worker, WorkerFacts

T = TypeVar("T")

_START_TIMEOUT = 300.0
"""Seconds without any worker after which a run ends; a node may be restarting, or the cluster be busy."""
_MAX_FAILED_STARTS = 3
"""Consecutive workers that may die before they are ready."""


class Lost:
    """Instead of a result: the worker or its node was lost."""


@dataclass(eq=False)
class WorkerHandle(Generic[T]):
    """A ready worker."""

    worker: Any
    """The Ray actor handle."""
    facts: WorkerFacts
    loaded: Path | None = None
    """The checkpoint of its last task."""
    queue: deque[T] = field(default_factory=deque)
    """Tasks assigned but not submitted."""
    in_flight: dict[Any, T] = field(default_factory=dict)
    """Submitted tasks by Ray object reference, in order; the worker runs them sequentially."""


class WorkerPool(Generic[T]):
    """Keeps up the layout's number of workers, as far as the cluster allows."""

    def __init__(self, ray: Any, layout: WorkerLayout, engine: Mapping[str, Any], bundle: RegistryBundle) -> None:
        self._ray = ray
        self._arguments = (dict(engine), bundle)
        # SPREAD: a lost node takes as few workers with it as possible.
        options = {"num_cpus": layout.cpus, "num_gpus": layout.gpus, "scheduling_strategy": "SPREAD"}
        self._actor = ray.remote(**options, max_restarts=0, max_task_retries=0)(Worker)
        self._starting: dict[Any, Any] = {}
        self._failed_starts = 0
        self._notes: list[str] = []
        self._packages: dict[str, str] | None = None
        self._gone: list[WorkerHandle[T]] = []
        """Lost and not yet reported."""
        self.members: list[WorkerHandle[T]] = []
        self._last_heard = monotonic()
        for _ in range(layout.workers):
            self._spawn()

    def first(self) -> WorkerFacts:
        """Wait for the first worker.

        Raises:
            UserError: none can be started, or its engine cannot be created.
        """
        while not self.members:
            self._poll()
        return self.members[0].facts

    def wait_for_all(self) -> None:
        """Wait until all workers have started.

        Raises:
            UserError: none can be started.
        """
        while self._starting:
            self._poll()

    def busy(self) -> bool:
        """Whether any worker has tasks."""
        return any(member.in_flight or member.queue for member in (*self.members, *self._gone))

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the least busy worker and return its result.

        Raises:
            UserError: the call fails, or no worker is left and none can be started.
        """
        while True:
            if not self.members:
                self._poll()
                continue
            member = min(self.members, key=lambda one: len(one.in_flight))
            answer = self._answer(getattr(member.worker, method).remote(*arguments))
            if isinstance(answer, Lost):
                self._drop(member)
                continue
            if isinstance(answer, Failure):
                raise answer.error()
            return answer

    def wait(self, note: Note) -> list[tuple[WorkerHandle[T], T, Any]]:
        """Wait a few seconds for results; a lost worker yields its running task with None.

        A lost worker leaves the pool with its tasks still attached, and a replacement is started.

        Raises:
            UserError: no worker is left and none can be started.
        """
        results: list[tuple[WorkerHandle[T], T, Any]] = []
        for reference in [] if self._gone else self._poll():
            member = next((worker for worker in self.members if reference in worker.in_flight), None)
            if member is None:
                continue  # Its worker was lost a moment ago.
            answer = self._answer(reference)
            if isinstance(answer, Lost):
                self._drop(member)
            else:
                results.append((member, member.in_flight.pop(reference), answer))
        for member in self._gone:
            results += [(member, task, None) for task in (*member.in_flight.values(), *member.queue)][:1]
        self._gone.clear()
        for message in self._notes:
            note(message)
        self._notes.clear()
        return results

    def close(self) -> None:
        """Stop all workers."""
        for worker in (*(member.worker for member in self.members), *self._starting.values()):
            self._ray.kill(worker)
        self.members.clear()
        self._starting.clear()

    def _drop(self, member: WorkerHandle[T]) -> None:
        """Remove a lost worker and start a replacement."""
        self.members.remove(member)
        self._gone.append(member)
        self._ray.kill(member.worker)  # It may only be unreachable: no result may arrive twice.
        self._spawn()

    def _spawn(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._starting[worker.start.remote()] = worker

    def _poll(self) -> list[Any]:
        """Wait a few seconds; add ready workers and return the references of finished tasks."""
        in_flight = [reference for member in self.members for reference in member.in_flight]
        waited = [*in_flight, *self._starting]
        if self.members:
            self._last_heard = monotonic()
        elif not self._starting or monotonic() - self._last_heard > _START_TIMEOUT:
            raise UserError(
                "--executor ray: no worker could be started, or the cluster has no room for one (see `ray status`); "
                "results so far are kept, repeat the command to resume"
            )
        self._ray.wait(waited, num_returns=1, timeout=5.0)
        ended, _ = self._ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in ended:
            if reference in self._starting:
                self._join(reference, self._starting.pop(reference))
        over = set(ended)
        return [reference for reference in in_flight if reference in over]

    def _join(self, reference: Any, worker: Any) -> None:
        facts = self._answer(reference)
        if isinstance(facts, WorkerFacts):
            self._failed_starts = 0
            self._compare(facts)
            self.members.append(WorkerHandle(worker, facts))
            return
        self._ray.kill(worker)
        if isinstance(facts, Lost):
            self._failed_starts += 1
            if self._failed_starts < _MAX_FAILED_STARTS:
                self._spawn()
            return
        error = facts.error()
        if not self.members:
            raise error
        self._notes.append(f"a worker could not be started: {error}")

    def _compare(self, facts: WorkerFacts) -> None:
        """Check that all workers have the same versions and dtype.

        Raises:
            UserError: a worker differs.
        """
        version = provenance.package_version()
        if facts.version != version:
            raise UserError(
                f"{facts.node}: has longctx-bench {facts.version}, and {version} runs here; install the same"
            )
        if self.members and facts.dtype != (other := self.members[0].facts).dtype:
            raise UserError(
                f"--dtype auto: is {other.dtype} on {other.node} and {facts.dtype} on {facts.node}; name one of them"
            )
        versions = provenance.environment()["packages"]
        differ = sorted(name for name in facts.packages.keys() & versions if facts.packages[name] != versions[name])
        if differ:
            name = differ[0]
            self._notes.append(
                f"{facts.node}: has {name} {facts.packages[name]}, and {versions[name]} is here; results may differ"
            )

    def _answer(self, reference: Any) -> Any:
        """Return a task's result, a :class:`Failure`, or :class:`Lost`."""
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            return self._ray.get(reference)
        except RayTaskError as error:
            return Failure("bug", f"{type(error.cause).__name__}: {error.cause}", str(error))
        except RayActorError as error:
            if "No module named 'longctx_bench" in str(error):
                return Failure("user", "longctx-bench cannot be imported on a node of the cluster; install it there")
            return Lost()
        except RayError:
            return Lost()
