"""Batches on a Ray cluster, one engine a worker; this process alone knows the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longctx_bench.core.errors import UserError
from longctx_bench.engines.base import MemoryEstimate
from longctx_bench.models.checkpoint import read_config
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.base import Note, Result, Work
from longctx_bench.runner.executors.ray_executor.cluster import connect, layout
from longctx_bench.runner.executors.ray_executor.prefix_sharding import Batch, shards
from longctx_bench.runner.executors.ray_executor.registry_bundle import pack, parts
from longctx_bench.runner.executors.ray_executor.worker import Failure, Order
from longctx_bench.runner.executors.ray_executor.worker_pool import Member, Pool

_DEPTH = 2
"""Tasks a worker holds: one that runs, and one that waits so that it never does."""
_OPENING = 4
"""Parts of cells whose batches are being made at a time; each holds its prompts in this process."""
_ATTEMPTS = 3
"""Workers that a batch may take with it before its cell is given up."""


@dataclass(eq=False)
class Task:
    """What a worker is asked to do at once: a batch, a task of lm-eval, or (neither) to group a part's requests."""

    part: _OpenPart
    batch: Batch = ()
    lost: int = 0
    """Workers that were lost over it."""


class _OpenPart:
    """A part of a cell, all of it unless it is very large, on its way through the cluster."""

    def __init__(self, work: Work) -> None:
        planned = work.planned
        given = parts(planned.variant, work.contestant.base, planned.spec.digests.get("weights"))
        task = planned.task
        self.work = work
        code = planned.spec.code.get("metric")
        self.order = Order(given, planned.cell.length, task.name, code, planned.kind, work.per_prompt)
        self.left: int | None = None if work.harness is None else 1
        """Batches that have not come back; None until they are made."""

    def send(self, member: Member[Task], task: Task) -> Any:
        """Start a task on a worker and return Ray's reference to its result."""
        work = self.work
        if work.harness is not None:
            return member.worker.whole.remote(self.order, work.harness)
        if not task.batch:
            return member.worker.batches.remote(self.order, work.requests)
        examples = {request.example_id: work.examples[request.example_id] for request in task.batch}
        return member.worker.answer.remote(self.order, task.batch, examples)


class RemoteEngine:
    """What is known of the engines on the workers, asked of one of them."""

    def __init__(self, pool: Pool[Task]) -> None:
        facts = pool.first()
        self.name, self.dtype, self.device = facts.engine, facts.dtype, facts.device
        self._pool = pool
        self._footprints: dict[Path, MemoryEstimate | None] = {}

    def estimate_memory(self, folder: Any) -> MemoryEstimate | None:
        """Return what a checkpoint takes on a worker; asked once, as it is before anything is loaded."""
        if folder not in self._footprints:
            self._footprints[folder] = self._pool.ask("estimate_memory", folder.name, read_config(folder))
        return self._footprints[folder]

    def measure_speed(self) -> tuple[float, float]:
        """Return what one worker does in a second."""
        operations, bandwidth = self._pool.ask("measure_speed")
        return operations, bandwidth

    def settings(self) -> dict[str, Any]:
        """Return a worker's settings."""
        return dict(self._pool.ask("settings"))


class RayExecutor:
    """Runs batches on the workers of a cluster; a batch whose worker is lost runs again on another one."""

    name = "ray"

    def __init__(
        self, engine: Mapping[str, Any], registry: Registry, workers: int | None = None, address: str | None = None
    ) -> None:
        """Connect and start the workers; returns when the first is ready.

        Args:
            engine: arguments of :func:`longctx_bench.engines.make_engine`, the same for every worker.
            registry: whose own folders the workers get.
            workers: how many; one a GPU, or without GPUs one a node, when None.
            address: of the cluster; the one that Ray finds, or a new one on this machine, when None.

        Raises:
            UserError: no Ray, no cluster, no room for so many workers, or the engine cannot be made there.
        """
        if engine.get("server") is not None:
            raise UserError("--executor ray: a server needs no workers; use --executor local and --concurrency")
        device = str(engine.get("device", "auto"))
        if device.startswith("cuda:"):
            raise UserError(f"--device {device}: Ray gives each worker its own GPU; use --device cuda or auto")
        parcel = pack(registry)
        ray, connected = connect(address)
        # A session that was there before is its owner's to end.
        self._leave: Callable[[], None] = ray.shutdown if connected else lambda: None
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            uses_gpus = device != "cpu" and engine.get("name") != "echo"
            self._layout = layout(nodes, workers, uses_gpus, engine.get("tensor_parallel", 1))
            self._pool: Pool[Task] = Pool(ray, self._layout, engine, parcel)
            self._engine = RemoteEngine(self._pool)
        except BaseException:
            self._leave()
            raise
        self._ready: deque[list[Task]] = deque()
        """Shards that no worker has yet."""
        self._opening = 0

    @property
    def engine(self) -> RemoteEngine:
        """What the workers' engines are."""
        return self._engine

    def wait_for_all(self) -> None:
        """Wait until every worker is up, so that a measurement does not measure that; a run does not need it."""
        self._pool.wait_for_all()

    def results(self, works: Iterator[Work], note: Note) -> Iterator[Result]:
        """Run cells side by side and give batches as they come back, of whichever cell.

        Raises:
            UserError: no worker is left and none comes up.
        """
        more = True
        while True:
            self._drop_closed()
            more = more and self._take_parts(works)
            self._hand_out()
            if not more and not self._ready and not self._pool.busy():
                return
            for member, task, answer in self._pool.wait(note):
                if answer is None:
                    yield from self._lost(member, task, note)
                else:
                    yield from self._arrived(task, answer)

    def describe(self) -> dict[str, Any] | None:
        """Return the executor's name and how many workers it was given."""
        return {"name": self.name, "workers": self._layout.workers}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers and leave the cluster."""
        self._pool.close()
        self._leave()

    def _take_parts(self, works: Iterator[Work]) -> bool:
        """Take parts of cells while the workers may run out of batches; return False when there are no more."""
        taken: list[list[Task]] = []
        more = True
        while self._opening < _OPENING and len(self._ready) + len(taken) < self._layout.workers:
            work = next(works, None)
            if work is None:
                more = False
                break
            part = _OpenPart(work)
            self._opening += part.left is None
            taken.append([Task(part)])
        # Ahead of the batches that wait: those keep the other workers busy meanwhile.
        self._ready.extendleft(reversed(taken))
        return more

    def _hand_out(self) -> None:
        for member in self._pool.members:
            while len(member.flying) < _DEPTH and (member.queue or self._ready or self._steal_for(member)):
                if not member.queue:
                    member.queue.extend(self._choose(member))
                task = member.queue.popleft()
                member.loaded = task.part.work.folder
                member.flying[task.part.send(member, task)] = task

    def _choose(self, member: Member[Task]) -> list[Task]:
        """Take the first shard of the checkpoint that the worker has loaded; without one, the first of any."""
        place = next((at for at, shard in enumerate(self._ready) if shard[0].part.work.folder == member.loaded), 0)
        shard = self._ready[place]
        del self._ready[place]
        return shard

    def _steal_for(self, member: Member[Task]) -> bool:
        """Take a batch that waits behind others on another worker, now that nothing else is left."""
        longest = max(self._pool.members, key=lambda other: len(other.queue))
        if longest is member or not longest.queue:
            return False
        self._ready.append([longest.queue.pop()])
        return True

    def _arrived(self, task: Task, answer: Any) -> Iterator[Result]:
        part = task.part
        opens = part.left is None
        self._opening -= opens
        if isinstance(answer, Failure):
            yield Result(part.work, error=answer.error())
        elif opens:
            requests = {request.example_id: request for request in part.work.requests}
            batches = part.work.unfinished([[requests[name] for name in batch] for batch in answer])
            part.left = len(batches)
            self._ready.extend([Task(part, batch) for batch in s] for s in shards(batches, self._layout.workers))
        else:
            assert part.left is not None
            part.left -= 1
            yield Result(part.work, answer, last=part.left == 0)

    def _lost(self, member: Member[Task], first: Task, note: Note) -> Iterator[Result]:
        """Put what a lost worker had back in front; the task that it was at counts the loss."""
        first.lost += 1
        again = [
            task for task in (*member.flying.values(), *member.queue) if task is not first or task.lost < _ATTEMPTS
        ]
        cells = {task.part.work.planned.cell for task in again}
        if again:
            note(f"a worker on {member.facts.node} was lost; what it had begun of {len(cells)} cells runs again")
        self._ready.extendleft([task] for task in reversed(again))
        if first.lost >= _ATTEMPTS:
            self._opening -= first.part.left is None
            reason = f"{first.lost} workers were lost over the same batch, the last on {member.facts.node}"
            yield Result(first.part.work, error=UserError(f"{reason}; its memory may be full: try --batch-tokens"))

    def _drop_closed(self) -> None:
        """Forget the batches of cells that failed."""
        waiting = [*self._ready, *(member.queue for member in self._pool.members)]
        # Another part of the cell may have failed before this one was grouped.
        self._opening -= sum(task.part.work.closed and task.part.left is None for tasks in waiting for task in tasks)
        kept = ([task for task in shard if not task.part.work.closed] for shard in self._ready)
        self._ready = deque(shard for shard in kept if shard)
        for member in self._pool.members:
            member.queue = deque(task for task in member.queue if not task.part.work.closed)
