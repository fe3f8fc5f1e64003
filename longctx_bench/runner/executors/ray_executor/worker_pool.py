"""The workers of a run on a Ray cluster: starting them, hearing from them, and noticing that one is lost."""

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

_PATIENCE = 300.0
"""Seconds without any worker after which a run ends: a node may be coming back, or the cluster be taken by others."""
_FAILED_STARTS = 3
"""Workers that may die one after the other before they are ready."""


class Lost:
    """In place of an answer: the worker or its node is gone."""


@dataclass(eq=False)
class WorkerHandle(Generic[T]):
    """A worker that is ready."""

    worker: Any
    """Ray's handle of the actor."""
    facts: WorkerFacts
    loaded: Path | None = None
    """The checkpoint of the last task that it was given."""
    queue: deque[T] = field(default_factory=deque)
    """What it is to be given next."""
    in_flight: dict[Any, T] = field(default_factory=dict)
    """What it was given, by Ray's reference, in that order; it runs one after the other."""


class WorkerPool(Generic[T]):
    """Keeps as many workers as the layout says, as far as the cluster lets it."""

    def __init__(self, ray: Any, layout: WorkerLayout, engine: Mapping[str, Any], bundle: RegistryBundle) -> None:
        self._ray = ray
        self._arguments = (dict(engine), bundle)
        # SPREAD: a node that is lost takes as few workers with it as can be.
        options = {"num_cpus": layout.cpus, "num_gpus": layout.gpus, "scheduling_strategy": "SPREAD"}
        self._actor = ray.remote(**options, max_restarts=0, max_task_retries=0)(Worker)
        self._starting: dict[Any, Any] = {}
        self._failed_starts = 0
        self._notes: list[str] = []
        self._packages: dict[str, str] | None = None
        self._gone: list[WorkerHandle[T]] = []
        """Lost, and not yet told of."""
        self.members: list[WorkerHandle[T]] = []
        self._last_heard = monotonic()
        for _ in range(layout.workers):
            self._spawn()

    def first(self) -> WorkerFacts:
        """Wait for a worker.

        Raises:
            UserError: none can be started, or its engine cannot be made.
        """
        while not self.members:
            self._hear()
        return self.members[0].facts

    def wait_for_all(self) -> None:
        """Wait until no worker is being started any more.

        Raises:
            UserError: none can be started.
        """
        while self._starting:
            self._hear()

    def busy(self) -> bool:
        """Tell whether any worker has something to do."""
        return any(member.in_flight or member.queue for member in (*self.members, *self._gone))

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what one worker answers, the one with the least to do.

        Raises:
            UserError: it cannot answer, or no worker is left and none comes up.
        """
        while True:
            if not self.members:
                self._hear()
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
        """Wait a few seconds for results; return them, with None for what a worker was at when it was lost.

        A lost worker is no longer a member, what it was given is still its, and another one is being started.

        Raises:
            UserError: no worker is left and none comes up.
        """
        heard: list[tuple[WorkerHandle[T], T, Any]] = []
        for reference in [] if self._gone else self._hear():
            member = next((one for one in self.members if reference in one.in_flight), None)
            if member is None:
                continue  # Of a worker that was found to be lost a moment ago.
            answer = self._answer(reference)
            if isinstance(answer, Lost):
                self._drop(member)
            else:
                heard.append((member, member.in_flight.pop(reference), answer))
        for member in self._gone:
            heard += [(member, task, None) for task in (*member.in_flight.values(), *member.queue)][:1]
        self._gone.clear()
        for message in self._notes:
            note(message)
        self._notes.clear()
        return heard

    def close(self) -> None:
        """Stop all workers."""
        for worker in (*(member.worker for member in self.members), *self._starting.values()):
            self._ray.kill(worker)
        self.members.clear()
        self._starting.clear()

    def _drop(self, member: WorkerHandle[T]) -> None:
        """Let a lost worker go, and start another one in its place."""
        self.members.remove(member)
        self._gone.append(member)
        self._ray.kill(member.worker)  # It may be cut off and not dead: nothing may come back twice.
        self._spawn()

    def _spawn(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._starting[worker.start.remote()] = worker

    def _hear(self) -> list[Any]:
        """Wait a few seconds; let workers join that are ready and return the references of tasks that ended."""
        in_flight = [reference for member in self.members for reference in member.in_flight]
        waited = [*in_flight, *self._starting]
        if self.members:
            self._last_heard = monotonic()
        elif not self._starting or monotonic() - self._last_heard > _PATIENCE:
            raise UserError(
                "--executor ray: no worker could be started, or the cluster has no room for one (`ray status` shows "
                "what is taken); what was measured is kept, the same command goes on there"
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
            if self._failed_starts < _FAILED_STARTS:
                self._spawn()
            return
        error = facts.error()
        if not self.members:
            raise error
        self._notes.append(f"a worker could not be started: {error}")

    def _compare(self, facts: WorkerFacts) -> None:
        """See to it that all workers compute the same.

        Raises:
            UserError: they do not.
        """
        own = provenance.package_version()
        if facts.version != own:
            raise UserError(f"{facts.node}: has longctx-bench {facts.version}, and {own} runs here; install the same")
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
        """Return a task's result, or :class:`Lost`."""
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
