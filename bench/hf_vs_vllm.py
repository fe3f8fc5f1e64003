"""``python -m bench.hf_vs_vllm``: examples per second of the transformers engine and of vLLM on the same requests.

Random prompts and random weights of a shape, so that no answer ends early; each engine in a process of its own, since
vLLM keeps the memory that it took.
"""

from __future__ import annotations

import argparse
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bench.results import keep
from bench.roofline import SHAPES, build
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines import make_engine
from longctx_bench.registry import Registry

UNKNOWN = "w0"
"""The first word of the tokenizer's vocabulary: w0, w1, ..."""


def checkpoint(shape: str, folder: Path, device: str, dtype: torch.dtype) -> None:
    """Write a model with random weights that never emits EOS, and a tokenizer with one word per token."""
    model = build(shape, device, dtype)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words = {f"w{token}": token for token in range(int(model.config.vocab_size))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def prompts(count: int, length: int, new_tokens: int, right: float, vocab_size: int, seed: int) -> list[Request]:
    """Return requests with random prompts; a random share of them asks for one token only."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab_size, (count, length), generator=generator).tolist()
    short = set(torch.randperm(count, generator=generator)[: round(right * count)].tolist())
    return [Request(str(index), tuple(prompt), 1 if index in short else new_tokens) for index, prompt in enumerate(ids)]


def measure(
    engine: str,
    folder: Path,
    lengths: list[int],
    tokens: int,
    new_tokens: int,
    right: float,
    made: dict[str, object],
) -> dict[int, float]:
    """Return examples per second by length, after a warm-up on other prompts of that length."""
    runs = make_engine(engine, **made)  # type: ignore[arg-type]
    runs.load(folder)
    resolved = Registry().variant(f"rope:{folder}").resolve()
    # One model for all lengths: vLLM would be started again for each.
    model_under_test = resolved.at(max(lengths) + new_tokens)
    throughput = {}
    for length in lengths:
        count = max(1, tokens // length)
        for seed in range(2):
            # New prompts each time, so that vLLM's prefix cache has none of them.
            asked = prompts(count, length, new_tokens, right, int(resolved.base.config["vocab_size"]), seed)
            began = perf_counter()
            done = [
                item
                for batch in runs.batches(asked, False)
                for item in runs.generate(batch, model_under_test, lambda *_: False)
            ]
            seconds = perf_counter() - began
        if sum(item.new_tokens for item in done) != sum(request.max_new_tokens for request in asked):
            raise SystemExit(f"{engine}: an answer ended early")
        throughput[length] = count / seconds
    return throughput


def _apart(answer: Connection, *asked: object) -> None:
    try:
        answer.send(measure(*asked))  # type: ignore[arg-type]
    except UserError as error:
        answer.send(error)


def main() -> None:
    """Measure each engine on each shape."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="hf,vllm")
    parser.add_argument("--shapes", default="135m,7b" if cuda else "tiny")
    parser.add_argument("--lengths", default="4096,16384,65536" if cuda else "512")
    parser.add_argument(
        "--tokens", type=int, default=262144 if cuda else 4096, help="of prompts together, at least one"
    )
    parser.add_argument("--new-tokens", type=int, default=128, help="of each example")
    parser.add_argument("--right", type=float, default=0.0, help="share of examples that are done with one token")
    parser.add_argument("--batch-tokens", type=int, help="as of `run`, for hf: a batch is then decoded to its end")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="as `run --compile` does, for hf")
    chosen = parser.parse_args()
    lengths = list(map(int, chosen.lengths.split(",")))
    for shape in chosen.shapes.split(","):
        if shape not in SHAPES:
            parser.error(f"--shapes: choose among {', '.join(SHAPES)}")
        throughput: dict[str, dict[int, float]] = {}
        with TemporaryDirectory() as scratch:
            checkpoint(shape, Path(scratch), chosen.device, getattr(torch, chosen.dtype))
            if cuda:
                torch.cuda.empty_cache()
            for engine in chosen.engines.split(","):
                made = {"device": chosen.device, "dtype": chosen.dtype, "compiled": chosen.compile and engine == "hf"}
                if engine == "hf":
                    made["batch_tokens"] = chosen.batch_tokens
                asked = (engine, Path(scratch), lengths, chosen.tokens, chosen.new_tokens, chosen.right, made)
                ours, theirs = get_context("spawn").Pipe()
                process = get_context("spawn").Process(target=_apart, args=(theirs, *asked))
                process.start()
                theirs.close()
                try:
                    answer = ours.recv()
                except EOFError:
                    answer = UserError("ended without an answer; what it said stands above")
                process.join()
                if isinstance(answer, UserError):
                    print(f"{shape}: {engine}: {answer}", flush=True)
                    continue
                throughput[engine] = answer
                for length, rate in answer.items():
                    print(f"{shape}, {chosen.dtype}, {length} tokens: {engine} {rate:.3f} examples/s", flush=True)
        if {"hf", "vllm"} <= throughput.keys():
            for length in lengths:
                ratio = throughput["hf"][length] / throughput["vllm"][length]
                keep(f"{shape} at {length} tokens, {chosen.new_tokens} new, vLLM", ratio)


if __name__ == "__main__":
    main()
