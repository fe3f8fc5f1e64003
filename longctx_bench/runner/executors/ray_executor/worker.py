"""Ray worker: one engine in a process of the cluster. Ray is not imported here; the driver makes the class an actor."""

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
from longctx_bench.engines.base import Speed
from longctx_bench.runner.executors.base import RemoteError
from longctx_bench.runner.executors.ray_executor.registry_bundle import RegistryBundle, SerializedVariant
from longctx_bench.runner.strategies import STRATEGIES, BatchResult, CellContext, RunSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A serializable error: the driver may not have the class of a plug-in's exception."""

    kind: str
    """``user``, ``skip`` or ``bug``."""
    message: str
    trace: str = ""

    def error(self) -> Exception:
        """Convert to an exception for the runner."""
        if self.kind != "bug":
            return (ContextTooShort if self.kind == "skip" else UserError)(self.message)
        error = RemoteError(self.message)
        error.add_note(self.trace)
        return error


@dataclass(frozen=True)
class WorkerFacts:
    """A worker's node, versions and engine."""

    node: str
    version: str
    """Of this package."""
    packages: dict[str, str]
    engine: str
    dtype: str
    device: str


@dataclass(frozen=True)
class JobSpec:
    """What all batches of a cell share, serialized."""

    variant: SerializedVariant
    length: int
    task: str
    metric_code: Mapping[str, Any] | None
    """Code digest of a plug-in metric, which the worker checks."""
    kind: str
    """The benchmark's, which names the strategy."""
    per_prompt: bool
    settings: RunSettings


class Worker:
    """Holds one engine. Every method returns its result or a :class:`Failure`."""

    def __init__(self, engine: Mapping[str, Any], bundle: RegistryBundle) -> None:
        self._engine_arguments = dict(engine)
        self._bundle = bundle
        self._node = socket.gethostname()
        self._loaded: Path | None = None
        self._checked: set[tuple[Path, str]] = set()

    def start(self) -> WorkerFacts | Failure:
        """Create the engine."""
        # As on the command line, and before torch is imported: spinning OpenMP threads slow each other down.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return self._guarded(self._start)

    def estimate_memory(self, name: str, config: dict[str, Any]) -> Any:
        """Return the memory needs of a checkpoint with this ``config.json``; None if the engine cannot tell."""

        def measured() -> Any:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / name
                folder.mkdir()
                write_json(folder / "config.json", config)
                return self._engine.estimate_memory(folder)

        return self._guarded(measured)

    def measure_speed(self) -> Speed | Failure:
        """Return what this machine computes per second."""
        return self._guarded(self._engine.measure_speed)

    def settings(self) -> dict[str, Any] | Failure:
        """Return the engine's settings."""
        return self._guarded(self._engine.settings)

    def batches(self, job: JobSpec, requests: Sequence[Request]) -> list[list[str]] | Failure:
        """Load a cell's checkpoint and return its batches as example ids."""

        def grouped() -> list[list[str]]:
            folder, self._loaded = self._folder(job.variant), None
            batches = STRATEGIES[job.kind].batches(self._engine, folder, requests, job.per_prompt)
            self._loaded = folder
            return [[request.example_id for request in batch] for batch in batches]

        return self._guarded(grouped)

    def answer(self, job: JobSpec, batch: Sequence[Request], examples: Mapping[str, Example]) -> BatchResult | Failure:
        """Run one batch."""

        def ran() -> BatchResult:
            self._load(job.variant)
            return STRATEGIES[job.kind].run_batch(self._engine, self._context(job), batch, examples)

        return self._guarded(ran)

    def _start(self) -> WorkerFacts:
        from longctx_bench.core.provenance import environment, package_version
        from longctx_bench.engines import make_engine
        from longctx_bench.runner.executors.ray_executor.registry_bundle import unpack

        self._registry, self._scratch = unpack(self._bundle)
        self._engine = make_engine(**self._engine_arguments)
        engine = self._engine
        packages = environment()["packages"]
        return WorkerFacts(self._node, package_version(), packages, engine.name, engine.dtype, engine.device)

    def _load(self, variant: SerializedVariant) -> None:
        folder = self._folder(variant)
        if folder != self._loaded:
            self._loaded = None
            self._engine.load(folder)
            self._engine.peak_memory()
            self._loaded = folder

    def _folder(self, variant: SerializedVariant) -> Path:
        """Return the checkpoint on this machine, checked against the driver's digest."""
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

    def _model(self, job: JobSpec) -> Any:
        from longctx_bench.models.variant import ModelUnderTest

        sent = job.variant
        variant = self._registry.variant_from_parts(sent.model, sent.spec, sent.params, sent.source)
        if variant.code != sent.code:
            raise UserError(
                f"method {sent.spec.name}: {sent.spec.use} is other code than on the machine of the run; install "
                f"the same version on all nodes"
            )
        return ModelUnderTest(sent.base, variant.method, job.length)

    def _context(self, job: JobSpec) -> CellContext:
        (task,) = self._registry.select_tasks(job.task)
        scoring = STRATEGIES[job.kind].scoring(task, self._registry)
        code = None if scoring is None or scoring.code is None else scoring.code.record()
        if code != job.metric_code:
            raise UserError(
                f"metric of task {job.task}: is other code than on the machine of the run; install the same version "
                f"on all nodes"
            )
        return CellContext(self._folder(job.variant), self._model(job), task, self._registry, job.settings)

    def _guarded(self, call: Callable[[], T]) -> T | Failure:
        try:
            return call()
        except UserError as error:
            where = f"{error} (on the worker at {self._node})"
            return Failure("skip" if isinstance(error, ContextTooShort) else "user", where)
        except MemoryError as error:
            return Failure("user", f"the memory of {self._node} is full ({error}); choose a smaller --length")
        except Exception as error:  # noqa: BLE001 (the driver raises it again)
            return Failure("bug", f"{type(error).__name__}: {error}", traceback.format_exc())
