"""Methods that are lists of factors, against what the authors' code gives.

``factor_lists.json`` has, for two shapes of heads, inverse frequencies in radians a token (for resonance wavelengths,
in tokens) and the factor on cos and sin. Each was obtained by running the file named here, unchanged and in fp32, in a
scratch environment with torch 2.13; nothing of the files is kept:

- ``mrrope-uni``, ``mrrope-pro``, ``mscale``: mattian7/mrRoPE, d1a6f31eba7f, ``scaled_rope/LlamaYaRNRadix.py``: buffer
  ``inv_freq`` after ``yarn_radix`` and ``yarn_radix3``, with ``scale``, ``base``, ``dim`` and
  ``original_max_position_embeddings`` as given, turns 32 and 1. Both are the paper's equations with j counted from 1.
- ``cope``, ``cope-hard``: hrlics/CoPE, ed52ba5e2d80, ``modeling_cope.py``: ``LlamaRotaryEmbedding(config).inv_freq``
  with ``use_cope`` and with ``use_hardclip``, on transformers' default frequencies.
- ``resonance``: sheryc/resonance_rope, 4a7f5a703b2e, ``rotary_resonance.py`` in
  ``src/models/components/positional_embedding``: ``ResonanceRotaryEmbedding(dim, base=...).r_wavelengths``;
  ``resonance-yarn``: ``r_wavelengths`` of ``LlamaYaRNScaledResonanceRotaryEmbedding``
  (``llama_finetuning/scaled_rope``).
- ``giraffe``, ``giraffe-truncated``, ``giraffe-both``: abacusai/Long-Context, c2a90d1fd0e9, ``interpolate.py`` in
  ``python/models``: ``ScaledLlamaRotaryEmbedding(dim, base=...).freq_2pi`` with ``scale_power=0.5``, with ``truncate``
  = the training context, and with both.

No code of p-RoPE's authors was found: it is held to transformers' own ``proportional`` positions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.engines.hf.model_runner import ModelRunner
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.cope import CoPE
from longctx_bench.methods.factor_list import FactorList, yarn_factors
from longctx_bench.methods.giraffe import Giraffe
from longctx_bench.methods.mrrope import MrRoPEPro, MrRoPEUni
from longctx_bench.methods.p_rope import PartialRoPE
from longctx_bench.methods.resonance import Resonance
from longctx_bench.methods.rope_frequencies import inverse_frequencies
from longctx_bench.methods.rope_scaling import RoPE, YaRN
from longctx_bench.models.variant import ModelUnderTest

ORIGINAL: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("factor_lists.json").read_text())
METHODS: dict[str, FactorList] = {
    "mrrope-uni": MrRoPEUni(),
    "mrrope-pro": MrRoPEPro(),
    "cope": CoPE(),
    "cope-hard": CoPE(hard=True),
    "giraffe": Giraffe(),
    "giraffe-truncated": Giraffe(power=0.0, truncate=True),
    "giraffe-both": Giraffe(truncate=True),
    "resonance": Resonance(),
    "resonance-yarn": Resonance(scaling="yarn"),
}
EVERY = [*METHODS.values(), PartialRoPE()]
CONTEXT = 256  # of the tiny model


def shaped(head_dim: int, rope_theta: float, training_context: int) -> BaseModelInfo:
    shape = {"head_dim": head_dim, "hidden_size": 2 * head_dim, "num_attention_heads": 2, "rope_theta": rope_theta}
    return BaseModelInfo("shaped", training_context, shape)


def on(folder: Path, method: Method, length: int) -> ModelUnderTest:
    config = json.loads((folder / "config.json").read_text())
    return ModelUnderTest(BaseModelInfo("tiny", CONTEXT, config), method, length)


def ids(tokens: int) -> torch.Tensor:
    return torch.randint(0, 500, (1, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", ORIGINAL)
@pytest.mark.parametrize("name", METHODS)
def test_frequencies_are_those_of_the_authors_code(name: str, shape: str) -> None:
    original = ORIGINAL[shape]
    base = shaped(original["head_dim"], original["rope_theta"], original["training_context"])
    length = round(original["scale"] * base.training_context)
    found, attention = inverse_frequencies(base, METHODS[name], length)
    expected = original[name]
    if name.startswith("resonance"):
        waves = [2 * math.pi / each for each in found]
        assert waves == pytest.approx(expected, rel=2e-6), (
            "fp32 rounds waves of a million tokens to another whole number"
        )
        assert [round(wave) for wave in waves if wave < 1e5] == [wave for wave in expected if wave < 1e5]
    else:
        # The originals compute in fp32: 1 + cos x of CoPE loses a digit near pi.
        assert [0.0 if each < 1e-29 else each for each in found] == pytest.approx(expected, rel=2e-6, abs=1e-30)
    scaled = name.startswith("mrrope") or name == "resonance-yarn"
    assert attention == pytest.approx(original["mscale"] if scaled else 1.0, rel=1e-12)


def test_what_resonance_is_built_on_is_transformers_yarn() -> None:
    base = shaped(64, 1e4, 512)
    plain, _ = inverse_frequencies(base, RoPE(), 4096)
    expected, _ = inverse_frequencies(base, YaRN(beta_fast=16, beta_slow=2), 4096)
    divisors = yarn_factors(base, 8.0, 16, 2)
    assert [each / divisor for each, divisor in zip(plain, divisors, strict=True)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.7, 1.0])
def test_p_rope_is_transformers_proportional_positions(tiny_folder: Path, p: float) -> None:
    rope = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": p}
    expected = AutoModelForCausalLM.from_pretrained(
        tiny_folder, rope_parameters=rope, max_position_embeddings=1024, dtype=torch.float32
    ).eval()
    model = load_model(tiny_folder, "float32", "cpu")
    with torch.inference_mode(), apply_method(model, on(tiny_folder, PartialRoPE(p=p), 1024), 1024):
        kept = int(6 * p)
        assert torch.equal(model.model.rotary_emb.inv_freq[:kept], expected.model.rotary_emb.inv_freq[:kept])
        assert torch.equal(model(ids(700)).logits, expected(ids(700)).logits)


@pytest.mark.parametrize(
    ("method", "length"), [(MrRoPEPro(), CONTEXT), (MrRoPEUni(), 100), (PartialRoPE(p=1.0), 1024)], ids=str
)
def test_what_is_the_base_is_the_base_to_the_last_bit(tiny_folder: Path, method: FactorList, length: int) -> None:
    model = load_model(tiny_folder, "float32", "cpu")
    with torch.inference_mode():
        plain, frequencies = model(ids(700)).logits, model.model.rotary_emb.inv_freq.clone()
        with apply_method(model, on(tiny_folder, method, length), length):
            assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
            assert model.model.rotary_emb.attention_scaling == 1.0
            assert torch.equal(model(ids(700)).logits, plain)


def test_resonance_on_yarn_is_resonance_up_to_the_training_context() -> None:
    base = shaped(64, 1e4, 512)
    assert inverse_frequencies(base, Resonance(scaling="yarn"), 512) == inverse_frequencies(base, Resonance(), 4096)


@pytest.mark.parametrize("method", EVERY, ids=lambda method: type(method).__name__)
def test_one_list_is_used_for_every_position_of_a_cell(tiny_folder: Path, method: FactorList) -> None:
    """A token's logits do not depend on what follows, on either side of the training context; all is undone."""
    model = load_model(tiny_folder, "float32", "cpu")
    with torch.inference_mode():
        plain = model(ids(700)).logits
        with apply_method(model, on(tiny_folder, method, 1024), 1024):
            long, again, short = (model(ids(700)[:, :tokens]).logits for tokens in (700, 700, 200))
            assert ModelRunner(model, frozenset()).has_stable_keys
            assert torch.allclose(long[:, :200], short, atol=1e-5)
            assert torch.equal(long, again)
        assert not torch.equal(long, plain)
        assert torch.equal(model(ids(700)).logits, plain)


def test_parameters_move_the_lists() -> None:
    base = shaped(64, 1e4, 512)

    def factors(method: FactorList) -> list[float]:
        return method.factors(base, 2048)

    assert MrRoPEPro(attention_factor=1.3).cos_sin_factor(base, 2048) == 1.3
    assert Resonance(scaling="yarn", attention_factor=1.3).cos_sin_factor(base, 2048) == 1.3
    assert factors(MrRoPEPro(factor=8.0))[-1] == 8.0
    wide, narrow = factors(MrRoPEUni(beta_fast=64)), factors(MrRoPEUni(beta_fast=4))
    assert sum(each > 1 for each in wide) > sum(each > 1 for each in narrow)
    # A band without width is a step.
    assert set(factors(MrRoPEUni(beta_fast=1.02, beta_slow=1.01))) == {1.0, 4.0}
    assert [each >= 1e30 for each in factors(CoPE(clipped=3, hard=True))] == [False] * 29 + [True] * 3
    assert factors(CoPE(clipped=1)) == [1.0] * 32
    assert factors(CoPE(clipped=99, hard=True)) == [1e30] * 32
    assert len({round(each, 9) for each in factors(Giraffe(power=0.0, truncate=True, dropped_from=1.0))}) == 2


@pytest.mark.parametrize(
    ("method", "config", "said"),
    [
        (MrRoPEPro(beta_fast=1.0, beta_slow=2.0), {}, r"beta_fast \(1\) must be above beta_slow \(2\)"),
        (Giraffe(power=0.0), {}, "which is the base as it is"),
        (CoPE(), {"rope_theta": 1.0}, "rope_theta is 1, and frequencies need one above 1"),
        (CoPE(), {"rope_theta": None}, "no rope_theta"),
        (
            PartialRoPE(),
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "PartialRoPE on top of that is not defined",
        ),
    ],
)
def test_what_has_no_list_says_why(method: FactorList, config: dict[str, Any], said: str) -> None:
    base = shaped(64, 1e4, 512)
    with pytest.raises(UserError, match=said):
        method.model_overrides(BaseModelInfo("shaped", 512, base.config | config), 2048)


@pytest.mark.parametrize(
    "setting",
    ["mrrope-pro.beta_fast=0", "mrrope-uni.attention_factor=-1", "cope.clipped=0", "cope.hard=soft", "p-rope.p=1.5",
     "p-rope.p=.nan", "giraffe.power=-1", "resonance.scaling=pi", "mrrope-pro.factor=0.5", "cope.clip=20"],
)  # fmt: skip
def test_bad_parameters_are_one_line(call: Any, setting: str) -> None:
    method, _, rest = setting.partition(".")
    code, out, error = call("run", "--model", f"{method}-tiny", "--dry-run", "--device", "cpu", "--set", setting)
    assert (code, out) == (2, "")
    assert f"method {method}: " in error
    assert rest.partition("=")[0] in error
    assert error.count("\n") == 1
