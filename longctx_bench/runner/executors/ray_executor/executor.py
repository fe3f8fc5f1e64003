"""Ray executor: one engine per worker; only the driver writes the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longctx_bench.core.errors import UserError
from longctx_bench.engines.base import MemoryEstimate, Speed
from longctx_bench.models.checkpoint import read_config
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.base import CellJob, JobResult, Note
from longctx_bench.runner.executors.ray_executor.cluster import connect, layout
from longctx_bench.runner.executors.ray_executor.prefix_sharding import Batch, shards
from longctx_bench.runner.executors.ray_executor.registry_bundle import pack, serialize
from longctx_bench.runner.executors.ray_executor.worker import Failure, JobSpec
from longctx_bench.runner.executors.ray_executor.worker_pool import WorkerHandle, WorkerPool

_QUEUE_DEPTH = 2
"""Tasks submitted per worker: one running, one queued so that the worker never idles."""
_MAX_BATCHING = 4
"""Jobs being split into batches at a time; each keeps its prompts in this process."""
_MAX_LOST_WORKERS = 3
"""Workers that may be lost on one batch before its cell fails."""


@dataclass(eq=False)
class Task:
    """One call of a worker: to run a batch or, without one, to group a job's requests into batches."""

    running: _RunningJob
    batch: Batch | None = None
    lost: int = 0
    """Workers lost while running it."""


class _RunningJob:
    """A job on the cluster."""

    def __init__(self, job: CellJob) -> None:
        planned = job.planned
        variant = serialize(planned.variant, job.model.base, planned.spec.digests.get("weights"))
        task = planned.task
        self.job = job
        code = planned.spec.code.get("metric")
        self.spec = JobSpec(
            variant, planned.cell.length, task.name, code, planned.kind, job.per_prompt, planned.settings
        )
        self.num_pending: int | None = None
        """Batches without a result; None until the job is split into batches."""

    def send(self, member: WorkerHandle[Task], task: Task) -> Any:
        """Start a task on a worker and return Ray's reference to its result."""
        job = self.job
        if task.batch is None:
            return member.worker.batches.remote(self.spec, job.requests)
        examples = {request.example_id: job.examples[request.example_id] for request in task.batch}
        return member.worker.answer.remote(self.spec, task.batch, examples)


class RemoteEngine:
    """The common facts of the workers' engines, from one of them."""

    def __init__(self, pool: WorkerPool[Task]) -> None:
        facts = pool.first()
        self.name, self.dtype, self.device = facts.engine, facts.dtype, facts.device
        self._pool = pool
        self._footprints: dict[Path, MemoryEstimate | None] = {}

    def estimate_memory(self, folder: Any) -> MemoryEstimate | None:
        """Return a checkpoint's memory needs on a worker, asked once per checkpoint, before it is loaded."""
        if folder not in self._footprints:
            self._footprints[folder] = self._pool.ask("estimate_memory", folder.name, read_config(folder))
        return self._footprints[folder]

    def measure_speed(self) -> Speed:
        """Return what one worker computes per second."""
        return Speed(*self._pool.ask("measure_speed"))

    def settings(self) -> dict[str, Any]:
        """Return a worker's settings."""
        return dict(self._pool.ask("settings"))


class RayExecutor:
    """Runs batches on the workers of a cluster; a lost worker's batches run again on another one."""

    name = "ray"

    def __init__(
        self, engine: Mapping[str, Any], registry: Registry, workers: int | None = None, address: str | None = None
    ) -> None:
        """Connect and start the workers; return when the first is ready.

        Args:
            engine: arguments of :func:`longctx_bench.engines.make_engine`, the same for all workers.
            registry: its include paths are sent to the workers.
            workers: number of workers; if None, one per GPU, or one per node without GPUs.
            address: of the cluster; if None, the one that Ray finds, or a new one on this machine.

        Raises:
            UserError: Ray or the cluster is missing, it has too few resources, or the engine cannot be created there.
        """
        if engine.get("server") is not None:
            raise UserError("--executor ray: a server needs no workers; use --executor local and --concurrency")
        device = str(engine.get("device", "auto"))
        if device.startswith("cuda:"):
            raise UserError(f"--device {device}: Ray gives each worker its own GPU; use --device cuda or auto")
        bundle = pack(registry)
        ray, connected = connect(address)
        # Shut down only a connection that was made here.
        self._disconnect: Callable[[], None] = ray.shutdown if connected else lambda: None
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            uses_gpus = device != "cpu" and engine.get("name") != "echo"
            self._layout = layout(nodes, workers, uses_gpus, engine.get("tensor_parallel", 1))
            self._pool: WorkerPool[Task] = WorkerPool(ray, self._layout, engine, bundle)
            self._engine = RemoteEngine(self._pool)
        except BaseException:
            self._disconnect()
            raise
        self._ready: deque[list[Task]] = deque()
        """Shards not yet assigned to a worker."""
        self._num_batching = 0

    @property
    def engine(self) -> RemoteEngine:
        """The workers' engine."""
        return self._engine

    def wait_for_all(self) -> None:
        """Wait until all workers are ready, so that benchmarks do not time their start; runs need not wait."""
        self._pool.wait_for_all()

    def results(self, jobs: Iterator[CellJob], note: Note) -> Iterator[JobResult]:
        """Run jobs concurrently and yield batch results as they complete.

        Raises:
            UserError: no worker is left and none can be started.
        """
        has_more = True
        while True:
            self._drop_closed()
            has_more = has_more and self._take_jobs(jobs)
            self._submit()
            if not has_more and not self._ready and not self._pool.busy():
                return
            for member, task, answer in self._pool.wait(note):
                if answer is None:
                    yield from self._on_worker_lost(member, task, note)
                else:
                    yield from self._on_result(task, answer)

    def describe(self) -> dict[str, Any] | None:
        """Return the executor's name and number of workers."""
        return {"name": self.name, "workers": self._layout.workers}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers and disconnect."""
        self._pool.close()
        self._disconnect()

    def _take_jobs(self, jobs: Iterator[CellJob]) -> bool:
        """Take jobs while workers could run out of batches; return False when there are no more jobs."""
        taken: list[list[Task]] = []
        has_more = True
        while self._num_batching < _MAX_BATCHING and len(self._ready) + len(taken) < self._layout.workers:
            job = next(jobs, None)
            if job is None:
                has_more = False
                break
            running = _RunningJob(job)
            self._num_batching += running.num_pending is None
            taken.append([Task(running)])
        # Before the waiting batches, which keep the other workers busy in the meantime.
        self._ready.extendleft(reversed(taken))
        return has_more

    def _submit(self) -> None:
        for member in self._pool.members:
            while len(member.in_flight) < _QUEUE_DEPTH and (member.queue or self._ready or self._steal_for(member)):
                if not member.queue:
                    member.queue.extend(self._choose(member))
                task = member.queue.popleft()
                member.loaded = task.running.job.folder
                member.in_flight[task.running.send(member, task)] = task

    def _choose(self, member: WorkerHandle[Task]) -> list[Task]:
        """Pop the first shard of the worker's loaded checkpoint, or else the first of all."""
        index = next(
            (index for index, shard in enumerate(self._ready) if shard[0].running.job.folder == member.loaded), 0
        )
        shard = self._ready[index]
        del self._ready[index]
        return shard

    def _steal_for(self, member: WorkerHandle[Task]) -> bool:
        """Work stealing: move the last queued batch of the busiest worker to the ready queue."""
        longest = max(self._pool.members, key=lambda other: len(other.queue))
        if longest is member or not longest.queue:
            return False
        self._ready.append([longest.queue.pop()])
        return True

    def _on_result(self, task: Task, answer: Any) -> Iterator[JobResult]:
        running = task.running
        opens = running.num_pending is None
        self._num_batching -= opens
        if isinstance(answer, Failure):
            yield JobResult(running.job, error=answer.error())
        elif opens:
            requests = {request.example_id: request for request in running.job.requests}
            batches = running.job.unfinished([[requests[name] for name in batch] for batch in answer])
            running.num_pending = len(batches)
            self._ready.extend([Task(running, batch) for batch in s] for s in shards(batches, self._layout.workers))
        else:
            assert running.num_pending is not None
            running.num_pending -= 1
            yield JobResult(running.job, answer, last=running.num_pending == 0)

    def _on_worker_lost(self, member: WorkerHandle[Task], first: Task, note: Note) -> Iterator[JobResult]:
        """Requeue a lost worker's tasks in front, counting the loss against the running one."""
        first.lost += 1
        again = [
            task
            for task in (*member.in_flight.values(), *member.queue)
            if task is not first or task.lost < _MAX_LOST_WORKERS
        ]
        cells = {task.running.job.planned.cell for task in again}
        if again:
            note(f"a worker on {member.facts.node} was lost; its batches of {len(cells)} cells run again")
        self._ready.extendleft([task] for task in reversed(again))
        if first.lost >= _MAX_LOST_WORKERS:
            self._num_batching -= first.running.num_pending is None
            reason = f"{first.lost} workers were lost over the same batch, the last on {member.facts.node}"
            yield JobResult(first.running.job, error=UserError(f"{reason}; its memory may be full: try --batch-tokens"))

    def _drop_closed(self) -> None:
        """Drop the batches of failed cells."""
        waiting = [*self._ready, *(member.queue for member in self._pool.members)]
        # A cell may fail before all its jobs are split into batches.
        self._num_batching -= sum(
            task.running.job.closed and task.running.num_pending is None for tasks in waiting for task in tasks
        )
        open_shards = ([task for task in shard if not task.running.job.closed] for shard in self._ready)
        self._ready = deque(shard for shard in open_shards if shard)
        for member in self._pool.members:
            member.queue = deque(task for task in member.queue if not task.running.job.closed)
