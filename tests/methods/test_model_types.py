"""Which method runs on which model type: a small random model of every type, every method, and the documented table.

``python tests/methods/test_model_types.py`` writes the table of ``baselines/README.md`` again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers.model_types import (
    CONTEXT,
    OTHERS,
    UNLOADED,
    answers,
    build,
    cells,
    documented,
    outcomes,
    prompts,
    section,
    types,
)

from longctx_bench.engines.hf.engine import HFEngine, apply_method, load_model
from longctx_bench.methods.banded import BandedAttention
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.rnope_swa import RNoPESWA
from longctx_bench.methods.rope_parameters import FULL_UNROTATED
from longctx_bench.methods.rope_scaling import RoPE
from longctx_bench.models.variant import ModelUnderTest

pytestmark = pytest.mark.slow

README = Path(__file__).parent.parent.parent / "baselines" / "README.md"
HEADING = "## Which method runs on which model type\n"


def tokens() -> torch.Tensor:
    """50 tokens, which lie within the training context."""
    return torch.randint(5, 250, (1, 50), generator=torch.Generator().manual_seed(1))


def beyond_context() -> torch.Tensor:
    """The same and then backwards."""
    return torch.cat([tokens(), tokens().flip(1)], dim=1)


@lru_cache(maxsize=2)
@torch.inference_mode()
def plain_logits(model: Any, prompt: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Logits without a method, which are those of every method's base."""
    logits: torch.Tensor = model(prompt()).logits
    return logits


def checked(engine: HFEngine, base: BaseModelInfo, method: Method) -> None:
    """At 1x the base to the last bit, if frequencies are all that is changed; at 2x the same tokens in any batch."""
    model: Any = engine._model
    ids, plain = tokens(), plain_logits(model, tokens)
    # Methods by distance may change nothing up to the training context.
    longer = beyond_context if isinstance(method, BandedAttention) else tokens
    with torch.inference_mode():
        with apply_method(model, ModelUnderTest(base, method, CONTEXT), CONTEXT):
            at_context = model(ids).logits
        assert torch.equal(model(ids).logits, plain), "a method must be undone"
        with apply_method(model, ModelUnderTest(base, method, 2 * CONTEXT), 2 * CONTEXT):
            beyond = model(longer()).logits
    positions = bool(NoPE.changes & method.changes) and not isinstance(method, BandedAttention)
    differs = positions or method.changes_at_1x
    assert torch.equal(at_context, plain) == (not differs), type(method).__name__
    if not isinstance(method, RoPE | RNoPESWA):
        assert not torch.equal(beyond, plain_logits(model, longer)), f"{type(method).__name__} does nothing"
    who, asked = ModelUnderTest(base, method, 2 * CONTEXT), prompts()
    alone = answers(engine, who, asked, together=False)
    # A guess that is right, and one that is wrong after two tokens.
    ids_of = engine.core.tokenizer
    drafts = [tuple(ids_of(text, add_special_tokens=False).input_ids) for text, _ in alone]
    drafted = [replace(each, drafts=(draft, (*draft[:2], 9, 9))) for each, draft in zip(asked, drafts, strict=True)]
    assert answers(engine, who, drafted, together=True) == alone, type(method).__name__


@pytest.mark.parametrize("name", types())
def test_every_method_runs_or_says_why_not(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    kind, entries = types()[name]
    config = build(tmp_path / "model", kind, entries, tiny_folder)
    found = outcomes(tmp_path / "model", name, config, checked)
    assert all("\n" not in outcome for outcome in found.values())
    assert cells(found) == documented(README.read_text(encoding="utf-8"))[name], "run this file as a script"


def test_the_table_names_no_other_types() -> None:
    assert documented(README.read_text(encoding="utf-8")).keys() == types().keys()
    assert UNLOADED.keys() < types().keys()


@pytest.mark.parametrize("kind", sorted(kind for kind, entries in OTHERS.items() if "sliding_window" in entries))
def test_which_layers_rotate_is_known(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Some types rotate in their layers with a window alone: in a model without these, positions change nothing."""
    entries = {**OTHERS[kind], "layer_types": ["full_attention"] * 2}
    config = build(tmp_path / "model", kind, entries, tiny_folder)
    model: Any = load_model(tmp_path / "model", "float32", "cpu")
    ids = tokens()
    with torch.inference_mode():
        plain = model(ids).logits
        with apply_method(model, ModelUnderTest(BaseModelInfo("x", CONTEXT, config), NoPE(), CONTEXT), CONTEXT):
            rotates = not torch.equal(model(ids).logits, plain)
    assert rotates == (kind not in FULL_UNROTATED)


def write() -> None:
    """Write the table into the documentation."""
    from helpers.tiny_models import make_model

    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = make_model(Path(scratch) / "tokenizer")
        for name, (kind, entries) in types().items():
            folder = Path(scratch) / kind / str(len(rows))
            rows[name] = cells(outcomes(folder, name, build(folder, kind, entries, tokenizer), checked))
    before, _, after = README.read_text(encoding="utf-8").partition(HEADING)
    intro = after.partition("| model type")[0]
    _, heading, others = after.partition("\n## ")
    README.write_text(before + HEADING + intro + section(rows) + heading + others, encoding="utf-8")


if __name__ == "__main__":
    write()
