"""``python -m bench.niah_vs_lm_eval``: speed on a needle grid: lm-eval's own HF model against this project's engine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.results import keep
from longctx_bench.core.types import Example, Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.metrics import get_metric
from longctx_bench.registry import Registry
from longctx_bench.runner.plan import RunSpec, plan
from longctx_bench.runner.request_builder import RequestBuilder
from longctx_bench.store.run_store import ResultStore

NEW_TOKENS = 128
"""RULER's answer budget in tokens."""


class Grid:
    """The same prompts for both sides: in each trial another text, with the needle at some depths."""

    def __init__(self, model: str, length: int, depths: int, trials: int, dtype: str, device: str) -> None:
        """Generate the prompts and load this project's model."""
        registry = Registry()
        variant = registry.variant(model)
        [task] = registry.select_tasks("niah_grid")
        params = {**task.params, "depth_grid": depths}
        task = task.model_copy(update={"max_new_tokens": NEW_TOKENS, "params": params})
        spec = RunSpec((variant,), (task,), lengths=(length,), limit=depths * trials)
        resolved = variant.resolve()
        self.folder = resolved.folder
        self.engine = HFEngine(device, dtype)
        self.engine.load(self.folder)
        self.model_under_test = resolved.at(length)
        cache = RequestBuilder(registry, spec)
        with TemporaryDirectory() as nowhere:
            [planned] = plan(spec, self.engine, ResultStore(Path(nowhere)), registry)
        self.examples: list[Example] = cache.examples(planned, self.folder)
        self.requests: list[Request] = cache.requests(planned, self.folder, resolved.base)
        self._rule = get_metric("string_match_all")

    def score(self, texts: Mapping[str, str]) -> float:
        """Return the mean score in percent."""
        scores = [self._rule.score(texts[example.id], example.references) for example in self.examples]
        return 100 * sum(scores) / len(scores)

    def ours(self) -> tuple[float, dict[str, str]]:
        """Generate all answers; return seconds and texts."""
        references = {example.id: example.references for example in self.examples}
        began = perf_counter()
        texts = {
            item.example_id: item.text
            for batch in self.engine.batches(self.requests, False)
            for item in self.engine.generate(
                batch, self.model_under_test, lambda name, text: self._rule.is_final(text, references[name])
            )
        }
        return perf_counter() - began, texts

    def theirs(self, model: Any) -> tuple[float, dict[str, str]]:
        """Generate all answers with lm-eval's model; return seconds and texts.

        Raises:
            ValueError: it reads other tokens than we do.
        """
        asked = []
        for example, request in zip(self.examples, self.requests, strict=True):
            prompt = example.prompt + example.answer_prefix
            if tuple(model.tok_encode(prompt)) != tuple(request.input_ids):
                raise ValueError(f"{example.id}: lm-eval reads other tokens than this project does")
            settings = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
            asked.append(Instance("generate_until", {}, (prompt, settings), 0))
        began = perf_counter()
        texts = model.generate_until(asked, disable_tqdm=True)
        return perf_counter() - began, dict(zip((e.id for e in self.examples), texts, strict=True))


def measure(grid: Grid, batch_sizes: Sequence[int], length: int) -> Iterator[str]:
    """Yield a line for ours, and one for lm-eval's at each batch size."""
    seconds, texts = grid.ours()
    ours = seconds
    yield f"{length} tokens: longctx {len(texts) / seconds:.3f} examples/s, score {grid.score(texts):.1f}"
    for size in batch_sizes:
        theirs = HFLM(
            pretrained=str(grid.folder),
            dtype=grid.engine.dtype,
            device=grid.engine.device,
            batch_size=size,
            max_length=length + 1,
        )
        seconds, texts = grid.theirs(theirs)
        del theirs
        keep(f"needle grid, {length} tokens, lm-eval in batches of {size}", seconds / ours)
        yield (
            f"{length} tokens: lm-eval hf, batches of {size}, {len(texts) / seconds:.3f} examples/s, "
            f"score {grid.score(texts):.1f}: longctx is {seconds / ours:.1f}x as fast"
        )


def main() -> None:
    """Measure both sides on the same prompts, in the same process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="rope-smollm2-135m")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--batch-sizes", default="1,4,10,20", help="of lm-eval's model; its default is 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parser.parse_args()
    grid = Grid(chosen.model, chosen.length, chosen.depths, chosen.trials, chosen.dtype, chosen.device)
    sizes = [int(size) for size in chosen.batch_sizes.split(",")]
    for line in measure(grid, sizes, chosen.length):
        print(line, flush=True)


if __name__ == "__main__":
    main()
