"""Whatever a file of somebody else's holds, its parser gives a value or a UserError, and nothing that surprises."""

from __future__ import annotations

import json
import string
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import HubSource, WheelSource, read_yaml, validate
from longctx_bench.core.yaml_loader import load_yaml
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.models.delta_weights import read_delta_base
from longctx_bench.models.metadata import eos_token_ids, model_config
from longctx_bench.models.trusted_sources import is_trusted

QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
         "intermediate_size", "max_position_embeddings", "sliding_window")  # fmt: skip
ENTRIES = (*SIZES, "model_type", "architectures", "tie_word_embeddings", "rope_theta", "rope_parameters",
           "rope_scaling", "bos_token_id", "eos_token_id", "quantization_config", "_attn_implementation",
           "text_config")  # fmt: skip
CONFIGS = st.dictionaries(st.sampled_from(ENTRIES) | st.text(), JSON | st.integers(-2, 5000), max_size=8)


@pytest.mark.slow
@QUICK
@given(config=CONFIGS)
def test_a_config_is_read_or_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        read = model_config(tmp_path, "model")
        ids = eos_token_ids(tmp_path)
    except UserError:
        return
    assert all(type(token) is int for token in ids)
    for name in SIZES[:1] + SIZES[1:2] + SIZES[5:6]:
        assert read.get(name) is None or read[name] > 0
    base = BaseModelInfo("model", 512, read)
    for fact in ("head_dim", "rope_theta"):
        try:
            assert getattr(base, fact) > 0
        except UserError:
            continue


@QUICK
@given(content=st.binary(max_size=200) | st.text(alphabet='[]{}":,0aeE-.\\u', max_size=200).map(str.encode))
def test_bytes_in_place_of_a_config_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with suppress(UserError):
        assert isinstance(model_config(tmp_path, "model"), dict)


@pytest.mark.slow
@QUICK
@given(
    source=JSON.map(json.dumps)
    | st.text()
    | st.dictionaries(
        st.sampled_from(["wheel", "version", "sha256", "member", "hub", "revision", "file", "path", "embedded"]), JSON
    ).map(json.dumps)
)
def test_the_header_of_a_difference_names_no_base_that_is_not_known(source: str, tmp_path: Path) -> None:
    header = {"difference": "1", "base": "x", "base_sha256": "0", "sha256": "0"}
    try:
        save_file({"a": torch.zeros(1)}, tmp_path / "d.safetensors", metadata={**header, "base_source": source})
    except UnicodeEncodeError:
        return  # half of a surrogate pair cannot stand in a header
    try:
        origin = read_delta_base(tmp_path / "d.safetensors")
    except UserError:
        return
    # A checkpoint that ships with this project is the only one that a guess can hit.
    assert not is_trusted(origin.source) or hasattr(origin.source, "embedded")


@QUICK
@given(content=st.binary(max_size=100))
def test_bytes_in_place_of_a_difference_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "d.safetensors").write_bytes(content)
    with pytest.raises(UserError):
        read_delta_base(tmp_path / "d.safetensors")


@QUICK
@given(text=st.text(alphabet="ab:-&*<>!|'\"{}[],# \n\t?0", max_size=80) | st.text(max_size=80))
def test_yaml_is_a_mapping_or_refused_and_means_what_yaml_says(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    try:
        file.write_bytes(text.encode())
    except UnicodeEncodeError:
        return
    try:
        loaded = read_yaml(file)
    except UserError:
        return
    assert repr(loaded) == repr(yaml.safe_load(text))


KEYS = st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=3).filter(
    lambda key: key not in ("no", "on", "yes", "off", "y", "n")
)


@pytest.mark.slow
@QUICK
@given(keys=st.lists(KEYS, min_size=1, max_size=6), flow=st.booleans(), quoted=st.booleans())
def test_a_key_that_stands_twice_is_refused_and_no_other(keys: list[str], flow: bool, quoted: bool) -> None:
    written = [f'"{key}"' if quoted and place % 2 else key for place, key in enumerate(keys)]
    text = "{" + ", ".join(f"{key}: 1" for key in written) + "}" if flow else "\n".join(f"{key}: 1" for key in written)
    if len(set(keys)) == len(keys):
        assert load_yaml(f"outer:\n  - {text}" if flow else text)
        return
    with pytest.raises(yaml.YAMLError, match="is repeated"):
        load_yaml(f"outer:\n  - {text}" if flow else text)


def test_what_a_mapping_takes_from_another_it_may_give_a_value_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\nd: [*b, *b]\n")
    loaded = read_yaml(tmp_path / "a.yaml")
    assert (loaded["b"], loaded["c"]) == ({"x": 2, "y": 1}, {"x": 3, "y": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "a: {b: 1, b: 2}\n", "[" * 5000, "a: 2001-99-99\n", "a: !!python/name:os.system x\n"]
)
def test_yaml_that_would_lose_or_run_something_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(UserError, match=r"models.yaml: not valid YAML"):
        read_yaml(tmp_path / "models.yaml")


PARTS = st.sampled_from(["..", ".", "", "a", "b.txt", "a b", "\\", "C:", "\x1b[2J", "a\n", "…", "~", "$HOME", "-r"])


@QUICK
@given(member=st.lists(PARTS, max_size=5).map("/".join) | st.text(max_size=40))
def test_a_member_lies_inside_its_archive(member: str) -> None:
    wheel = {"wheel": "a", "version": "1", "sha256": "0" * 64, "member": member}
    for kind, values in ((WheelSource, wheel), (HubSource, {"hub": "a/b", "file": member})):
        try:
            validate(kind, values, "somewhere")
        except UserError:
            continue
        path = PurePosixPath(member)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert str(path) == member
        assert member.isprintable()


@QUICK
@given(
    name=st.text(max_size=30) | st.text(alphabet="-a.=@/[]; :", max_size=12),
    version=st.text(max_size=20) | st.text(alphabet="-1.*=@ ;", max_size=8),
)
def test_a_requirement_is_one_name_and_one_version(name: str, version: str) -> None:
    try:
        source = validate(
            WheelSource, {"wheel": name, "version": version, "sha256": "0" * 64, "member": "a"}, "somewhere"
        )
    except UserError:
        return
    allowed = set(string.ascii_letters + string.digits + "._-+!")
    assert set(source.wheel + source.version) <= allowed
    assert source.wheel[0].isalnum()
    assert source.version[0].isalnum()
