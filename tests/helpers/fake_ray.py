"""Ray as the executor sees it, in this process: actors run their calls in order, and die when a test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class Reference:
    """What a call will return."""

    def __init__(self, actor: Actor, method: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.method, self.arguments = actor, method, arguments
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None

    def settle(self, value: Any = None, error: Exception | None = None) -> None:
        self.done, self.value, self.error = True, value, error


class Call:
    """A method of an actor."""

    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> Reference:
        reference = Reference(self._actor, self._name, arguments)
        self._actor.waiting.append(reference)
        return reference


class Actor:
    """A handle of a worker."""

    def __init__(self, made: Any, number: int) -> None:
        self.made, self.number = made, number
        self.waiting: deque[Reference] = deque()
        self.dead = False

    def __getattr__(self, name: str) -> Call:
        return Call(self, name)


class StandInRay:
    """The functions of the module ray that are used.

    Args:
        cpus: of the one node.
        dies: told of each call that an actor is about to run; True kills the actor with the call in hand.
    """

    def __init__(self, cpus: int = 2, dies: Callable[[Reference], bool] = lambda reference: False) -> None:
        self.cpus, self.dies = cpus, dies
        self.actors: list[Actor] = []
        self.killed: list[Actor] = []
        self.options: dict[str, Any] = {}
        self.lost: list[Reference] = []
        """Calls that an actor had in hand when it died."""
        self.left = False
        self._waits = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": False, "Resources": {"CPU": 64}}]

    def shutdown(self) -> None:
        self.left = True

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.options = options
        ray = self

        def decorated(kind: type) -> Any:
            class Factory:
                @staticmethod
                def remote(*arguments: Any) -> Actor:
                    ray.actors.append(Actor(kind(*arguments), len(ray.actors)))
                    return ray.actors[-1]

            return Factory

        return decorated

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)
        self.end(actor)

    def end(self, actor: Actor) -> None:
        """Let an actor die: what it was to do comes back as an error."""
        from ray.exceptions import RayActorError

        actor.dead = True
        while actor.waiting:
            actor.waiting.popleft().settle(error=RayActorError())

    def wait(self, references: list[Reference], num_returns: int, timeout: float) -> Any:
        assert not timeout or num_returns == 1, "nobody waits until all have answered"
        # As on a cluster: waiting with a timeout is when others get on.
        if timeout and not any(reference.done for reference in references):
            for actor in self.actors:
                self._step(actor)
        ready = [reference for reference in references if reference.done][:num_returns]
        self._count()
        return ready, [reference for reference in references if reference not in ready]

    def _count(self) -> None:
        self._waits += 1
        assert self._waits < 5000, "waited for what never comes"

    def get(self, reference: Reference) -> Any:
        self._count()
        while not reference.done:
            if reference.actor.dead:
                self.end(reference.actor)
            self._step(reference.actor)
        if reference.error is not None:
            raise reference.error
        return reference.value

    def _step(self, actor: Actor) -> None:
        if actor.dead:
            self.end(actor)
        if not actor.waiting:
            return
        reference = actor.waiting[0]
        if self.dies(reference):
            self.lost.append(reference)
            self.end(actor)
            return
        actor.waiting.popleft()
        try:
            reference.settle(getattr(actor.made, reference.method)(*reference.arguments))
        except Exception as error:  # noqa: BLE001 (as a cluster does)
            reference.settle(error=error)
