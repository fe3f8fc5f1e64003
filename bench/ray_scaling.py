"""``python -m bench.ray_scaling``: the same cells on one worker of a Ray cluster and on several."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from bench.results import keep
from longctx_bench.registry import Registry
from longctx_bench.runner.executors.ray_executor.executor import RayExecutor
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.runner.run import Runner
from longctx_bench.store.run_store import ResultStore


def measure(executor: RayExecutor, registry: Registry, spec: RunSpec, folder: Path) -> tuple[float, int]:
    """Return the seconds of a run on workers that are up, and how many examples it had."""
    store = ResultStore(folder)
    cells = plan(spec, executor.engine, store, registry)
    began = perf_counter()
    outcome = Runner(executor, store, registry, spec).run(cells)
    if len(outcome.finished) < len(cells):
        raise SystemExit(f"{len(outcome.failed)} cells failed and {len(outcome.skipped)} were skipped")
    return perf_counter() - began, sum(planned.n for planned in cells)


def main() -> None:
    """Measure each number of workers on the same cells; starting them is not measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="rope-tiny,pi-tiny,ntk-tiny,yarn-tiny")
    parser.add_argument("--tasks", default="niah")
    parser.add_argument("--lengths", default="512,1024")
    parser.add_argument("--limit", type=int, default=66)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--include-path", type=Path, action="append", default=[])
    parser.add_argument("--ray-address")
    chosen = parser.parse_args()
    registry = Registry(tuple(chosen.include_path))
    variants, tasks = registry.variants(chosen.model), registry.select_tasks(chosen.tasks)
    lengths = tuple(map(int, chosen.lengths.split(",")))
    engine_settings: dict[str, Any] = {"name": "hf", "device": chosen.device, "dtype": chosen.dtype}
    engine_settings["batch_tokens"] = chosen.batch_tokens
    first = 0.0
    for workers in map(int, chosen.workers.split(",")):
        with (
            RayExecutor(engine_settings, registry, workers, chosen.ray_address) as executor,
            TemporaryDirectory() as scratch,
        ):
            executor.wait_for_all()
            # A warm-up run, so that every worker has loaded its model.
            warm = RunSpec(variants, tasks, lengths=lengths[:1], limit=4 * workers)
            measure(executor, registry, warm, Path(scratch, "0"))
            spec = RunSpec(variants, tasks, lengths=lengths, limit=chosen.limit)
            seconds, examples = measure(executor, registry, spec, Path(scratch, "1"))
        first = first or seconds
        if seconds is not first:
            keep(f"{workers} Ray workers, one worker", first / seconds)
        rate = f"{examples / seconds:.2f}/s ({first / seconds:.2f}x)"
        print(f"{workers} workers: {examples} examples in {seconds:.1f} s, {rate}", flush=True)


if __name__ == "__main__":
    main()
