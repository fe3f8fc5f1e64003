"""``longctx-bench check``: what ships passes, what is wrong fails by the name of what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longctx_bench.analysis.probes.method_contract import check_method
from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import PathSource
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.methods.attention_override import MissingMaskError
from longctx_bench.methods.head_temperatures import HeadTemperatures
from longctx_bench.models.checkpoint import checkpoint_folder, read_config
from longctx_bench.models.variant import ModelUnderTest, ModelVariant
from longctx_bench.registry import Registry

Call = Callable[..., tuple[int, str, str]]

DOCUMENTED = (Path(__file__).parents[3] / "baselines" / "README.md").read_text(encoding="utf-8")

SELF_EXTEND = """
from contextlib import contextmanager
from typing import ClassVar

import torch

from longctx_bench.methods.attention_override import override_attention
from longctx_bench.methods.base import BaseModelInfo, Method

WINDOW, GROUP = 64, 4


def turned(states, angle):
    cos, sin = angle.cos().to(states.dtype), angle.sin().to(states.dtype)
    half = states.shape[-1] // 2
    return states * cos + torch.cat([-states[..., half:], states[..., :half]], dim=-1) * sin


class SelfExtend(Method):
    '''Exact positions nearby, groups of positions beyond (Jin et al. 2024, arXiv 2401.01325).'''

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict:
        return {}

    @contextmanager
    def patch(self, model, base, length):
        if self.scale(base, length) == 1:
            yield
            return
        half = torch.arange(0, base.head_dim, 2, device=model.device).float()
        speed = (base.rope_theta ** (-half / base.head_dim)).repeat(2)

        def attend(module, query, key, value, attention_mask, scaling=None, position_ids=None, **more):
            new, total = query.shape[2], key.shape[2]
            SLOTS
            q_place = k_place[:, -new:]
            far_q = turned(query, ((q_place // GROUP + WINDOW - WINDOW // GROUP - q_place)[:, None, :, None] * speed))
            far_k = turned(key, ((k_place // GROUP - k_place)[:, None, :, None] * speed))
            groups = query.shape[1] // key.shape[1]
            key, far_k, value = (states.repeat_interleave(groups, dim=1) for states in (key, far_k, value))
            distance = (q_place[:, :, None] - k_place[:, None, :])[:, None]
            near = query @ key.transpose(2, 3)
            scores = torch.where(distance < WINDOW, near, far_q @ far_k.transpose(2, 3)) * scaling
            scores = scores.masked_fill(~ALLOWED, float("-inf"))
            weights = scores.softmax(dim=-1).nan_to_num().to(query.dtype)
            return (weights @ value).transpose(1, 2).contiguous(), None

        BRING
"""
RIGHT = {
    "SLOTS": "k_place = (position_ids[:, -1:] + torch.arange(1 - total, 1, device=key.device)).clamp(min=0)",
    "ALLOWED": "(torch.ones(new, total, dtype=torch.bool, device=key.device).tril(total - new)"
    " if attention_mask is None else attention_mask)",
    "BRING": "with override_attention(model, 'i19_self_extend', attend):\n            yield",
}
BY_SLOTS = {
    "SLOTS": "k_place = torch.arange(total, device=key.device)[None]",
    "ALLOWED": "(distance >= 0)",
}
BY_HAND = {
    "BRING": """from transformers import AttentionInterface

        AttentionInterface.register("i19_by_hand", attend)
        before, model.config._attn_implementation = model.config._attn_implementation, "i19_by_hand"
        yield
        model.config._attn_implementation = before"""
}
PATCH = """
from contextlib import contextmanager
from typing import ClassVar

import torch

from longctx_bench.methods.rope_scaling import RoPE


class Mine(RoPE):
    @contextmanager
    def patch(self, model, base, length):
        layers = [layer.self_attn for layer in model.model.layers]
"""


def plugin(folder: Path, source: str, name: str = "mine") -> Path:
    folder.mkdir(exist_ok=True)
    [kind] = re.findall(r"class (\w+)\(", source)
    (folder / f"{name}.yaml").write_text(f"use: ./{name}.py:{kind}\n")
    (folder / f"{name}.py").write_text(source)
    return folder


def self_extend(**changes: str) -> str:
    source = SELF_EXTEND
    for name, code in (RIGHT | changes).items():
        source = source.replace(name, code)
    return source


def results(folder: Path, model: Path, **settings: Any) -> dict[str, str]:
    variant = Registry([folder]).variant(f"mine:{model}")
    return {check.name: check.result for check in check_method(variant, "cpu", **settings).checks}


def failed(folder: Path, model: Path) -> set[str]:
    return {name for name, result in results(folder, model, prompt_tokens=184).items() if result == "failed"}


def on_tiny() -> list[str]:
    registry, found = Registry(), []
    for method in registry.methods:
        try:
            registry.variant(f"{method}-tiny")
        except UserError:
            continue
        found.append(method)
    return found


def first_layers(variant: ModelVariant, layers: int, folder: Path) -> ModelVariant:
    """Return the variant with its model cut down to the first layers: eight take four times as long as two."""
    source = checkpoint_folder(variant.source)
    config = read_config(source)
    by_layer = {name: values[:layers] for name, values in config.items() if name in {"layer_types", "no_rope_layers"}}
    (folder / "config.json").write_text(json.dumps({**config, **by_layer, "num_hidden_layers": layers}))
    weights = load_file(source / "model.safetensors")
    indices = {name: re.search(r"\.layers\.(\d+)\.", name) for name in weights}
    kept = {name: weights[name] for name, index in indices.items() if index is None or int(index[1]) < layers}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})

    method = variant.method
    for law in vars(method).values():
        if isinstance(law, HeadTemperatures):
            table = {scale: grid[:layers] for scale, grid in law.table.items()}
            method = method.with_head_temperatures(HeadTemperatures(table=table))
    short = PathSource(path=folder)
    own_weights = variant.source != variant.model.source
    model = variant.model if own_weights else variant.model.model_copy(update={"source": short})
    return replace(variant, model=model, method=method, source=short)


@pytest.mark.slow
@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize("method", on_tiny())
def test_what_ships_passes(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    registry = Registry()
    own = method.partition("-")[0] in {"drope", "nope", "alibi", "rnope"}
    calibrated = method.endswith(("-retrieval", "-perplexity", "-heads"))
    base = "tiny" if own or calibrated else str(tiny_folder)
    if method == "longrope":
        lists = {"short_factor": [1.0] * 32, "long_factor": [1.0 + index / 8 for index in range(32)]}
        half = registry.variant(f"rope:{tiny_folder}").base(read_config(tiny_folder)).head_dim // 2
        registry = Registry(settings={"longrope": {name: values[:half] for name, values in lists.items()}})
    variant = registry.variant(f"{method}:{base}")
    if base == "tiny":
        # Every fourth layer of rnope-swa is of another kind.
        variant = first_layers(variant, 4 if method == "rnope-swa" else 2, tmp_path)
    found = check_method(variant, "cpu", prompt_tokens=200)
    assert found.passed, found.checks
    assert found.length == (1024 if base == "tiny" else 512)
    judged = {check.name: check.result for check in found.checks}
    assert len(judged) == 10
    own = own or variant.method.changes_at_1x
    assert judged.pop("1x") == ("not applicable" if own else "passed")
    assert {*judged.values()} == {"passed"}


@pytest.mark.slow
def test_an_attention_that_keeps_to_it_passes(tmp_path: Path, tiny_folder: Path, call: Call) -> None:
    folder = plugin(tmp_path / "plugin", self_extend())
    code, out, err = call(
        *("check", "mine", "--model", tiny_folder, "--include-path", folder, "--format", "json", "--device", "cpu"),
        *("--prompt-tokens", "400"),
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["passed"] is True
    assert {check["result"] for check in found["checks"]} == {"passed"}
    assert max(found["prompts"]) > 256


@pytest.mark.slow
def test_an_attention_that_ignores_mask_and_positions_fails_where_rows_are_padded(
    tmp_path: Path, tiny_folder: Path, call: Call
) -> None:
    folder = plugin(tmp_path / "plugin", self_extend(**BY_SLOTS))
    code, out, _ = call(
        *("check", "mine", "--model", tiny_folder, "--include-path", folder, "--device", "cpu"),
        *("--prompt-tokens", "200"),
    )
    assert code == 1
    lines = {line[16:32].strip(): line.split()[0] for line in out.splitlines()[1:]}
    assert {name for name, result in lines.items() if result == "failed"} >= {"left padding", "batch", "batch tokens"}
    assert {lines[name] for name in ("right padding", "chunked prefill", "cached decoding", "1x", "undone")} == {
        "passed"
    }


@pytest.mark.slow
def test_an_attention_without_a_mask_is_refused_by_check_and_run(
    tmp_path: Path, tiny_folder: Path, call: Call, essays: Path
) -> None:
    folder = plugin(tmp_path / "plugin", self_extend(**BY_HAND))
    assert results(folder, tiny_folder) == {"attention mask": "failed"}
    code, _, err = call(
        *(
            "run",
            "--include-path",
            folder,
            "--model",
            f"mine:{tiny_folder}",
            "--tasks",
            "niah",
            "--scale",
            "2x",
            "--limit",
            "1",
        ),
        *("--device", "cpu", "--out", tmp_path / "out", "--data", f"ruler-essays={essays}"),
    )
    assert code == 2
    assert "'i19_by_hand' has no mask registered" in err


def test_an_attention_in_the_place_of_transformers_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    variant = Registry().variant("rope-tiny")
    folder = checkpoint_folder(variant.source)
    contestant = ModelUnderTest(variant.base(read_config(folder)), variant.method, 512)
    model = load_model(folder, "float32", "cpu")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", lambda *_, **__: None)
    with pytest.raises(MissingMaskError, match="replaced 'sdpa'"), apply_method(model, contestant, 512):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        # An attention that looks at who else is there.
        ("hook = layers[0].register_forward_pre_hook(lambda m, a, k: (a, k | {'hidden_states': "
         "k['hidden_states'] * (1 + 0.1 * (len(k['hidden_states']) > 1))}), with_kwargs=True)\n        try:\n"
         "            yield\n        finally:\n            hook.remove()", {"right padding", "left padding", "batch"}),
        # Tokens behind a cache read otherwise than a whole prompt.
        ("hook = layers[0].register_forward_pre_hook(lambda m, a, k: (a, k | {'hidden_states': k['hidden_states'] * "
         "(1 + 0.1 * (k['hidden_states'].shape[1] == 1))}), with_kwargs=True)\n        try:\n"
         "            yield\n        finally:\n            hook.remove()", {"cached decoding", "batch"}),
        ("for layer in layers:\n            layer.scaling *= 1.5\n        yield", {"undone"}),
        ("layers[0].register_forward_hook(lambda *_: None)\n        yield", {"undone"}),
        ("for weight in model.parameters():\n            weight.requires_grad_(False)\n        yield", {"undone"}),
        ("with torch.no_grad():\n            layers[0].q_proj.weight *= 1.1\n            yield\n"
         "            layers[0].q_proj.weight /= 1.1", {"undone"}),
        ("layers[0].register_buffer('mine', torch.ones(1), persistent=False)\n        yield", {"undone"}),
        ("type(layers[0]).mine = lambda self: None\n        yield", {"undone"}),
        ("model.config.rope_parameters['rope_theta'] *= 1.0001\n        yield", {"undone"}),
        ("layers[0].q_proj.weight.grad = torch.zeros_like(layers[0].q_proj.weight)\n        yield", {"undone"}),
        # Undone unless something goes wrong.
        ("before = layers[0].scaling\n        layers[0].scaling = before * 1.0\n        model.mine = 1\n"
         "        yield\n        del model.mine", {"undone"}),
        ("try:\n            yield\n        except Exception:\n            pass", {"undone"}),
        # In the middle of all else, a clear reason.
        ("if length > 256:\n            raise ValueError('no')\n        yield", {"one prompt"}),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_named(tmp_path: Path, tiny_folder: Path, body: str, wrong: set[str]) -> None:
    found = failed(plugin(tmp_path / "plugin", f"{PATCH}        {body}\n"), tiny_folder)
    assert found >= wrong
    if "undone" not in wrong:
        # What is left behind changes all that comes after it.
        assert found <= wrong | {"batch tokens", "drafts"}


@pytest.mark.slow
@pytest.mark.usefixtures("few_tokens")
def test_what_changes_at_1x_says_so(tmp_path: Path, tiny_folder: Path) -> None:
    body = "before = layers[0].scaling\n        layers[0].scaling = 1.1 * before\n        try:\n            yield\n"
    body += "        finally:\n            layers[0].scaling = before\n"
    folder = plugin(tmp_path / "plugin", f"{PATCH}        {body}")
    assert failed(folder, tiny_folder) == {"1x"}
    declared = PATCH.replace("(RoPE):\n", "(RoPE):\n    changes_at_1x: ClassVar[bool] = True\n\n")
    plugin(folder, f"{declared}        {body}")
    found = results(folder, tiny_folder, prompt_tokens=184)
    assert found.pop("1x") == "not applicable"
    assert {*found.values()} == {"passed"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("yran",), "did you mean 'yarn'"),
        (("yarn", "--model", "tinny"), "unknown model"),
        (("yarn", "--model", "rope:./tinny"), "without a method"),
        (("longrope", "--model", "tiny-control"), "longrope needs 'short_factor'"),
        (("yarn", "--prompt-tokens", "40"), "at least"),
        (("drope", "--model", "smollm2-135m"), "has no drope checkpoint"),
        (("yarn", "--format", "csv"), "csv"),
    ],
)
def test_what_cannot_be_checked_is_one_line(call: Call, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = call("check", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_documented_attention_passes(tmp_path: Path, tiny_folder: Path) -> None:
    blocks = dict(re.findall(r"`(mine/[a-z_-]+\.(?:yaml|py))`:\n\n```\w+\n(.*?)```", DOCUMENTED, re.DOTALL))
    blocks = {name: text for name, text in blocks.items() if "sink" in name}
    assert set(blocks) == {"mine/sink.yaml", "mine/sink.py"}
    (tmp_path / "mine").mkdir()
    for name, text in blocks.items():
        (tmp_path / name).write_text(text)
    found = check_method(Registry([tmp_path / "mine"]).variant(f"sink:{tiny_folder}"), "cpu", prompt_tokens=400)
    assert found.passed, found.checks
    assert {check.result for check in found.checks} == {"passed"}


@pytest.mark.slow
def test_a_model_of_other_sizes(tmp_path: Path, tiny_folder: Path) -> None:
    found = check_method(Registry().variant(f"yarn:{tiny_folder}"), "cpu", prompt_tokens=300)
    assert found.passed
    assert torch.is_grad_enabled()
