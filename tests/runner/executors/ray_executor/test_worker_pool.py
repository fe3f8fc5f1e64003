"""Workers that are lost, do not start or differ, without a cluster: every loss is one that the test has made."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.fake_ray import Reference, StandInRay

from longctx_bench import run
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.base import RemoteError
from longctx_bench.runner.executors.ray_executor import worker, worker_pool
from longctx_bench.runner.executors.ray_executor.cluster import WorkerLayout
from longctx_bench.runner.executors.ray_executor.executor import RayExecutor, Task
from longctx_bench.runner.executors.ray_executor.registry_bundle import RegistryBundle
from longctx_bench.runner.executors.ray_executor.worker import Failure, WorkerFacts
from longctx_bench.runner.executors.ray_executor.worker_pool import WorkerHandle, WorkerPool

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="the extra [ray] is not installed")

FACTS = WorkerFacts("node", provenance.package_version(), {}, "echo", "float32", "cpu")


class Worker:
    """A worker that says what the test wants."""

    facts: Any = FACTS

    def __init__(self, engine: Any, bundle: Any) -> None:
        self.engine, self.bundle = engine, bundle

    def start(self) -> Any:
        facts = type(self).facts
        return facts.pop(0) if isinstance(facts, list) else facts

    def double(self, value: int) -> int:
        return 2 * value

    def refuse(self) -> Failure:
        return Failure("user", "no such thing")

    def fault(self) -> Any:
        raise ValueError("broken")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[WorkerPool[Any], StandInRay]]:
    """A pool of workers that this process runs."""
    monkeypatch.setattr(worker_pool, "Worker", Worker)

    def made(
        workers: int = 2, facts: Any = FACTS, dies: Any = lambda reference: False
    ) -> tuple[WorkerPool[Any], StandInRay]:
        monkeypatch.setattr(Worker, "facts", facts)
        ray = StandInRay(dies=dies)
        return WorkerPool(ray, WorkerLayout(workers, 3, 0), {"name": "echo"}, RegistryBundle(())), ray

    return made


def give(member: WorkerHandle[Any], *tasks: Any) -> None:
    for task in tasks:
        member.in_flight[member.worker.double.remote(task)] = task


def starts(reference: Reference) -> bool:
    return reference.method == "start"


def drain(pool: WorkerPool[Any], notes: list[str] | None = None) -> list[tuple[Any, Any]]:
    """All answers until nobody has anything to do."""
    heard: list[tuple[Any, Any]] = []
    for _ in range(50):
        if not pool.busy():
            return heard
        heard += [(task, answer) for _, task, answer in pool.wait((notes if notes is not None else []).append)]
    pytest.fail("it does not come to an end")


def test_workers_start_and_answer(pool: Any) -> None:
    made, ray = pool(2)
    assert ray.options == {
        "num_cpus": 3, "num_gpus": 0, "scheduling_strategy": "SPREAD", "max_restarts": 0, "max_task_retries": 0,
    }  # fmt: skip
    assert made.first() == FACTS
    made.wait_for_all()
    assert len(made.members) == len(ray.actors) == 2
    assert [actor.made.engine for actor in ray.actors] == [{"name": "echo"}] * 2
    assert not made.busy()
    assert made.wait(pytest.fail) == []
    give(made.members[0], 1, 2)
    give(made.members[1], 3)
    assert made.busy()
    assert sorted(drain(made)) == [(1, 2), (2, 4), (3, 6)]
    assert not any(member.in_flight for member in made.members)
    made.close()
    assert ray.killed == ray.actors
    assert not made.members


def test_what_a_lost_worker_had_is_named_once_and_another_one_starts(pool: Any) -> None:
    made, ray = pool(2, dies=lambda reference: reference.arguments == (2,))
    made.wait_for_all()
    first, second = made.members
    give(first, 1, 2, 3)
    first.queue.extend([4, 5])
    give(second, 6)
    heard = []
    while not any(answer is None for *_, answer in heard):
        heard += made.wait(pytest.fail)
    assert [reference.arguments for reference in ray.lost] == [(2,)], "the fault has happened"
    assert (first, 2, None) in heard, "only what it was at is named"
    assert [task for _, task, answer in heard if answer is None] == [2]
    assert list(first.in_flight.values()) == [2, 3]
    assert list(first.queue) == [4, 5], "and what it was given is still its"
    assert first not in made.members
    assert ray.killed == [first.worker]
    made.wait_for_all()
    assert len(made.members) == 2
    assert len(ray.actors) == 3
    assert (6, 12) in [(task, answer) for _, task, answer in heard] + drain(made)
    assert not made.busy()


def test_a_worker_that_is_lost_with_nothing_in_hand_gives_back_its_queue(pool: Any) -> None:
    made, ray = pool(1, dies=lambda reference: reference.method == "double" and reference.actor.number == 0)
    made.wait_for_all()
    (member,) = made.members
    member.queue.extend([7, 8])
    assert made.ask("double", 21) == 42, "another worker answers"
    assert len(ray.lost) == 1
    assert made.busy(), "its work is still to be given back"
    assert made.wait(pytest.fail) == [(member, 7, None)]
    assert not made.busy()


def test_an_answer_of_a_worker_that_was_lost_a_moment_ago_counts_for_nothing(pool: Any) -> None:
    made, ray = pool(2)
    made.wait_for_all()
    first, second = made.members
    give(first, 1, 2)
    give(second, 3)
    ray.end(first.worker)
    heard = made.wait(pytest.fail)
    assert [task for member, task, answer in heard if member is first] == [1]
    assert all(answer is None for member, _, answer in heard if member is first)
    assert len(ray.actors) == 3, "one worker in its place, although two answers failed"


def test_the_one_with_the_least_to_do_is_asked(pool: Any) -> None:
    made, _ = pool(2)
    made.wait_for_all()
    give(made.members[0], 1)
    asked = made.members[1].worker
    waiting = len(made.members[0].worker.waiting)
    assert made.ask("double", 4) == 8
    assert not asked.waiting
    assert len(made.members[0].worker.waiting) == waiting
    with pytest.raises(UserError, match="no such thing"):
        made.ask("refuse")


def test_workers_that_die_while_they_start(pool: Any) -> None:
    made, ray = pool(1, dies=starts)
    with pytest.raises(UserError, match="no worker could be started"):
        made.first()
    assert len(ray.lost) == len(ray.actors) == 3
    assert ray.killed == ray.actors


def test_a_start_that_works_forgets_those_that_failed(pool: Any) -> None:
    fails = iter((True, True, False, True, True, False))
    made, ray = pool(1, dies=lambda reference: starts(reference) and next(fails))
    made.first()
    assert len(ray.lost) == 2
    ray.end(made.members[0].worker)
    give(made.members[0], 1)
    ray.end(made.members[0].worker)
    assert [answer for _, answer in drain(made)] == [None]
    made.first()
    assert len(ray.lost) == 4
    assert len(made.members) == 1


def test_a_lost_start_among_others_is_made_good(pool: Any) -> None:
    made, ray = pool(2, dies=lambda reference: starts(reference) and reference.actor.number == 0)
    made.wait_for_all()
    assert len(ray.lost) == 1
    assert len(made.members) == 2


def test_nothing_comes_up_for_minutes(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(worker_pool, "monotonic", lambda: clock[0])
    made, ray = pool(1)
    clock[0] = 300.0
    assert made.first() == FACTS, "a cluster may take its time"
    made, ray = pool(1)
    clock[0] += 300.5
    with pytest.raises(UserError, match="no worker could be started, or the cluster has no room"):
        made.first()
    made, ray = pool(1)
    made.first()
    clock[0] += 10_000.0
    give(made.members[0], 1)
    ray.end(made.members[0].worker)
    drain(made)
    assert made.first() == FACTS, "the minutes are pluralize from when the last worker was there"


def test_an_engine_that_cannot_be_made(pool: Any) -> None:
    made, ray = pool(1, facts=Failure("user", "no such device"))
    with pytest.raises(UserError, match="no such device"):
        made.first()
    assert ray.killed == ray.actors
    made, ray = pool(2, facts=[FACTS, Failure("user", "no such device")])
    made.wait_for_all()
    notes: list[str] = []
    give(made.members[0], 1)
    assert drain(made, notes) == [(1, 2)]
    assert notes == ["a worker could not be started: no such device"]
    assert len(ray.actors) == 2, "it would fail again"


def test_workers_that_differ(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = pool(1, facts=replace(FACTS, version="0.0.1"))
    with pytest.raises(UserError, match=r"node: has longctx-bench 0.0.1"):
        made.first()
    made, _ = pool(2, facts=[FACTS, replace(FACTS, node="other", dtype="bfloat16")])
    with pytest.raises(UserError, match="--dtype auto: is float32 on node and bfloat16 on other"):
        made.wait_for_all()
    own = provenance.environment()["packages"]
    name = sorted(own)[0]
    made, _ = pool(2, facts=[replace(FACTS, packages={**own, name: "0.1", "unknown": "1"}), FACTS])
    made.wait_for_all()
    notes: list[str] = []
    give(made.members[0], 1)
    drain(made, notes)
    assert len(notes) == 1
    assert f"has {name} 0.1, and {own[name]} is here" in notes[0]


def test_errors_that_ray_raises(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

    made, ray = pool(1)
    made.first()

    def fails(error: Exception) -> None:
        monkeypatch.setattr(ray, "get", lambda reference: (_ for _ in ()).throw(error))

    fails(RayTaskError("double", "the trace", ValueError("broken")))
    with pytest.raises(RemoteError, match="ValueError: broken") as caught:
        made.ask("double", 1)
    assert "the trace" in caught.value.__notes__[0]
    monkeypatch.setattr(RayActorError, "__str__", lambda self: "No module named 'longctx_bench'")
    fails(RayActorError())
    with pytest.raises(UserError, match="cannot be imported on a node"):
        made.ask("double", 1)
    monkeypatch.undo()
    assert isinstance(made._answer(lost(ray, RayActorError())), worker_pool.Lost)
    assert isinstance(made._answer(lost(ray, ObjectLostError("00", "", ""))), worker_pool.Lost)


def lost(ray: StandInRay, error: Exception) -> Reference:
    reference = Reference(ray.actors[0], "double", ())
    reference.settle(error=error)
    return reference


# -- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def there(
    tiny_folder: Path, essays: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[StandInRay, Path]]:
    """Run two methods and two tasks on workers of this process."""

    def ran(name: str, dies: Any = None, workers: int = 2, **more: Any) -> tuple[StandInRay, Path]:
        ray = StandInRay(cpus=workers, dies=dies or (lambda reference: False))
        monkeypatch.setattr("longctx_bench.runner.executors.ray_executor.executor.connect", lambda address: (ray, True))
        arguments: dict[str, Any] = {
            "length": [512], "limit": 9, "engine": "echo", "batch_tokens": 1100, "out": tmp_path / name,
            "registry": Registry(local_data={"ruler-essays": essays}), **more,
        }  # fmt: skip
        remote = {} if name == "here" else {"executor": "ray", "workers": workers}
        run(f"{tiny_folder},yarn:{tiny_folder}", "niah,niah_single_1", **arguments, **remote)
        return ray, tmp_path / name

    return ran


def records(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("records.jsonl"))}


def nothing_twice(folder: Path) -> None:
    for timings in folder.rglob("timings.jsonl"):
        names = [json.loads(line)["id"] for line in timings.read_text().splitlines()]
        assert len(names) == len(set(names)) == 9


@pytest.mark.parametrize(
    ("method", "every"), [("batches", 2), ("batches", 3), ("answer", 3), ("answer", 5), ("answer", 7)]
)
def test_workers_lost_again_and_again_lose_no_record(there: Any, method: str, every: int) -> None:
    calls: list[Reference] = []

    def dies(reference: Reference) -> bool:
        # Not the same call thrice: its cell would be given up.
        if reference.method == method:
            calls.append(reference)
            return len(calls) % every == 0
        return False

    ray, out = there("there", dies)
    assert ray.lost, "workers were lost with work in hand"
    assert len(ray.actors) == 2 + len(ray.lost)
    assert ray.left, "the cluster is left"
    _, here = there("here")
    assert records(out) == records(here)
    nothing_twice(out)


def test_a_batch_that_takes_three_workers_with_it_ends_its_cell_alone(there: Any, tmp_path: Path) -> None:
    def dies(reference: Reference) -> bool:
        deadly = reference.method == "answer" and reference.arguments[0].task == "niah_single_1"
        return deadly and any(request.example_id == "000004" for request in reference.arguments[1])

    with pytest.raises(UserError, match=r"2 cells failed.*3 workers were lost over the same batch, the last on"):
        there("there", dies)
    _, here = there("here")
    assert len(list((tmp_path / "there").rglob("cell.json"))) == 2
    whole = records(here)
    for name, content in records(tmp_path / "there").items():
        assert set(content.splitlines()) <= set(whole[name].splitlines())
        assert name.split("/")[3] == "niah_single_1" or content == whole[name], "the other cells are whole"
    ray, out = there("there")
    assert not ray.lost
    assert records(out) == whole


def test_a_batch_that_takes_two_workers_with_it_is_run_by_the_third(there: Any) -> None:
    lost: list[Reference] = []

    def dies(reference: Reference) -> bool:
        deadly = reference.method == "answer" and any(r.example_id == "000004" for r in reference.arguments[1])
        if deadly and len(lost) < 2:
            lost.append(reference)
            return True
        return False

    ray, out = there("there", dies, workers=1)
    assert len(ray.lost) == 2
    assert records(out) == records(there("here")[1])


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("method", ["batches", "answer"])
def test_cells_in_parts_lose_no_record(there: Any, monkeypatch: pytest.MonkeyPatch, size: int, method: str) -> None:
    whole = records(there("here")[1])
    monkeypatch.setattr("longctx_bench.runner.request_builder.PART", size)
    calls: list[Reference] = []

    def dies(reference: Reference) -> bool:
        if reference.method == method:
            calls.append(reference)
            return len(calls) % 5 == 0
        return False

    ray, out = there("there", dies)
    assert ray.lost
    assert records(out) == whole
    nothing_twice(out)
    assert len(list(out.rglob("cell.json"))) == 4


def test_a_part_that_fails_ends_its_cell_and_what_waits_of_it(
    there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longctx_bench.runner.request_builder.PART", 6)
    grouped: list[str] = []
    answered: dict[Any, int] = {}
    batches, answer = worker.Worker.batches, worker.Worker.answer

    def noted(self: Any, order: Any, requests: Any) -> Any:
        grouped.append(order.task)
        return batches(self, order, requests)

    def failing(self: Any, order: Any, batch: Any, examples: Any) -> Any:
        cell = (order.task, order.variant.spec.name)
        answered[cell] = answered.get(cell, 0) + 1
        # The second of three batches: the next part of the cell waits already.
        fails = order.task == "niah" and answered[cell] == 2
        return Failure("user", "broken") if fails else answer(self, order, batch, examples)

    with monkeypatch.context() as patched:
        patched.setattr(worker.Worker, "batches", noted)
        patched.setattr(worker.Worker, "answer", failing)
        with pytest.raises(UserError, match="2 cells failed: the first is .*: broken"):
            there("there", workers=1)
    assert grouped.count("niah") < 4, "a part that waits is not begun"
    assert grouped.count("niah_single_1") == 4
    done = [path.parts[-3] for path in (tmp_path / "there").rglob("cell.json")]
    assert done == ["niah_single_1"] * 2
    _, out = there("there")
    assert records(out) == records(there("here")[1])


def test_a_part_that_was_given_up_before_it_was_grouped_is_not_waited_for() -> None:
    executor = RayExecutor.__new__(RayExecutor)
    jobs = [SimpleNamespace(closed=closed) for closed in (True, True, False, False)]
    opening, batch, other, queued = (
        Task(SimpleNamespace(job=job, num_pending=left))  # type: ignore[arg-type]
        for job, left in zip(jobs, (None, 2, None, 1), strict=True)
    )
    executor._ready = deque([[opening], [batch, other]])
    executor._pool = SimpleNamespace(members=[SimpleNamespace(queue=deque([queued, opening]))])  # type: ignore[assignment]
    executor._num_batching = 3
    executor._drop_closed()
    assert list(executor._ready) == [[other]]
    assert list(executor._pool.members[0].queue) == [queued]
    assert executor._num_batching == 1


def test_what_took_three_workers_with_it_does_not_run_again() -> None:
    executor = RayExecutor.__new__(RayExecutor)
    executor._ready, executor._num_batching = deque(), 1
    first, other = (
        Task(SimpleNamespace(job=SimpleNamespace(planned=SimpleNamespace(cell=cell)), num_pending=left), lost=2)  # type: ignore[arg-type]
        for cell, left in (("m/niah/512", None), ("m/vt/512", 1))
    )
    member: Any = SimpleNamespace(facts=FACTS, in_flight={1: first, 2: other}, queue=deque())
    notes: list[str] = []
    [result] = executor._on_worker_lost(member, first, notes.append)
    assert result.job is first.running.job
    assert "3 workers were lost" in str(result.error)
    assert (list(executor._ready), executor._num_batching) == ([[other]], 0)
    assert len(notes) == 1
    assert "1 cells" in notes[0]


def test_idle_workers_take_batches_from_the_busy(there: Any) -> None:
    ran: dict[int, int] = {}

    def dies(reference: Reference) -> bool:
        if reference.method == "answer":
            ran[reference.actor.number] = ran.get(reference.actor.number, 0) + 1
        return False

    _, out = there("there", dies, workers=3, limit=24)
    assert set(ran) == {0, 1, 2}
    assert min(ran.values()) * 3 > max(ran.values())
    assert records(out) == records(there("here", limit=24)[1])
