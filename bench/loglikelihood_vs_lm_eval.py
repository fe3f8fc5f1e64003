"""``python -m bench.loglikelihood_vs_lm_eval``: log-likelihoods of long contexts, our model against lm-eval's own."""

from __future__ import annotations

import argparse
import random
from time import perf_counter
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.results import keep
from longctx_bench.benchmarks.ruler.word_lists import all_words
from longctx_bench.lm_eval_adapter.lm import LongCtxLM
from longctx_bench.models.checkpoint import checkpoint_folder
from longctx_bench.registry import Registry


def requests(tokenizer: Any, tokens: int, contexts: int, choices: int) -> list[Instance]:
    """Return log-likelihood requests: ``choices`` continuations of each context, which takes ``tokens`` tokens."""
    rng, words = random.Random(0), all_words()
    made = []
    for _ in range(contexts):
        ids = tokenizer(" ".join(rng.choice(words) for _ in range(tokens)), add_special_tokens=False)["input_ids"]
        context = tokenizer.decode(ids[:tokens])
        made += [Instance("loglikelihood", {}, (context, f" {rng.choice(words)}"), 0) for _ in range(choices)]
    return made


def measure(base: str, tokens: int, contexts: int, choices: int, device: str) -> str:
    """Run both models on the same requests, in turn and in fp32, and return a line."""
    folder = str(checkpoint_folder(Registry().variant(base).source))
    theirs = HFLM(pretrained=folder, dtype="float32", device=device, batch_size=1, max_length=tokens + 16)
    ours = LongCtxLM.create_from_arg_obj(
        {"model": base, "dtype": "float32", "device": device, "max_length": tokens + 16}
    )
    asked = requests(ours.tokenizer, tokens, contexts, choices)
    seconds, answers = [], []
    for model in (theirs, ours):
        model.loglikelihood(requests(ours.tokenizer, 64, 1, 1), disable_tqdm=True)
        began = perf_counter()
        answers.append(model.loglikelihood(asked, disable_tqdm=True))
        seconds.append(perf_counter() - began)
    keep(f"log-likelihoods, {choices} continuations of {tokens} tokens, lm-eval", seconds[0] / seconds[1])
    apart = max(abs(a[0] - b[0]) for a, b in zip(*answers, strict=True))
    return (
        f"{base}, {contexts} contexts of {tokens} tokens, {choices} continuations each: lm-eval hf {seconds[0]:.1f} s, "
        f"longctx {seconds[1]:.1f} s ({seconds[1] / seconds[0]:.2f}x), log-likelihoods at most {apart:.1e} apart"
    )


def main() -> None:
    """Measure one continuation a context, and four."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    for choices in (1, 4):
        print(measure(chosen.base, chosen.tokens, chosen.contexts, choices, chosen.device), flush=True)


if __name__ == "__main__":
    main()
