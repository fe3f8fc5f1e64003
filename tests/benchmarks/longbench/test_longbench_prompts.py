"""LongBench's prompts equal what its own pred.py made (data/README.md says how); its rows, lengths and stop tokens."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.longbench_rows import row

from longctx_bench.api import evaluation
from longctx_bench.benchmarks.base import ContextTooShort
from longctx_bench.benchmarks.longbench.benchmark import LongBench, truncate_middle
from longctx_bench.benchmarks.longbench.reader import read_rows
from longctx_bench.benchmarks.prompt_encoder import PromptEncoder
from longctx_bench.core.errors import UserError
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.core.types import NATURAL
from longctx_bench.models.checkpoint import load_tokenizer
from longctx_bench.registry import ALL_EXAMPLES, Registry

ORACLE = json.loads((Path(__file__).parents[2] / "data" / "longbench_prompts.json").read_text(encoding="utf-8"))
REGISTRY = Registry()
METRICS = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "multifieldqa_zh": "qa_f1_zh",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "dureader": "rouge_l_zh",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "vcsum": "rouge_l_zh",
    "trec": "classification",
    "triviaqa": "qa_f1_first_line",
    "samsum": "rouge_l_first_line",
    "lsht": "classification",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "passage_retrieval_zh": "retrieval_zh",
    "lcc": "code_sim",
    "repobench-p": "code_sim",
}
CHINESE = ["multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"]
E_TASKS = [
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
]  # fmt: skip
NEVER_IN_A_CHAT = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
EVERY_TASK = [*METRICS, *(f"{name}_e" for name in E_TASKS)]
Call = Callable[..., tuple[int, str, str]]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def benchmark(task: str, data: Path) -> LongBench:
    registry = Registry(local_data={"longbench": data})
    made = registry.benchmark(registry.tasks[task])
    assert isinstance(made, LongBench)
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows), encoding="utf-8")
    return path


def some_rows(n: int = 5) -> list[dict[str, Any]]:
    return [{**row("prose", 3 + 2 * place, 5 + place), "all_classes": ["Lamp", "Boat"]} for place in range(n)]


@pytest.fixture(scope="module", params=["no bos", "bos"])
def family(request: pytest.FixtureRequest) -> tuple[str, PromptEncoder]:
    """The tokenizer of the tiny family, as it ships and with its end token as BOS."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(shipped_checkpoint_folder("rope-tiny"))
    if request.param == "bos":
        end = "<|endoftext|>"
        special = [(end, tokenizer.convert_tokens_to_ids(end))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=special)
    return request.param, PromptEncoder(tokenizer)


# -- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_TASK)
def test_every_task_is_upstreams(name: str) -> None:
    task, upstream = REGISTRY.tasks[name], name.removesuffix("_e")
    assert task.use == "longbench"
    assert [digest(task.params["template"]), task.max_new_tokens] == ORACLE["templates"][upstream]
    assert task.metric == f"longbench_{METRICS[upstream]}"
    assert task.chat_template is (upstream not in NEVER_IN_A_CHAT)
    assert (task.stop, task.min_new_tokens) == ((("\n",), 1) if upstream == "samsum" else ((), 0))
    assert (task.params["data"], task.params["rows"]) == ("longbench", name)


def test_the_groups_hold_each_task_once() -> None:
    groups = REGISTRY.groups
    assert groups["longbench"] == list(METRICS)
    assert groups["longbench_e"] == [f"{name}_e" for name in E_TASKS]
    assert groups["longbench_zh"] == CHINESE
    assert groups["longbench_en"] == [name for name in METRICS if name not in CHINESE]
    assert groups["longbench_drope"] == ["multifieldqa_en", "musique", "gov_report", "lcc"]
    assert (len(groups["longbench"]), len(groups["longbench_e"])) == (21, 13)
    assert (len(groups["longbench_en"]), len(groups["longbench_zh"])) == (16, 5)


# -- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ORACLE["tasks"])
def test_cutting_is_upstreams(task: str, family: tuple[str, PromptEncoder]) -> None:
    name, encoder = family
    kept = ORACLE["tasks"][task]
    template = REGISTRY.tasks[task].params["template"]
    whole = [template.format(**row(kept["kind"], *shape)) for shape in kept["rows"]]
    for budget, prompts in kept["prompts"][name].items():
        cut = [truncate_middle(encoder, prompt, int(budget)) for prompt in whole]
        assert [[digest(prompt), encoder.count(prompt)] for prompt in cut] == prompts, budget


@pytest.mark.slow
@pytest.mark.parametrize("task", ORACLE["tasks"])
def test_examples_are_upstreams_where_upstream_keeps_to_its_budget(
    task: str, family: tuple[str, PromptEncoder], tmp_path: Path
) -> None:
    name, encoder = family
    kept = ORACLE["tasks"][task]
    write(tmp_path / f"{task}.jsonl", [row(kept["kind"], *shape) for shape in kept["rows"]])
    new = REGISTRY.tasks[task].max_new_tokens
    for budget, prompts in kept["prompts"][name].items():
        length = int(budget) + new
        examples = list(benchmark(task, tmp_path).examples(encoder, length, new, ALL_EXAMPLES, 42))
        assert len(examples) == len(prompts)
        for example, (expected, tokens) in zip(examples, prompts, strict=True):
            assert (digest(example.prompt) == expected) is (tokens <= int(budget))
            assert example.n_tokens == encoder.count(example.prompt) <= length - new


def test_upstreams_prompts_exceed_their_budget_in_some_of_the_cases() -> None:
    over = [
        tokens > int(budget)
        for kept in ORACLE["tasks"].values()
        for cells in kept["prompts"].values()
        for budget, prompts in cells.items()
        for _, tokens in prompts
    ]
    assert 5 <= sum(over) < len(over) // 2


def test_examples_carry_what_their_metric_and_buckets_need(tiny_encoder: PromptEncoder, tmp_path: Path) -> None:
    rows = some_rows()
    write(tmp_path / "trec.jsonl", rows)
    examples = list(benchmark("trec", tmp_path).examples(tiny_encoder, NATURAL, 64, 3, 42))
    assert [example.id for example in examples] == ["000000", "000001", "000002"]
    for example, line in zip(examples, rows, strict=False):
        assert example.references == tuple(line["answers"])
        assert (example.classes, example.words) == (("Lamp", "Boat"), line["length"])
        assert (example.answer_prefix, example.depths) == ("", ())
        assert line["context"] in example.prompt
        assert line["input"] in example.prompt


@pytest.mark.slow
def test_a_chat_template_counts_towards_the_length(plain_tokenizer: Any, tmp_path: Path) -> None:
    encoder = PromptEncoder(plain_tokenizer, chat_template=True)
    write(tmp_path / "qasper.jsonl", [row("prose", 60, 5)])
    [example] = benchmark("qasper", tmp_path).examples(encoder, 428, 128, 1, 42)
    assert 280 < example.n_tokens == encoder.count(example.prompt) <= 300
    assert "<assistant>" not in example.prompt


def test_a_length_that_leaves_nothing_of_the_prompt_does_not_fit(tiny_encoder: PromptEncoder, tmp_path: Path) -> None:
    write(tmp_path / "qasper.jsonl", some_rows())
    for length in (50, 128, 128 + 31):
        with pytest.raises(ContextTooShort, match="at least 32 are needed"):
            list(benchmark("qasper", tmp_path).examples(tiny_encoder, length, 128, 1, 42))
    [example] = benchmark("qasper", tmp_path).examples(tiny_encoder, 128 + 32, 128, 1, 42)
    assert example.n_tokens <= 32


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_forms_of_the_files_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = [*some_rows(3), {**row("chinese", 5, 1), "context": "a\u2028b\x85c {input}"}]
    plain = write(tmp_path / "plain" / "lcc.jsonl", lines)
    expected = read_rows(plain.parent, "lcc", ALL_EXAMPLES)
    assert [found.context for found in expected] == [line["context"] for line in lines]
    assert [found.length for found in expected] == [line["length"] for line in lines]
    assert (expected[0].classes, expected[-1].classes) == (("Lamp", "Boat"), ())

    write(tmp_path / "below" / "data" / "lcc.jsonl", lines)
    blank = tmp_path / "blank" / "lcc.jsonl"
    blank.parent.mkdir()
    blank.write_bytes(b"\n" + plain.read_bytes().replace(b"\n", b"\n\n").rstrip())
    packed = tmp_path / "packed" / "lcc.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = tmp_path / "table" / "lcc.parquet"
    split = tmp_path / "split" / "lcc" / "test-00000-of-00001.parquet"
    for file in (table, split):
        file.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), file)
    hub = tmp_path / "data.zip"
    with zipfile.ZipFile(hub, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "data/lcc_e.jsonl")
        archive.write(plain, "data/lcc.jsonl")
        archive.writestr("data/hotpotqa.jsonl", "[]")

    places = ["below", "packed", "table", "split"]
    for source in [*(tmp_path / place for place in places), plain, packed, table, blank, hub]:
        assert read_rows(source, "lcc", ALL_EXAMPLES) == expected, source
        assert read_rows(source, "lcc", 2) == expected[:2], source
    with pytest.raises(UserError, match="is not the file of hotpotqa; name the folder"):
        read_rows(plain, "hotpotqa", ALL_EXAMPLES)


@pytest.mark.slow
def test_parts_of_a_split_are_read_in_their_order(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = some_rows(6)
    (tmp_path / "lcc").mkdir()
    for part in range(3):
        table = pyarrow.Table.from_pylist(lines[2 * part : 2 * part + 2])
        pyarrow.parquet.write_table(table, tmp_path / "lcc" / f"test-0000{part}-of-00003.parquet")
    assert [found.context for found in read_rows(tmp_path, "lcc", 5)] == [line["context"] for line in lines[:5]]


GOOD = json.dumps(row("prose", 3, 5))
BROKEN_LINES = [
    ("{", "is not JSON"),
    ("[1]", "is not a JSON object"),
    (json.dumps({"input": "", "answers": ["a"], "length": 1}), "has no text under 'context'"),
    (json.dumps({"context": "", "input": 5, "answers": ["a"], "length": 1}), "has no text under 'input'"),
    (json.dumps({"context": "", "input": "", "length": 1}), "has no list of texts under 'answers'"),
    (json.dumps({"context": "", "input": "", "answers": [], "length": 1}), "has no list of texts under 'answers'"),
    (json.dumps({"context": "", "input": "", "answers": [1], "length": 1}), "has no list of texts under 'answers'"),
    (json.dumps({"context": "", "input": "", "answers": ["a"]}), "has no whole number under 'length'"),
    (json.dumps({"context": "", "input": "", "answers": ["a"], "length": "9"}), "has no whole number under 'length'"),
    (
        json.dumps({"context": "", "input": "", "answers": ["a"], "length": 9, "all_classes": "Lamp"}),
        "has no list of texts under 'all_classes'",
    ),
    (
        json.dumps({"context": "", "input": "", "answers": ["a"], "length": 9, "all_classes": 5}),
        "has no list of texts under 'all_classes'",
    ),
]


@pytest.mark.parametrize(("line", "message"), BROKEN_LINES)
def test_a_broken_row_is_named_by_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    text = f"{GOOD}\n\n{line}\n{GOOD}\n"
    file = tmp_path / "lcc.jsonl"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        read_rows(tmp_path, "lcc", ALL_EXAMPLES)
    assert str(raised.value).startswith(f"{file}: line 3 {message}")
    # What is not asked for is not read.
    assert len(read_rows(tmp_path, "lcc", 1)) == 1
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/lcc.jsonl", text)
    with pytest.raises(UserError) as raised:
        read_rows(tmp_path / "data.zip", "lcc", ALL_EXAMPLES)
    assert str(raised.value).startswith(f"{tmp_path / 'data.zip'}: data/lcc.jsonl: line 3 {message}")


@pytest.mark.slow
def test_a_broken_row_of_a_parquet_file_is_named_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "lcc.parquet"
    rows = [{"context": "a", "input": "", "answers": answers, "length": 1} for answers in (["a"], [])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    with pytest.raises(UserError, match="lcc.parquet: row 2 has no list of texts under 'answers'"):
        read_rows(tmp_path, "lcc", ALL_EXAMPLES)
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="lcc.parquet: not a readable parquet file"):
        read_rows(tmp_path, "lcc", ALL_EXAMPLES)


def test_a_missing_file_is_named_with_a_near_miss(tmp_path: Path) -> None:
    write(tmp_path / "hotpotqa.jsonl", some_rows())
    with pytest.raises(
        UserError, match=r"has no hotpotqa_e.jsonl \(nor .jsonl.gz, .parquet\); did you mean 'hotpotqa'"
    ):
        read_rows(tmp_path, "hotpotqa_e", ALL_EXAMPLES)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/hotpotqa.jsonl", GOOD)
    with pytest.raises(UserError, match="data.zip: has no member hotpotqa_e.jsonl"):
        read_rows(tmp_path / "data.zip", "hotpotqa_e", ALL_EXAMPLES)


def damaged(kind: str, tmp_path: Path) -> Path:
    """Return a packed file whose stream is cut off, overwritten, or no such stream at all."""
    text = "".join(f"{json.dumps(row('prose', 40, step))}\n" for step in range(60)).encode()
    form, how = kind.split(": ")
    file = tmp_path / ("lcc.jsonl.gz" if form == "gz" else "data.zip")
    if form == "gz":
        file.write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data/lcc.jsonl", b"\xff\xfe" if how == "no utf-8" else text)
    packed = file.read_bytes()
    if how == "cut off":
        packed = packed[: len(packed) // 2]
    elif how == "overwritten":
        packed = packed[:200] + b"\xff" * 200 + packed[400:]
    elif how == "something else":
        packed = b"<!doctype html>"
    elif form == "gz":
        packed = gzip.compress(b"\xff\xfe")
    file.write_bytes(packed)
    return file


@pytest.mark.parametrize("form", ["gz", "zip"])
@pytest.mark.parametrize("how", ["cut off", "overwritten", "something else", "no utf-8"])
def test_a_damaged_file_is_one_line(form: str, how: str, tmp_path: Path) -> None:
    file = damaged(f"{form}: {how}", tmp_path)
    with pytest.raises(UserError, match="fetch it again") as raised:
        read_rows(file, "lcc", ALL_EXAMPLES)
    assert str(raised.value).startswith(f"{file}: ")


def test_a_file_without_rows_is_one_line(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "lcc.jsonl", [])
    with pytest.raises(UserError, match="lcc.jsonl: holds no rows"):
        read_rows(tmp_path, "lcc", ALL_EXAMPLES)
    code, _, error = call(
        "run", "--model", tiny_folder, "--tasks", "lcc", "--length", "natural", "--engine", "echo",
        "--data", f"longbench={tmp_path}", "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, "lcc.jsonl: holds no rows" in error) == (2, True)


# -- runs -----------------------------------------------------------------------------------------------------------


def run_all(tiny_folder: Path, data: Path, out: Path, tasks: str = "multi_news", **options: Any) -> Any:
    options = {"length": [NATURAL], "limit": 10, "engine": "echo", **options}
    return evaluation.run(
        str(tiny_folder), tasks, out=out, registry=Registry(local_data={"longbench": data}), **options
    )


def test_natural_keeps_the_whole_prompt(tiny_encoder: PromptEncoder, tmp_path: Path) -> None:
    rows = [row("prose", 200, 7), row("prose", 2, 5)]
    write(tmp_path / "multi_news.jsonl", rows)
    examples = list(benchmark("multi_news", tmp_path).examples(tiny_encoder, NATURAL, 512, ALL_EXAMPLES, 42))
    template = REGISTRY.tasks["multi_news"].params["template"]
    assert [example.prompt for example in examples] == [template.format(**line) for line in rows]
    assert [example.n_tokens for example in examples] == [tiny_encoder.count(example.prompt) for example in examples]


@pytest.mark.slow
def test_a_natural_cell_ends_with_its_rows(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write(data / "multi_news.jsonl", [row("prose", pieces, 5) for pieces in (2, 30, 60, 120, 380)])
    frame = run_all(tiny_folder, data, out)
    assert frame["n"].tolist() == [5]
    cell = out / "runs" / "tiny" / "rope" / "multi_news" / "natural"
    summary = json.loads((cell / "cell.json").read_text())
    assert (summary["n"], summary["exhausted"], summary["factor_source"]) == (5, True, "each prompt")
    records = [json.loads(line) for line in (cell / "records.jsonl").read_text().splitlines()]
    longest = max(record["prompt_tokens"] for record in records)
    assert summary["factor"] == (longest + 512) / 256

    finished = (cell / "cell.json").stat().st_mtime_ns
    run_all(tiny_folder, data, out)
    run_all(tiny_folder, data, out, limit=5)
    assert (cell / "cell.json").stat().st_mtime_ns == finished
    assert not (out / "superseded").exists()

    code, shown, _ = call("report", out, "--format", "md")
    assert code == 0
    assert "| natural |" in shown
    [table] = [part for part in shown.split("\n\n") if "0-2x" in part]
    assert "multi_news at natural, by the documents' length" in shown
    sizes = [record["prompt_tokens"] / 256 for record in records]
    for column, low, high in ((1, 0, 2), (2, 2, 4), (3, 4, 8), (4, 8, 16), (5, 16, 10**9)):
        inside = sum(low <= size < high for size in sizes)
        found = table.splitlines()[-1].strip("| ").split("|")[column].strip() if inside else ""
        assert found.endswith(f"({inside})" if inside else ""), (column, table)
    code, shown, error = call("show", "rope-tiny/multi_news/natural", "4", "--out", out, "--data", f"longbench={data}")
    assert (code, "--- references" in shown) == (0, True), error


def test_a_cell_of_fewer_rows_is_taken_up_and_not_exhausted(tiny_folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write(data / "multi_news.jsonl", some_rows())
    cell = out / "runs" / "tiny" / "rope" / "multi_news" / "natural"
    run_all(tiny_folder, data, out, limit=2)
    assert json.loads((cell / "cell.json").read_text())["exhausted"] is False
    run_all(tiny_folder, data, out)
    summary = json.loads((cell / "cell.json").read_text())
    assert (summary["n"], summary["exhausted"]) == (5, True)


def test_length_natural_beside_a_number_makes_two_cells(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "lcc_e.jsonl", some_rows())
    arguments = ["run", "--model", tiny_folder, "--tasks", "lcc_e", "--length", "natural,200", "--engine", "echo"]
    arguments += ["--data", f"longbench={tmp_path}", "--out", tmp_path / "run"]
    code, shown, error = call(*arguments)
    assert code == 0, error
    assert "0-4k words" in shown
    assert sorted(path.name for path in (tmp_path / "run/runs/tiny/rope/lcc_e").iterdir()) == ["200", "natural"]
    code, shown, error = call(*arguments, "--dry-run", "--limit", "3")
    assert (code, "Traceback" in error) == (0, False), error
    tokens = {line.split()[0].rpartition("/")[2]: line.split()[2] for line in shown.splitlines() if "/lcc_e/" in line}
    assert tokens == {"200": "600", "natural": "-"}, "how long documents are, only the data can tell"
    code, csv, _ = call("report", tmp_path / "run", "--format", "csv")
    assert (code, len(csv.splitlines())) == (0, 3)


def test_length_natural_of_a_task_without_documents_is_one_line(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    code, _, error = call(
        "run", "--model", tiny_folder, "--tasks", "niah_single_1", "--length", "natural", "--out", tmp_path
    )
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert "--length natural: niah_single_1 has no documents of its own length; name a number of tokens" in error


def test_a_cell_names_its_data_and_not_where_it_lies(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "somewhere", tmp_path / "run"
    write(data / "lcc.jsonl", some_rows())
    arguments = ["run", "--model", tiny_folder, "--tasks", "lcc", "--length", "200", "--engine", "echo", "--out", out]
    code, _, error = call(*arguments, "--data", f"longbench={data}")
    assert code == 0, error
    text = (out / "runs/tiny/rope/lcc/200/cell.json").read_text()
    assert "somewhere" not in text
    assert json.loads(text)["spec"]["task"]["params"]["data"] == "longbench"
    moved = data.rename(tmp_path / "elsewhere")
    code, _, error = call(*arguments, "--data", f"longbench={moved}")
    assert (code, (out / "superseded").exists()) == (0, False), error


@pytest.mark.slow
@pytest.mark.parametrize("place", ["lcc.jsonl", "data/lcc.jsonl", "lcc.jsonl.gz", "data.zip"])
def test_changed_data_make_a_cell_run_again(place: str, tiny_folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "data" / place, tmp_path / "run"
    source = file if file.suffix == ".zip" else tmp_path / "data"

    def put(rows: list[dict[str, Any]]) -> None:
        write(file, rows)
        text = file.read_bytes()
        if file.suffix == ".gz":
            file.write_bytes(gzip.compress(text))
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("data/lcc.jsonl", text)

    def cell() -> tuple[str, list[str]]:
        run_all(tiny_folder, source, out, "lcc", length=[200])
        folder = out / "runs/tiny/rope/lcc/200"
        records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        return json.loads((folder / "cell.json").read_text())["spec_hash"], [record["hash"] for record in records]

    rows = some_rows()
    put(rows)
    before = cell()
    assert cell() == before
    assert not (out / "superseded").exists()
    # As long as it was.
    rows[1]["context"] = rows[1]["context"].replace("ferry", "train")
    put(rows)
    after = cell()
    assert after[0] != before[0]
    assert [old == new for old, new in zip(before[1], after[1], strict=True)] == [True, False, True, True, True]
    assert len(list((out / "superseded").glob("*/*/*/*"))) == 1


@pytest.mark.slow
def test_a_task_that_is_never_wrapped_ignores_the_chat_template(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "lcc.jsonl", [row("code", 80, 5)])
    write(tmp_path / "multi_news.jsonl", [row("prose", 80, 5)])
    prompts = {}
    for chat in (False, True):
        out = tmp_path / f"run-{chat}"
        run_all(tiny_folder, tmp_path, out, "lcc,multi_news", length=[700], chat_template=chat)
        for task in ("lcc", "multi_news"):
            [record] = (out / f"runs/tiny/rope/{task}/700/records.jsonl").read_text().splitlines()
            prompts[task, chat] = json.loads(record)["hash"]
        for task in ("lcc", "multi_news"):
            code, shown, error = call("show", f"rope-tiny/{task}/700", "--out", out, "--data", f"longbench={tmp_path}")
            assert (code, "--- prompt" in shown) == (0, True), error
    assert prompts["lcc", True] == prompts["lcc", False]
    assert prompts["multi_news", True] != prompts["multi_news", False]


# -- samsum ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def breaking_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with long vectors for newline and end token, so that it writes them often and at once."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "breaking"
    shutil.copytree(tiny_folder, folder)
    tokenizer = load_tokenizer(folder)
    weights = load_file(folder / "model.safetensors")
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    embedded = weights["model.embed_tokens.weight"]
    embedded[newline] *= -3
    embedded[tokenizer.eos_token_id] = 3 * embedded[300]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_samsum_ends_at_the_first_newline_as_upstream_does(breaking_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = [row("prose", 1 + step % 4, step) for step in range(16)]
    write(tmp_path / "samsum.jsonl", rows)
    options = {"engine": "hf", "dtype": "float32", "device": "cpu", "limit": None}
    run_all(breaking_folder, tmp_path, tmp_path / "run", "samsum", **options)
    file = tmp_path / "run/runs/breaking/rope/samsum/natural/records.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]

    tokenizer = load_tokenizer(breaking_folder)
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    model = AutoModelForCausalLM.from_pretrained(breaking_folder, dtype=torch.float32).eval()
    template = REGISTRY.tasks["samsum"].params["template"]
    held_back = 0
    for record, line in zip(records, rows, strict=True):
        ids = torch.tensor([tokenizer(template.format(**line))["input_ids"]])
        context = ids.shape[1]
        arguments = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 128}
        ends = [tokenizer.eos_token_id, newline]
        written = model.generate(ids, **arguments, min_length=context + 1, eos_token_id=ends)[0, context:].tolist()
        held_back += int(model(ids).logits[0, -1].argmax()) in ends
        assert record["text"] == tokenizer.decode(written, skip_special_tokens=True)
        assert record["new_tokens"] == len(written)
        reason = {newline: "stop", tokenizer.eos_token_id: "eos"}.get(written[-1], "length")
        assert record["finish_reason"] == reason
        assert newline not in written[:-1]
        assert len(written) >= 2 or reason == "length" or written[0] not in ends
    reasons = [record["finish_reason"] for record in records]
    assert reasons.count("stop") >= 3
    assert "eos" in reasons
    # Some would have ended before their first token.
    assert held_back >= 1
