"""Calibration: the search finds a known optimum, and what it writes is what runs use."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

from longctx_bench.analysis.calibration.calibrate import SweepPoint, best_value, calibrate, write_calibration
from longctx_bench.benchmarks.niah import NeedleInAHaystack
from longctx_bench.cli import main
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Request
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.engines.hf.loglikelihood import score_continuations, score_suffixes
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.jet_long import JetLong
from longctx_bench.methods.rope_scaling import RoPE, YaRN
from longctx_bench.metrics import get_metric
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

BASE = BaseModelInfo("tiny", 256, {"rope_theta": 10000.0, "hidden_size": 48, "num_attention_heads": 4})


class Peak:
    """An objective whose best temperature is 1 + 0.4 ln s."""

    name = "retrieval"
    data = "made up"

    def score(self, contestant: ModelUnderTest, n: int) -> float:
        assert isinstance(contestant.method, DroPE)
        assert contestant.method.temperature is not None
        scale = contestant.length / 256
        value = contestant.method.temperature.at(scale)
        return math.exp(-(((value - 1 - 0.4 * math.log(scale)) / 0.2) ** 2))


@pytest.fixture
def drope_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A random DroPE checkpoint with QK-norm beside the tiny tokenizer."""
    from longctx_bench.methods.modeling_drope import LlamaDropeConfig, LlamaDropeForCausalLM

    folder = tmp_path / "drope"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((tiny_folder / "config.json").read_text())
    for key in ("model_type", "architectures", "rope_parameters"):
        config.pop(key, None)
    torch.manual_seed(0)
    LlamaDropeForCausalLM(LlamaDropeConfig(attention_type="qk_norm_nope", **config)).save_pretrained(folder)
    return folder


def test_the_best_value_is_found_at_every_scale(tmp_path: Path) -> None:
    points: list[SweepPoint] = []
    fit = calibrate(DroPE(), BASE, Peak(), [2.0, 4.0, 8.0], 5, points.append)
    for scale, value in fit.table.items():
        assert value == pytest.approx(1 + 0.4 * math.log(scale), abs=0.013)
    assert fit.c == pytest.approx(0.4, abs=0.01)
    assert points == fit.sweep
    assert {point.n for point in points} == {5, 10}


def test_a_plateau_gives_its_middle_and_one_lucky_point_does_not_win() -> None:
    scores = [0.0, 0.0, 0.9, 0.0, 0.0, 0.6, 0.7, 0.7, 0.7, 0.6, 0.0]
    assert best_value([SweepPoint(2.0, 1 + 0.1 * i, score, 5) for i, score in enumerate(scores)]) == pytest.approx(1.7)


@pytest.mark.slow
def test_runs_use_what_calibration_wrote(drope_folder: Path) -> None:
    before = Registry().variant(f"drope:{drope_folder}").method
    assert isinstance(before, DroPE)
    assert before.temperature is not None
    assert (before.temperature.source, before.temperature.c) == ("paper", 0.412)
    fit = calibrate(DroPE(), BASE, Peak(), [2.0, 4.0], 5, lambda point: None)
    path = write_calibration(drope_folder, DroPE(), "drope", Peak(), fit)
    assert (drope_folder / "calibration-temperature-retrieval.png").stat().st_size > 5000
    assert json.loads(path.read_text())["temperature"]["retrieval"]["data"] == "made up"
    after = Registry().variant(f"drope:{drope_folder}").method
    assert isinstance(after, DroPE)
    assert after.temperature is not None
    assert after.temperature.source == "retrieval"
    assert after.temperature.table == fit.table
    paper = Registry(settings={"drope": {"calibration": "paper"}}).variant(f"drope:{drope_folder}").method
    assert isinstance(paper, DroPE)
    assert paper.temperature is not None
    assert paper.temperature.source == "paper"


def test_yarn_takes_a_fit_only_when_asked(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    fits = {"attention_factor": {"retrieval": {"c": 0.2, "table": {"4": 1.5}}}}
    (folder / "calibration.json").write_text(json.dumps(fits))
    plain = Registry().variant(f"yarn:{folder}").method
    fitted = Registry(settings={"yarn": {"calibration": "retrieval"}}).variant(f"yarn:{folder}").method
    assert plain == YaRN()
    assert "attention_factor" not in plain.model_overrides(BASE, 1024)["rope_parameters"]
    assert fitted.model_overrides(BASE, 1024)["rope_parameters"]["attention_factor"] == 1.5


@pytest.mark.slow
def test_losses_equal_a_plain_forward_pass(tiny_folder: Path) -> None:
    engine = HFEngine("cpu", "float32")
    engine.load(tiny_folder)
    model = engine._model
    assert model is not None
    ids = torch.randint(0, 500, (2, 1500), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        logits = model(ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    found_tails = score_suffixes(model, [ids[0].tolist(), ids[1, :900].tolist()], [1499, 100])
    assert torch.allclose(found_tails[0].losses, expected[0], atol=1e-5)
    assert torch.allclose(found_tails[1].losses, expected[1, 799:899], atol=1e-5)
    forked = score_continuations(model, ids[0, :900].tolist(), [ids[0, 900:950].tolist(), ids[0, 900:901].tolist()])
    assert torch.allclose(forked[0].losses, expected[0, 899:949], atol=1e-5)
    assert torch.allclose(forked[1].losses, expected[0, 899:900], atol=1e-5)
    likeliest = logits[0, 899].argmax().item()
    assert [
        tail.greedy for tail in score_continuations(model, ids[0, :900].tolist(), [[likeliest], [likeliest + 1]])
    ] == [
        True,
        False,
    ]
    requests = [Request(str(row), ids[row].tolist(), 0, scored=1499) for row in range(len(ids))]
    found = [item.losses for item in engine.loglikelihood(requests, ModelUnderTest(BASE, RoPE(), 1500))]
    mean = sum(map(sum, found)) / sum(map(len, found))
    assert mean == pytest.approx(float(expected.mean()), abs=1e-5)


@pytest.mark.slow
def test_whole_logits_are_never_held(tiny_folder: Path) -> None:
    engine = HFEngine("cpu", "float32")
    engine.load(tiny_folder)
    model = engine._model
    assert model is not None
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, given, logits: rows.append(logits.shape[0]))
    score_suffixes(model, [torch.randint(0, 500, (5000,)).tolist()], [4999])
    hook.remove()
    assert sum(rows) == 4999
    assert max(rows) == 1024


class Flat(Peak):
    """An objective that says the same of every temperature."""

    def __init__(self, *scores: float) -> None:
        self._scores = scores
        """Of the coarse sweep and of the fine one."""

    def score(self, contestant: ModelUnderTest, n: int) -> float:
        return self._scores[0] if n < 10 else self._scores[-1]


@pytest.mark.parametrize("scores", [(0.0,), (1.0,), (-3.25,), (math.nan,), (-math.inf,)], ids=str)
def test_nothing_is_chosen_among_equals(scores: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"calibrate at 2x: .* nothing is written\. .*--limit.*--objective.*--scale"):
        calibrate(DroPE(), BASE, Flat(*scores), [2.0], 5, lambda point: None)


def test_a_scale_where_nothing_is_found_does_not_cost_the_others() -> None:
    class Near(Peak):
        def score(self, contestant: ModelUnderTest, n: int) -> float:
            return super().score(contestant, n) if contestant.length < 6 * BASE.training_context else 0.0

    fit = calibrate(DroPE(), BASE, Near(), [2.0, 8.0, 4.0], 5, lambda point: None)
    assert sorted(fit.table) == [2.0, 4.0]
    assert fit.left_out.keys() == {8.0}
    assert "nothing found at any value" in fit.left_out[8.0]
    assert {point.scale for point in fit.sweep} == {2.0, 4.0}
    alone = calibrate(DroPE(), BASE, Near(), [2.0, 4.0], 5, lambda point: None)
    assert (fit.table, fit.c) == (alone.table, alone.c)


def test_what_only_the_coarse_sweep_saw_is_nothing() -> None:
    class Lucky(Peak):
        def score(self, contestant: ModelUnderTest, n: int) -> float:
            return float(n < 10 and super().score(contestant, n) > 0.9)

    with pytest.raises(UserError, match="nothing found at any value"):
        calibrate(DroPE(), BASE, Lucky(), [8.0], 5, lambda point: None)


def test_a_plateau_of_the_fine_sweep_is_a_result() -> None:
    class Plateau(Peak):
        def score(self, contestant: ModelUnderTest, n: int) -> float:
            return float(super().score(contestant, n) > 0.3)

    fit = calibrate(DroPE(), BASE, Plateau(), [8.0], 5, lambda point: None)
    assert fit.table[8.0] == pytest.approx(1 + 0.4 * math.log(8), abs=0.1)


@pytest.mark.slow
def test_a_refused_sweep_writes_nothing(
    drope_folder: Path, essays: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in drope_folder.iterdir())
    # Random weights find no needle at any temperature.
    arguments = ["calibrate", f"drope:{drope_folder}", "--scale", "2x", "--limit", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["longctx-bench", *arguments, "--data", f"ruler-essays={essays}"])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert "nothing found at any value" in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert "best" not in shown.out
    assert sorted(path.name for path in drope_folder.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["retrieval", "perplexity"])
def test_the_command(
    objective: str,
    drope_folder: Path,
    essays: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["calibrate", f"drope:{drope_folder}", "--scale", "2x", "--objective", objective, "--limit", "1"]
    arguments += ["--text", str(essays), "--data", f"ruler-essays={essays}", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["longctx-bench", *arguments])
    # Random weights find nothing, of which no sweep could choose; here they find most at 1.
    found = lambda self, contestant, n: 2 - contestant.method.temperature.at(2)  # noqa: E731
    monkeypatch.setattr("longctx_bench.analysis.calibration.objectives.Retrieval.score", found)
    main()
    assert "best temperature: 2x: 1" in capsys.readouterr().out
    assert objective in json.loads((drope_folder / "calibration.json").read_text())["temperature"]


@pytest.mark.slow
def test_a_fit_lies_beside_a_difference_not_beside_what_it_was_merged_to(
    drope_folder: Path, tiny_folder: Path, essays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longctx_bench.training.quantize_delta import pack

    monkeypatch.setenv("LONGCTX_BENCH_CACHE", str(tmp_path / "cache"))
    packed = tmp_path / "packed"
    pack(drope_folder, str(tiny_folder), packed, share=0.05)
    arguments = ["calibrate", f"drope:{packed}", "--scale", "2x", "--limit", "1", "--text", str(essays)]
    arguments += ["--objective", "perplexity"]
    monkeypatch.setattr(sys, "argv", ["longctx-bench", *arguments, "--device", "cpu"])
    main()
    assert not list((tmp_path / "cache").rglob("calibration.json"))
    method = Registry().variant(f"drope:{packed}").method
    assert isinstance(method, DroPE)
    assert method.temperature is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rope-smollm2-135m"], "rope has no scalar to tune"),
        (["yarn-smollm2-135m"], "its weights are not a folder of yours; name one with --out"),
        (["yarn-smollm2-135m", "--scale", "1x"], "beyond the training context"),
        (["yarn-smollm2-135m", "--out", "x", "--objective", "perplexity"], "needs --text FILE"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["longctx-bench", "calibrate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_sweep_writes_its_examples_once() -> None:
    """And the finer sweep's first examples are the coarse one's."""
    from types import SimpleNamespace

    from longctx_bench.analysis.calibration.objectives import Retrieval
    from longctx_bench.core.types import Example

    written: list[int] = []
    read: list[list[str]] = []
    apart: list[bool] = []

    class Made(NeedleInAHaystack):
        def examples(self, encoder: object, length: int, new: int, n: int, seed: int) -> list[Example]:
            written.append(n)
            return [Example(str(i), f"{length} {i}", "", (str(i),), (), length, new) for i in range(n)]

    class Reader:
        def batches(self, requests: list[Request], per_prompt: bool) -> list[list[Request]]:
            read.append([request.example_id for request in requests])
            apart.append(per_prompt)
            return [requests]

        def generate(self, batch: list[Request], contestant: ModelUnderTest, settled: object) -> list[SimpleNamespace]:
            return [SimpleNamespace(example_id=request.example_id, text=request.example_id) for request in batch]

    tasks = Registry().tasks
    registry = SimpleNamespace(
        tasks=tasks,
        select_tasks=lambda names: [tasks[name] for name in names.split(",")],
        benchmark=lambda task: Made(haystack="noise"),
        metric=lambda task: SimpleNamespace(metric=get_metric(task.metric)),
    )
    encoder = SimpleNamespace(encode=lambda prompt, prefix: [1, 2])
    goal = Retrieval(Reader(), encoder, registry, 1)  # type: ignore[arg-type]
    for n in (3, 3, 6, 6):
        assert goal.score(ModelUnderTest(BASE, DroPE(), 512), n) == 1
    assert written == [3, 3, 6, 6]  # each of the two tasks once for 3 and once for 6
    assert read[0] == read[4][:3] == ["0", "1", "2"]
    goal.score(ModelUnderTest(BASE, DroPE(), 1024), 3)
    assert written[4:] == [3, 3]
    assert not any(apart)
    goal.score(ModelUnderTest(BASE, JetLong(), 1024), 3)
    assert apart[-2:] == [True, True], "prompts of other lengths have another factor"
