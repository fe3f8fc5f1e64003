"""Weights as a difference to a base: what comes back, and what is refused."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import PathSource
from longctx_bench.engines.hf.engine import load_model
from longctx_bench.models import delta_weights
from longctx_bench.models.checkpoint import DELTA_FILE, checkpoint_folder, load_tokenizer
from longctx_bench.models.delta_weights import STEPS, compress_codes, decompress_codes
from longctx_bench.training.models import base_folder
from longctx_bench.training.quantize_delta import main, pack

SHARE = 0.04
NEW = "model.layers.0.self_attn.q_norm.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Path:
    """The base shrunk and moved, in bf16, with a vector that it lacks and a row that moved further than codes go."""
    folder = tmp_path / "trained"
    shutil.copytree(base, folder)
    torch.manual_seed(1)
    weights = load_file(base / "model.safetensors")
    moved = {name: (0.7 * w + 0.03 * torch.randn_like(w)).bfloat16() for name, w in weights.items()}
    row = moved["model.embed_tokens.weight"][7]
    row.zero_()
    row[3] = 50.0
    moved["model.layers.1.mlp.up_proj.weight"][5] = 0.0
    moved[NEW] = torch.randn(12).bfloat16()
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "calibration.json").write_text("{}")
    return folder


@pytest.fixture
def packed(trained: Path, base: Path, tmp_path: Path) -> Path:
    pack(trained, str(base), tmp_path / "packed", share=SHARE)
    return tmp_path / "packed"


def merged(folder: Path) -> Path:
    return checkpoint_folder(PathSource(path=folder))


def test_matrices_come_back_within_half_a_step_and_the_rest_exactly(packed: Path, trained: Path) -> None:
    found, wanted = load_file(merged(packed) / "model.safetensors"), load_file(trained / "model.safetensors")
    stored = load_file(packed / DELTA_FILE)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name].dtype == torch.bfloat16
        if weight.dim() == 1:
            assert found[name].equal(weight), name
            continue
        exact = weight.float()
        off = (found[name].float() - exact).abs()
        promised = SHARE * exact.square().mean(1).sqrt()
        steps = stored[name + STEPS].float()
        assert bool((off <= steps[:, None] / 2 * 1.001 + exact.abs() / 256 + 1e-6).all()), name
        # Rows whose codes would not fit have a longer step.
        raised = (steps > promised * 1.01).nonzero().flatten().tolist()
        assert raised == {"model.embed_tokens.weight": [7], "model.layers.1.mlp.up_proj.weight": [5]}.get(name, [])
        off[raised] = 0.0
        assert float(off.square().mean().sqrt() / exact.square().mean().sqrt()) < SHARE / 12**0.5 * 1.05, name


def test_a_merged_folder_loads_with_the_tokenizer_of_its_base(packed: Path, base: Path) -> None:
    assert not list(packed.glob("tokenizer*"))
    folder = merged(packed)
    assert load_tokenizer(folder)("a b 12").input_ids == load_tokenizer(base)("a b 12").input_ids
    assert (folder / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    assert (
        load_model(folder, "bfloat16", "cpu").config.vocab_size == load_model(base, "float32", "cpu").config.vocab_size
    )


def test_a_tokenizer_of_its_own_is_kept(trained: Path, base: Path, tmp_path: Path) -> None:
    (trained / "chat_template.jinja").write_text("{{ messages[0].content }}")
    pack(trained, str(base), tmp_path / "own", share=SHARE)
    assert (merged(tmp_path / "own") / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_calibrations_stay_beside_the_difference(packed: Path) -> None:
    assert (packed / "calibration.json").is_file()
    assert not (merged(packed) / "calibration.json").exists()


def test_it_is_merged_once(packed: Path, base: Path, cache: Path) -> None:
    folder = merged(packed)
    assert folder.parent == cache / "models"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(base)  # No longer needed.
    assert merged(packed) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not list(folder.parent.glob(".converting*"))


def test_another_config_is_another_model(packed: Path) -> None:
    first = merged(packed)
    config = packed / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 256', '"max_position_embeddings": 128'))
    assert merged(packed) != first


def test_runs_that_start_together_merge_once(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge, calls = delta_weights.merge_delta, []

    def slow(*arguments: Path) -> None:
        calls.append(arguments)
        time.sleep(0.3)
        merge(*arguments)

    monkeypatch.setattr(delta_weights, "merge_delta", slow)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(merged, [packed] * 4))) == 1
    assert len(calls) == 1


def test_training_takes_it_as_base(packed: Path) -> None:
    assert base_folder(str(packed)) == merged(packed)


def test_another_base_is_refused(packed: Path, base: Path, cache: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="its base is another base than the weights in"):
        merged(packed)
    assert not list((cache / "models").glob("packed*/"))


def test_the_base_may_lie_in_another_file(packed: Path, base: Path) -> None:
    save_file(load_file(base / "model.safetensors"), base / "weights.safetensors")
    (base / "model.safetensors").unlink()
    assert merged(packed).is_dir()


@pytest.mark.parametrize("kept", [0, 4, 100, 3000, -1])
def test_a_truncated_difference_is_refused(packed: Path, kept: int) -> None:
    file = packed / DELTA_FILE
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match="truncated or damaged"):
        merged(packed)


def test_a_flipped_bit_is_refused(packed: Path) -> None:
    file = packed / DELTA_FILE
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"truncated or damaged.*sha256"):
        merged(packed)


def test_another_format_is_refused(packed: Path) -> None:
    save_file({"a": torch.zeros(2)}, packed / DELTA_FILE, metadata={"difference": "9"})
    with pytest.raises(UserError, match="format 9"):
        merged(packed)
    save_file({"a": torch.zeros(2)}, packed / DELTA_FILE)
    with pytest.raises(UserError, match="format none"):
        merged(packed)


def test_a_difference_of_a_difference_is_refused(packed: Path, trained: Path, base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    pack(trained, str(merged(packed)), second, share=SHARE)
    shutil.copyfile(packed / DELTA_FILE, merged(packed) / DELTA_FILE)
    with pytest.raises(UserError, match="has delta weights itself"):
        merged(second)


def test_codes_are_no_more_than_was_expected() -> None:
    codes = torch.randint(-127, 128, (40, 30)).to(torch.int8)
    stream = compress_codes(codes)
    assert decompress_codes(stream, codes.shape).equal(codes)
    with pytest.raises(ValueError, match="codes in place of"):
        decompress_codes(stream, torch.Size((50, 30)))
    with pytest.raises(ValueError, match="more codes"):
        decompress_codes(stream, torch.Size((30, 30)))


def test_a_size_can_be_asked_for(trained: Path, base: Path, tmp_path: Path) -> None:
    size = 40_000
    packed = pack(trained, str(base), tmp_path / "sized", size=size)
    assert 0.9 * size < packed.bytes <= size
    assert packed.bytes == (tmp_path / "sized" / DELTA_FILE).stat().st_size


def test_the_command_says_what_came_of_it(
    trained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--share", "0.05"]) == 0
    assert "relative rms error" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "one of --share and --bytes" in capsys.readouterr().err
    assert main([*arguments, "--bytes", "10"]) == 2
    assert "--bytes 10" in capsys.readouterr().err
    assert main([*arguments, "--share", "0"]) == 2
    assert main([*arguments[:2], "nosuchbase", *arguments[3:], "--share", "0.05"]) == 2


def test_no_difference_is_taken_from_a_difference(packed: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has delta weights itself"):
        pack(trained, str(packed), tmp_path / "again", share=SHARE)


def test_the_bases_own_folder_is_not_written_to(base: Path, trained: Path) -> None:
    with pytest.raises(UserError, match="the folder of the model or of its base"):
        pack(trained, str(base), base, share=SHARE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bytes", "inf"], "must be a number of bytes"),
        (["--share", "0.1", "--text", "missing.txt"], "cannot be read"),
    ],
)
def test_wrong_arguments_are_one_line(
    base: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([str(trained), "--base", str(base), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_rounding_with_feedback_does_less_to_text(
    base: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river went under the old house and the man saw a light. " * 200, encoding="utf-8")
    given = [str(trained), "--base", str(base), "--share", "0.3", "--text", str(text), "--tokens", "512"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    off, effect = (float(said.split(word)[1].split()[0].strip(",;")) for word in ("rms error ", "on the text "))
    assert effect < off
    assert merged(tmp_path / "out").is_dir()
