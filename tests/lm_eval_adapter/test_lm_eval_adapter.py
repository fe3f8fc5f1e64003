"""lm-eval 0.4.13 itself: our methods as its model, its tasks in our store."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._index import TaskIndex

import longctx_bench
from longctx_bench.benchmarks.lm_eval_task import LMEval
from longctx_bench.cli import main
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.lm_eval_adapter.lm import LongCtxLM
from longctx_bench.lm_eval_adapter.run_task import _manager
from longctx_bench.registry import Registry
from longctx_bench.store.schema import parse_result
from tests.helpers.fake_ray import Reference, StandInRay

pytestmark = pytest.mark.slow

WORDS = (
    "apple river stone cloud maple tiger lemon piano candle forest rocket window garden silver marble".split()  # noqa: SIM905
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task folder of ours that holds lm-eval's stock arc_easy and a stock-like generation task on local rows."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    rows = []
    for index in range(200):
        choices = rng.sample(WORDS, 4)
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 60)))
        rows.append(
            {
                "id": str(index),
                "question": f"{text}. Which word comes next?",
                "choices": {"text": choices, "label": list("ABCD")},
                "answerKey": rng.choice("ABCD"),
                "answer": rng.choice(WORDS),
            }
        )
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stock = Path(lm_eval.tasks.__file__).parent
    local = f"dataset_path: json\ndataset_name: null\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
    splits = "training_split: null\nvalidation_split: null\ntest_split: test\n"
    (folder / "lm_eval").mkdir()
    (folder / "lm_eval/arc_local.yaml").write_text(
        f"include: {stock}/arc/arc_easy.yaml\ntask: arc_local\ntag: []\n{local}{splits}"
    )
    (folder / "lm_eval/words_local.yaml").write_text(
        f"task: words_local\n{local}test_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {until: [' a', '.'], max_gen_toks: 8, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return folder


@pytest.fixture
def few_stock_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lm-eval reads its 14,000 YAML files for every command, which takes ten seconds: here those of ARC alone."""
    stock, files = Path(lm_eval.tasks.__file__).parent, TaskIndex._iter_yaml_files
    monkeypatch.setattr(TaskIndex, "_iter_yaml_files", lambda root: files(root / "arc" if root == stock else root))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lm-eval asks pip, gcc and the machine for a description of the environment, which takes more than a second."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back the handler that lm-eval's command line installs, on the standard error of the test that runs it."""
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Lm-eval's own model and ours on the same weights, in fp32 on the CPU."""
    folder = str(shipped_checkpoint_folder("rope-tiny"))
    return {
        "hf": HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1),
        "longctx": LongCtxLM.create_from_arg_string("method=rope,base=tiny,dtype=float32,device=cpu"),
    }


@pytest.mark.parametrize(("task", "rows"), [("arc_local", 40), ("words_local", 15)])
def test_metrics_equal_those_of_lm_evals_own_model(task: str, rows: int, tasks: Path, models: dict[str, Any]) -> None:
    manager = lm_eval.tasks.TaskManager(include_path=str(tasks / "lm_eval"), include_defaults=False)
    found = {
        name: simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, limit=rows)
        for name, model in models.items()
    }
    assert found["hf"]["results"][task] == found["longctx"]["results"][task]
    samples = {name: result["samples"][task] for name, result in found.items()}
    assert len(samples["hf"]) == rows
    if task == "words_local":
        assert [s["resps"] for s in samples["hf"]] == [s["resps"] for s in samples["longctx"]]
        return
    for theirs, ours in zip(samples["hf"], samples["longctx"], strict=True):
        for (loss, greedy), (other, other_greedy) in zip(theirs["filtered_resps"], ours["filtered_resps"], strict=True):
            assert float(loss) == pytest.approx(float(other), abs=2e-4)
            assert str(greedy) == str(other_greedy)


def test_rolling_and_empty_contexts_and_cuts_equal(models: dict[str, Any]) -> None:
    rng = random.Random(3)
    long = " ".join(rng.choice(WORDS) for _ in range(700))
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in (long, "river stone", "x")]
    pairs = [("", " apple tree"), (long, " apple"), ("a b ", "c"), (" ".join(WORDS * 4), " lemon"),
             (" ".join(WORDS * 4), " tiger piano")]  # fmt: skip
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    theirs, ours = models["hf"], models["longctx"]
    expected = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(expected, abs=5e-3)
    for (loss, greedy), (other, other_greedy) in zip(
        theirs.loglikelihood(asked, disable_tqdm=True), ours.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert loss == pytest.approx(other, abs=2e-4)
        assert greedy == other_greedy


@pytest.mark.parametrize("member", ["drope", "alibi", "nope", "rnope-swa", "yarn"])
def test_choices_that_share_a_context_are_as_likely_as_alone(member: str) -> None:
    # 600 tokens and more: past the sliding window and the training context.
    model = LongCtxLM.create_from_arg_string(f"method={member},base=tiny,dtype=float32,device=cpu,max_length=1024")
    rng = random.Random(5)
    context = " ".join(rng.choice(WORDS) for _ in range(350))
    asked = [Instance("loglikelihood", {}, (context, choice), 0) for choice in (" lemon", " tiger piano river", " a")]
    together = model.loglikelihood(asked, disable_tqdm=True)
    alone = [model.loglikelihood([one], disable_tqdm=True)[0] for one in asked]
    assert [loss for loss, _ in together] == pytest.approx([loss for loss, _ in alone], abs=2e-3)


def test_its_tasks_run_in_our_store(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # no git repository
    arguments = ["run", "--model", "rope-tiny,drope-tiny", "--tasks", "lm_eval:arc_local", "--include-path", str(tasks)]
    arguments += ["--scale", "1x", "--limit", "20", "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["longctx-bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    frame = longctx_bench.report(tmp_path)
    assert set(frame["cell"]) == {"rope-tiny/lm_eval:arc_local/512", "drope-tiny/lm_eval:arc_local/512"}
    assert set(frame["metric"]) == {"acc_norm"}
    assert set(frame["n"]) == {20}
    folder = next((tmp_path / "runs/tiny/rope").glob("lm_eval*arc_local*/512"))
    cell = json.loads((folder / "cell.json").read_text())
    assert cell["score"] == pytest.approx(cell["lm_eval"]["results"]["acc_norm,none"])
    assert "acc,none" in cell["lm_eval"]["results"]
    assert cell["exhausted"] is False, "a larger limit would find more"
    # Part of what the cell is known by: raised, all are measured again.
    task = parse_result(cell).spec.task
    assert (task.benchmark_version, task.metric_version, task.metric) == (1, 1, "lm_eval")
    written = (folder / "records.jsonl").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        main()
    assert (folder / "records.jsonl").stat().st_mtime_ns == written
    assert "not a git repository" not in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", ["longctx-bench", *arguments, "--dry-run"])
    with pytest.raises(SystemExit):
        main()
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if "arc_local" in line]
    assert [row[2] for row in rows] == ["-", "-"], "how long its documents are is not known in advance"


def test_a_worker_of_a_cluster_runs_its_tasks_whole_and_again_when_it_is_lost(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Reference] = []

    def dies(reference: Reference) -> bool:
        if reference.method == "answer" and not lost:
            lost.append(reference)
            return True
        return False

    ray = StandInRay(cpus=1, dies=dies)
    monkeypatch.setattr("longctx_bench.runner.executors.ray_executor.executor.connect", lambda address: (ray, True))
    cells, records = {}, {}
    for executor in ("local", "ray"):
        registry = Registry(include_paths=[tasks])
        frame = longctx_bench.run(
            "rope-tiny", "lm_eval:words_local", scale=[1], limit=5, dtype="float32", device="cpu", executor=executor,
            out=tmp_path / executor, registry=registry,
        )  # fmt: skip
        assert frame["n"].tolist() == [5]
        [path] = (tmp_path / executor).rglob("cell.json")
        cells[executor] = json.loads(path.read_text())
        records[executor] = path.with_name("records.jsonl").read_bytes()
    assert len(lost) == len(ray.lost) == 1
    assert records["ray"] == records["local"]
    for key in ("score", "metric", "n", "lm_eval", "spec_hash"):
        assert cells["ray"][key] == cells["local"][key], key


def test_a_task_of_ones_own_is_known_by_its_entry_whatever_its_file_is_called(tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks/lm_eval/mine"
    folder.mkdir(parents=True)
    text = (tasks / "lm_eval/words_local.yaml").read_text()
    (folder / "questions.yaml").write_text(text.replace("words_local", "'words_mine'  # by another name"))
    [task] = Registry(include_paths=[tmp_path / "tasks"]).select_tasks("lm_eval:words_mine")
    assert task.params["include"] == {"path": str(tmp_path / "tasks/lm_eval")}
    assert _manager(LMEval(**task.params)).all_tasks == ["words_mine"]
    [unknown] = Registry(include_paths=[tmp_path / "tasks"]).select_tasks("lm_eval:words_min")
    assert unknown.params["include"] is None


@pytest.mark.usefixtures("few_stock_tasks")
def test_unknown_tasks_and_data_that_cannot_be_had_are_one_line(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lm-eval has no such task"):
        longctx_bench.run("rope-tiny", "lm_eval:arc_esay", scale=[1], limit=2, device="cpu", out=tmp_path)
    with pytest.raises(UserError, match="lm_eval:piqa: "):
        longctx_bench.run("rope-tiny", "lm_eval:piqa", scale=[1], limit=2, device="cpu", out=tmp_path)


def test_the_papers_six_tasks_are_a_group() -> None:
    chosen = Registry().select_tasks("in_context")
    assert [task.name for task in chosen] == [
        f"lm_eval:{name}" for name in ("arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "winogrande")
    ]


LM_EVAL = [sys.executable, "-c", "from longctx_bench.cli import main; main()", "lm-eval"]


def test_without_lm_eval_the_command_says_what_to_install(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx_bench.cli.run_lm_eval.find_spec", lambda name: None)
    code, _, error = call("lm-eval", "--model", "longctx")
    assert (code, "longctx-bench[lm-eval]" in error) == (2, True)


@pytest.mark.usefixtures("few_stock_tasks")
def test_lm_evals_command_line_knows_the_model(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["lm-eval", "--model", "longctx", "--model_args", "method=drope,base=tiny,dtype=float32", "--tasks"]
    # No --device: lm-eval's default is cuda:0, on a machine without a GPU too.
    command += ["arc_local", "--include_path", str(tasks / "lm_eval"), "--limit", "8"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["longctx-bench", *command])
    main()  # an error would raise SystemExit
    shown = capfd.readouterr()
    assert "|arc_local|" in shown.out
    # This folder is in no repository: git need not be asked, nor complain.
    assert "fatal" not in shown.err
    [heading] = [line for line in shown.out.splitlines() if "Metric" in line]
    assert [cell.strip() for cell in heading.split("|") if cell.strip()][:2] == ["Tasks", "Version"]


def test_lm_evals_own_help_and_errors_come_through(tmp_path: Path) -> None:
    shown = subprocess.run([*LM_EVAL, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert shown.returncode == 0
    assert "--tasks" in shown.stdout
    wrong = subprocess.run(
        [*LM_EVAL, "--model", "longctx", "--nonsense"], capture_output=True, check=False, cwd=tmp_path
    )
    assert wrong.returncode == 2


@pytest.mark.usefixtures("few_stock_tasks")
def test_a_mistake_in_lm_evals_command_line_is_one_line(
    tasks: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["lm-eval", "--model", "longctx", "--model_args", "method=drop,base=tiny", "--tasks", "arc_local"]
    command += ["--include_path", str(tasks / "lm_eval"), "--limit", "1"]
    code, _, error = call(*command)
    assert code == 2
    assert "unknown method 'drop'" in error.splitlines()[-1]
    assert "Traceback" not in error
    command[command.index("arc_local")] = "arc_locl"
    code, _, error = call(*command)
    assert code == 2
    assert "Tasks not found: arc_locl" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_the_device_that_is_missing_is_the_cpu_by_default_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = LongCtxLM.create_from_arg_obj({"model": "rope-tiny"}, {"device": "cuda:0"})
    assert model._engine.device == "cpu"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="CUDA"):
        LongCtxLM.create_from_arg_obj({"model": "rope-tiny", "device": "cuda"})


def test_wrong_model_arguments_are_named() -> None:
    with pytest.raises(UserError, match="--model_args methd: longctx has no such argument; did you mean 'method'"):
        LongCtxLM.create_from_arg_string("methd=drope")
    with pytest.raises(UserError, match="unknown method 'drop'"):
        LongCtxLM.create_from_arg_string("method=drop,base=tiny")
