"""One engine in a process of a Ray cluster. Nothing here needs Ray: the driver makes an actor of the class."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longctx_bench.core.errors import ContextTooShort, UserError
from longctx_bench.core.io import write_json
from longctx_bench.core.types import Example, Request
from longctx_bench.metrics import Metric
from longctx_bench.runner.executors.base import Answer, HarnessSettings, RemoteError
from longctx_bench.runner.executors.ray_executor.registry_bundle import Parcel, VariantParts

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An error on its way back: exceptions of a plug-in's own classes may not be known where they arrive."""

    kind: str
    """``user``, ``skip`` or ``bug``."""
    message: str
    trace: str = ""

    def error(self) -> Exception:
        """Return it as what the runner knows."""
        if self.kind != "bug":
            return (ContextTooShort if self.kind == "skip" else UserError)(self.message)
        error = RemoteError(self.message)
        error.add_note(self.trace)
        return error


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker says of itself when it is ready."""

    node: str
    version: str
    """Of this package."""
    packages: dict[str, str]
    engine: str
    dtype: str
    device: str


@dataclass(frozen=True)
class Order:
    """What all batches of a cell have in common."""

    variant: VariantParts
    length: int
    task: str
    metric_code: Mapping[str, Any] | None
    """Digest of a metric that is not longctx-bench's own; the other machine must have the same."""
    kind: str
    per_prompt: bool


class Worker:
    """Holds one engine; every method returns its result or a :class:`Failure`."""

    def __init__(self, engine: Mapping[str, Any], parcel: Parcel) -> None:
        self._engine_arguments = dict(engine)
        self._parcel = parcel
        self._node = socket.gethostname()
        self._loaded: Path | None = None
        self._checked: set[tuple[Path, str]] = set()

    def start(self) -> WorkerFacts | Failure:
        """Make the engine."""
        # As the command line does, before torch is imported: threads that spin while they wait cost more than they do.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return self._guarded(self._start)

    def estimate_memory(self, name: str, config: dict[str, Any]) -> Any:
        """Return what a checkpoint with this ``config.json`` takes here; None when the engine cannot say."""

        def measured() -> Any:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / name
                folder.mkdir()
                write_json(folder / "config.json", config)
                return self._engine.estimate_memory(folder)

        return self._guarded(measured)

    def measure_speed(self) -> tuple[float, float] | Failure:
        """Return what this machine does in a second."""
        return self._guarded(self._engine.measure_speed)

    def settings(self) -> dict[str, Any] | Failure:
        """Return the engine's settings."""
        return self._guarded(self._engine.settings)

    def batches(self, order: Order, requests: Sequence[Request]) -> list[list[str]] | Failure:
        """Load a cell's checkpoint and return its batches as example ids."""
        from longctx_bench.runner.executors import batch_worker

        def grouped() -> list[list[str]]:
            folder, self._loaded = self._folder(order.variant), None
            found = batch_worker.batches(self._engine, folder, requests, order.per_prompt)
            self._loaded = folder
            return [[request.example_id for request in batch] for batch in found]

        return self._guarded(grouped)

    def answer(self, order: Order, batch: Sequence[Request], examples: Mapping[str, Example]) -> Answer | Failure:
        """Run one batch."""
        from longctx_bench.runner.executors import batch_worker

        def ran() -> Answer:
            self._load(order.variant)
            contestant = self._contestant(order)
            return batch_worker.answer(self._engine, order.kind, self._metric(order), contestant, batch, examples)

        return self._guarded(ran)

    def whole(self, order: Order, settings: HarnessSettings) -> Answer | Failure:
        """Let lm-eval run a task."""
        from longctx_bench.runner.executors import batch_worker

        def ran() -> Answer:
            (task,) = self._registry.select_tasks(order.task)
            benchmark = self._registry.benchmark(task)
            contestant = self._contestant(order)
            return batch_worker.whole(self._engine, self._folder(order.variant), contestant, benchmark, settings)

        return self._guarded(ran)

    def _start(self) -> WorkerFacts:
        from longctx_bench.core.provenance import environment, package_version
        from longctx_bench.engines import make_engine
        from longctx_bench.runner.executors.ray_executor.registry_bundle import unpack

        self._registry, self._scratch = unpack(self._parcel)
        self._engine = make_engine(**self._engine_arguments)
        engine = self._engine
        packages = environment()["packages"]
        return WorkerFacts(self._node, package_version(), packages, engine.name, engine.dtype, engine.device)

    def _load(self, variant: VariantParts) -> None:
        folder = self._folder(variant)
        if folder != self._loaded:
            self._loaded = None
            self._engine.load(folder)
            self._engine.peak_memory()
            self._loaded = folder

    def _folder(self, variant: VariantParts) -> Path:
        """Return the checkpoint on this machine, and see to it that it is the driver's."""
        from longctx_bench.core.sources import content_digest
        from longctx_bench.models.checkpoint import checkpoint_folder

        folder = checkpoint_folder(variant.source)
        if variant.digest is not None and (folder, variant.digest) not in self._checked:
            if content_digest(variant.source) != variant.digest:
                raise UserError(
                    f"{folder}: holds other weights than on the machine of the run; share the folder among the nodes"
                )
            self._checked.add((folder, variant.digest))
        return folder

    def _contestant(self, order: Order) -> Any:
        from longctx_bench.models.variant import ModelUnderTest

        given = order.variant
        variant = self._registry.variant_from_parts(given.model, given.spec, given.params, given.source)
        if variant.code != given.code:
            raise UserError(
                f"method {given.spec.name}: {given.spec.use} is other code than on the machine of the run; install "
                f"the same version on all nodes"
            )
        return ModelUnderTest(given.base, variant.method, order.length)

    def _metric(self, order: Order) -> Metric:
        (task,) = self._registry.select_tasks(order.task)
        measure, code = self._registry.metric(task)
        if (None if code is None else code.record()) != order.metric_code:
            raise UserError(
                f"metric of task {order.task}: is other code than on the machine of the run; install the same version "
                f"on all nodes"
            )
        return measure

    def _guarded(self, work: Callable[[], T]) -> T | Failure:
        try:
            return work()
        except UserError as error:
            where = f"{error} (on the worker at {self._node})"
            return Failure("skip" if isinstance(error, ContextTooShort) else "user", where)
        except MemoryError as error:
            return Failure("user", f"the memory of {self._node} is full ({error}); choose a smaller --length")
        except Exception as error:  # noqa: BLE001 (it is raised again where the run is)
            return Failure("bug", f"{type(error).__name__}: {error}", traceback.format_exc())
