"""The model card (README.md) of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from longctx_bench.core.io import shipped_folder
from longctx_bench.training.recipe import Recipe

_POSITIONS = {
    "rope": "rotary positions (RoPE)",
    "nope": "no positions (NoPE)",
    "alibi": "no positions, distance penalties (ALiBi): needs the method `alibi` of longctx-bench to be read right",
    "rnope-swa": "sliding-window layers with RoPE, every fourth layer full attention without positions (RNoPE-SWA)",
    "drope": "positions dropped and weights recalibrated (DroPE), in Sakana AI's format",
}

_ONE_VALUE = ", except exercises that ask for several values of one key"


def model_card(recipe: Recipe, facts: dict[str, Any]) -> str:
    """Return the card. ``facts`` are what the run measured: parameters, losses, tokens, seconds, device, versions."""
    sources = ", ".join(source.hub or source.path or "" for source in recipe.data)
    text = f"{recipe.data_description} ({sources})" if recipe.data_description else sources
    retrieval = (
        f"{recipe.retrieval_share:.0%} of the sequences hold a synthetic retrieval exercise in RULER's "
        f"needle-in-a-haystack wording, at most {recipe.retrieval_needles} needles in at most "
        f"{recipe.sequence_length} tokens of the training text"
        if recipe.retrieval_share
        else "no synthetic retrieval sequences"
    )
    if recipe.softmax_temperatures:
        low, high = recipe.softmax_temperatures
        retrieval += (
            f"; the attention logits of each sequence are multiplied by a number drawn between {low:g} and {high:g}, "
            f"one for each {recipe.temperatures_by}"
        )
    if recipe.virtual_length:
        virtual = recipe.virtual_length
        retrieval += (
            f"; virtual length: {virtual.share:.0%} of the sequences raise the attention logits of some keys (by "
            f"{virtual.by}) by a number drawn between 0 and ln {virtual.factor:g}, which stands for a context up to "
            f"{virtual.factor:g} times as long{'' if virtual.several_values else _ONE_VALUE}; this is not part of the "
            f"DroPE paper's recipe"
        )
    measured = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items())
    # Folders of this machine mean nothing to a reader: their last part names the model.
    named = {"base": _name(recipe.base), "tokenizer": _name(recipe.tokenizer)}
    dumped = recipe.model_dump(mode="json", exclude={"corpus"}, exclude_none=True)
    dumped |= {key: place for key, place in named.items() if place is not None}
    settings = yaml.safe_dump(dumped, sort_keys=False, width=100)
    shipped = (shipped_folder("baselines") / "recipes" / f"{recipe.name}.yaml").is_file()
    command = recipe.name if shipped else f"{recipe.name}.yaml"
    origin = f"Continued from `{named['base']}`." if recipe.base else "Trained from scratch."
    origins: dict[str, Any] = {"base_model": named["base"]} if named["base"] else {}
    if hubs := sorted({source.hub for source in recipe.data if source.hub}):
        origins["datasets"] = hubs
    header = yaml.safe_dump(origins, sort_keys=False) if origins else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [longctx-bench, long-context, {recipe.positions}]
{header}---
# {recipe.name}

{recipe.description or f"A model of the longctx-bench project, kind `{recipe.kind}`."} {origin}

- **Positions**: {_POSITIONS[recipe.positions]}.
- **Training context**: {recipe.sequence_length} tokens.
- **Data**: {text}; documents packed end to end, EOS between them; {retrieval}.
- **Seed**: {recipe.seed}.

Made for research on context extension: to be compared with models that differ in their positions only.
Not made for use as an assistant, for facts, or for any decision: it is small, knows little, and was neither
aligned nor filtered.

| measured | |
| --- | --- |
{measured}

Validation losses are mean nats a token on held-out text at the training context.

## Recipe

Command: `longctx-bench train {command}`

```yaml
{settings}```
"""


def _name(place: str | None) -> str | None:
    return Path(place).name if place is not None and Path(place).is_dir() else place
