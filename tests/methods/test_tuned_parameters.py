"""Parameters by extension factor: which are in force at a length, and where a method takes them from."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import apply_method, load_model
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.rope_scaling import NTK, LongRoPE, YaRN, ntk_theta
from longctx_bench.methods.self_extend import SelfExtend
from longctx_bench.methods.tuned_parameters import TunedParameters
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

BASE = BaseModelInfo(
    "tiny",
    256,
    {"model_type": "llama", "rope_theta": 1e4, "hidden_size": 48, "num_attention_heads": 4, "vocab_size": 600},
)


def tuned(table: dict[float, dict[str, Any]]) -> TunedParameters:
    return TunedParameters(table=table, objective="retrieval")


@pytest.mark.parametrize(
    ("scale", "entry"), [(0.5, None), (1, None), (1.1, 2), (2, 2), (2.1, 4), (4, 4), (16, 4)], ids=str
)
def test_the_smallest_entry_that_reaches_a_length_is_in_force(scale: float, entry: float | None) -> None:
    assert tuned({4: {}, 2: {}}).entry_at(scale) == entry


def test_a_method_has_other_parameters_at_each_length() -> None:
    method = YaRN(tuned_parameters=tuned({2: {"beta_fast": 16.0}, 4: {"beta_fast": 8.0, "factor": 6.0}}))
    found = [method.model_overrides(BASE, length)["rope_parameters"] for length in (256, 512, 1024)]
    assert [rope["beta_fast"] for rope in found] == [32, 16, 8]
    assert [rope["factor"] for rope in found] == [1, 2, 6]
    assert method.at(BASE, 256) is method
    assert method.at(BASE, length=512) == YaRN(beta_fast=16)
    assert method.model_overrides(length=512, base=BASE)["rope_parameters"]["beta_fast"] == 16


def test_a_fixed_factor_chooses_the_entry_of_that_factor() -> None:
    method = NTK(factor=4, tuned_parameters=tuned({2: {"factor": 3.0}, 4: {"factor": 7.0}}))
    assert method.model_overrides(BASE, 256)["rope_parameters"]["rope_theta"] == ntk_theta(1e4, 12, 7)


def test_everything_at_a_length_sees_its_parameters() -> None:
    class Mine(Method):
        sharp: float = 1.0

        def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
            return {"max_position_embeddings": int(length * self.sharp)}

        def attention_temperature(self, base: BaseModelInfo, length: int) -> float:
            return self.sharp

        @contextmanager
        def patch(self, model: Any, base: BaseModelInfo, length: int):  # type: ignore[no-untyped-def, override]
            model.append(self.sharp)
            yield
            model.append(-self.sharp)

    method = Mine(tuned_parameters=tuned({2: {"sharp": 2.0}}))
    assert (method.attention_temperature(BASE, 256), method.attention_temperature(BASE, 512)) == (1, 2)
    seen: list[float] = []
    block: AbstractContextManager[None] = method.patch(seen, BASE, 512)  # type: ignore[arg-type]
    with block:
        pass
    assert seen == [2, -2]


def test_a_law_of_the_queries_is_a_requirement_at_every_length() -> None:
    method = YaRN(tuned_parameters=tuned({2: {}, 4: {"query_scale": "log-n"}}))
    assert "query_scale" in method.required_capabilities()
    assert method.at(BASE, 1024).query_scale == "log-n"
    assert "query_scale" not in YaRN(tuned_parameters=tuned({2: {}})).required_capabilities()


def test_what_was_measured_before_is_still_the_same_cell() -> None:
    assert not {"tuned_for", "tuned_parameters"} & SelfExtend(tuned_for="retrieval").model_dump(mode="json").keys()
    assert "tuned_parameters" in SelfExtend(tuned_parameters=tuned({2: {"group": 4}})).model_dump(mode="json")


def folder_with(tiny_folder: Path, target: Path, parameters: Any) -> Path:
    shutil.copytree(tiny_folder, target)
    (target / "calibration.json").write_text(json.dumps({"parameters": parameters}))
    return target


FITS = {"self-extend": {"retrieval": {"table": {"2": {"group": 4, "window": 32}, "4": {}}, "sweep": []}}}


def test_the_registry_takes_what_was_swept_when_asked(tiny_folder: Path, tmp_path: Path) -> None:
    folder = folder_with(tiny_folder, tmp_path / "base", FITS)
    assert Registry().variant(f"self-extend:{folder}").method == SelfExtend()
    variant = Registry().variant(f"self-extend@2x+tuned:{folder}")
    assert variant.name == "self-extend@2x+tuned-base"
    assert variant.method == SelfExtend(factor=2, tuned_parameters=tuned({2: {"group": 4, "window": 32}, 4: {}}))
    by_setting = Registry(settings={"self-extend": {"tuned_for": "retrieval", "factor": 2}})
    assert by_setting.variant(f"self-extend:{folder}").method == variant.method
    again = Registry().variant_from_parts(
        variant.model, variant.spec, variant.method.model_dump(mode="json"), variant.source
    )
    assert again.method == variant.method
    with pytest.raises(UserError, match=r"yarn\+tuned-base: .*no parameters of yarn .* calibrate MODEL --param"):
        Registry().variant(f"yarn+tuned:{folder}")


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"1": {"group": 2}},
        {"2": {"group": 0}},
        {"2": {"gruop": 2}},
        {"2": 3},
        {"x": {}},
        7,
        {"2": {"group": "NaN"}},
    ],
    ids=str,
)
def test_a_foreign_calibration_is_refused_in_one_line(tiny_folder: Path, tmp_path: Path, table: Any) -> None:
    folder = folder_with(tiny_folder, tmp_path / "base", {"self-extend": {"retrieval": {"table": table}}})
    with pytest.raises(UserError, match=r"calibration\.json: self-extend") as error:
        Registry().variant(f"self-extend+tuned:{folder}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parameters", [[], {"self-extend": 3}, {"self-extend": {"retrieval": {}}}], ids=str)
def test_what_is_no_calibration_is_named_by_its_file(tiny_folder: Path, tmp_path: Path, parameters: Any) -> None:
    folder = folder_with(tiny_folder, tmp_path / "base", parameters)
    with pytest.raises(UserError, match=r"calibration\.json: not a calibration"):
        Registry().variant(f"self-extend+tuned:{folder}")


def test_longrope_takes_searched_lists_unless_it_has_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    lists = {scale: [float(scale)] * 6 for scale in ("2", "4")}
    table = {scale: {"short_factor": each, "long_factor": each} for scale, each in lists.items()}
    folder = folder_with(tiny_folder, tmp_path / "base", {"longrope": {"needle-loss": {"table": table}}})
    variant = Registry().variant(f"longrope:{folder}")
    base = variant.base(json.loads((folder / "config.json").read_text()))
    assert variant.method.model_overrides(base, 256) == {}
    for length, scale in ((300, "2"), (512, "2"), (1024, "4"), (4096, "4")):
        assert variant.method.model_overrides(base, length)["rope_parameters"]["long_factor"] == lists[scale]
    fixed = Registry().variant(f"longrope@4x:{folder}").method
    assert fixed.model_overrides(base, 256)["rope_parameters"]["short_factor"] == lists["4"]
    given = {"short_factor": [1.0] * 6, "long_factor": [3.0] * 6}
    own = Registry(settings={"longrope": given}).variant(f"longrope:{folder}").method
    assert own == LongRoPE(**given)  # type: ignore[arg-type]
    assert Registry(settings={"longrope": {"tuned_for": "none"}}).variant(f"longrope:{folder}").method.at(
        base, 512
    ) == LongRoPE(tuned_for="none")


@pytest.mark.parametrize(
    ("plain", "values"),
    [
        (SelfExtend(), {"group": 4, "window": 32}),
        (YaRN(), {"query_scale": "llama4", "query_scale_beta": 0.5, "beta_fast": 8.0}),
    ],
    ids=["self-extend", "yarn"],
)
def test_logits_are_those_of_the_parameters_in_force(tiny_folder: Path, plain: Method, values: dict[str, Any]) -> None:
    base = BaseModelInfo("tiny", 256, json.loads((tiny_folder / "config.json").read_text()))
    model = load_model(tiny_folder, "float32", "cpu")
    ids = torch.randint(0, 500, (1, 400), generator=torch.Generator().manual_seed(1))

    def logits(method: Method) -> torch.Tensor:
        with torch.inference_mode(), apply_method(model, ModelUnderTest(base, method, 512), 512):
            found: torch.Tensor = model(ids).logits
            return found

    method = plain.model_copy(update={"tuned_parameters": tuned({2: values})})
    assert torch.equal(logits(method), logits(plain.with_parameters(values)))
    assert not torch.equal(logits(method), logits(plain))
