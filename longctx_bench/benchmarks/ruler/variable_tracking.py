"""RULER's variable tracking: follow a chain of assignments through noise."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from longctx_bench.benchmarks import haystack
from longctx_bench.benchmarks.base import IndexedBenchmark, example_id
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.benchmarks.ruler import prompt_templates
from longctx_bench.core.types import Example

_EXAMPLE_TOKENS = 500
"""RULER limits the one-shot example to 500 tokens; here to a quarter of the length below L = 2,000."""


class VariableTracking(IndexedBenchmark):
    """Find all variables with a value, assigned directly or through ``hops`` copies (RULER, section 3)."""

    id: ClassVar[str] = "ruler-variable-tracking"
    references_from_data: ClassVar[bool] = False

    chains: int = Field(default=1, ge=1)
    hops: int = Field(default=4, ge=1)

    def example(self, encoder: PromptEncoder, length: int, max_new_tokens: int, seed: int, index: int) -> Example:
        """Return one example of at most ``length`` and more than ``length - haystack.WINDOW`` tokens."""
        rng = random.Random(f"tracking {seed} {index}")
        shot = self._one_shot(encoder, min(_EXAMPLE_TOKENS, length // 4), rng)
        chains = self._draw_chains(rng, letters=5)
        placement = rng.random()
        slots = {"query": _value(chains), "num_v": self.hops + 1}
        answer_prefix = prompt_templates.VT_ANSWER.format(**slots)

        def prompt(noises: int) -> str:
            context = _hide(chains, noises, random.Random(placement))
            return shot + prompt_templates.VT_PROMPT.format(context=context, **slots)

        noises, n_tokens = haystack.fit_to_budget(
            lambda noises: encoder.count(prompt(noises), answer_prefix),
            length - max_new_tokens,
            haystack.WINDOW,
            0,
            max(1, (length - 300) // 25),
            f"vt at {length}",
        )
        text = prompt(noises)
        context = _hide(chains, noises, random.Random(placement))
        starts = [context.index(statement) for chain in chains for statement in chain]
        return Example(
            id=example_id(index),
            prompt=text,
            answer_prefix=answer_prefix,
            references=tuple(statement.split()[1] for statement in chains[0]),
            depths=tuple(round(100 * start / len(context), 2) for start in starts),
            n_tokens=n_tokens,
            max_new_tokens=max_new_tokens,
        )

    def expected_completion(self, references: Sequence[str]) -> str:
        """Join the names as in the one-shot example."""
        return " ".join(references)

    def _one_shot(self, encoder: PromptEncoder, budget: int, rng: random.Random) -> str:
        """Return a one-shot example of at most ``budget`` tokens, or without noise if that is too few."""
        chains = self._draw_chains(rng, letters=3)
        placement = rng.random()
        slots = {"query": _value(chains), "num_v": self.hops + 1}
        answer = " ".join(statement.split()[1] for statement in chains[0])

        def shot(noises: int) -> str:
            context = _hide(chains, noises, random.Random(placement))
            question = prompt_templates.VT_PROMPT.format(context=context, **slots) + prompt_templates.VT_ANSWER.format(
                **slots
            )
            return f"{question} {answer}\n\n"

        min_tokens = encoder.size(shot(0))
        per_noise = encoder.size(prompt_templates.NOISE + "\n")
        return shot(max(0, (budget - min_tokens) // per_noise))

    def _draw_chains(self, rng: random.Random, letters: int) -> list[list[str]]:
        names: list[str] = []
        while len(names) < self.chains * (self.hops + 1):
            name = "".join(rng.choices(string.ascii_uppercase, k=letters))
            if name not in names:
                names.append(name)
        chains = []
        for first in range(0, len(names), self.hops + 1):
            chain = names[first : first + self.hops + 1]
            copies = [f"VAR {new} = VAR {old} " for old, new in itertools.pairwise(chain)]
            chains.append([f"VAR {chain[0]} = {rng.randint(10000, 99998)}", *copies])
        return chains


def _value(chains: list[list[str]]) -> str:
    return chains[0][0].split("=")[-1].strip()


def _hide(chains: list[list[str]], noises: int, rng: random.Random) -> str:
    """Insert the statements of each chain, in order, at random positions between the noise sentences."""
    # Positions are drawn as fractions, so that the draws do not depend on the number of sentences.
    placed = [
        (position, number, statement)
        for number, chain in enumerate(chains)
        for position, statement in zip(sorted(rng.random() for _ in chain), chain, strict=True)
    ]
    lines = [prompt_templates.NOISE] * noises
    for position, _, statement in sorted(placed, key=lambda item: item[0], reverse=True):
        lines.insert(int(position * (noises + 1)), statement)
    return "\n".join(lines)
