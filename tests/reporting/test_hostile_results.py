"""Hostile result folders: every command that reads them still works, and prints only plain text."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.page_results import needle_record, page_of, write_cell, write_prompts, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx_bench.core import untrusted_files
from longctx_bench.core.errors import UserError
from longctx_bench.core.sanitize import escape_control_chars, single_line
from longctx_bench.core.types import Cell
from longctx_bench.core.untrusted_files import UnreadableFile, parse_json, parse_object, read_content, read_lines
from longctx_bench.reporting.formats import csv_text
from longctx_bench.reporting.parity_status import read_certificates
from longctx_bench.reporting.results import read_cells
from longctx_bench.reporting.tables.base import Table
from longctx_bench.store.prompt_excerpts import read_excerpts
from longctx_bench.store.reader import DamagedCellError, read_columns, read_records, read_result
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import StoredRecord

Call = Callable[..., tuple[int, str, str]]
HURT = Cell("tiny", "rope", "niah", 512)
ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e"
ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "made")


def place(folder: Path) -> Path:
    return ResultStore(folder).path(HURT)


def change(folder: Path, **values: Any) -> None:
    """Give ``cell.json`` other values, by dotted key with ``__`` for the dots."""
    path = place(folder) / "cell.json"
    details = json.loads(path.read_text())
    for key, value in values.items():
        *above, last = key.split("__")
        at = details
        for part in above:
            at = at[part]
        at[last] = value
    path.write_text(json.dumps(details))


def change_record(folder: Path, **values: Any) -> None:
    path = place(folder) / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2] |= values
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def pipe(name: str) -> Callable[[Path], Any]:
    def made(folder: Path) -> None:
        (place(folder) / name).unlink(missing_ok=True)
        os.mkfifo(place(folder) / name)

    return made


def device(name: str) -> Callable[[Path], Any]:
    def made(folder: Path) -> None:
        (place(folder) / name).unlink()
        (place(folder) / name).symlink_to("/dev/zero")

    return made


def larger(name: str) -> Callable[[Path], Any]:
    """A file with a hole, as large as it says and no larger on the disk."""

    def made(folder: Path) -> None:
        with (place(folder) / name).open("r+b") as file:
            file.truncate(1 << 40)

    return made


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "summary is deep": (lambda f: (place(f) / "cell.json").write_text(deep(100_000)), "cell.json is not valid JSON"),
    "summary is rather deep": (lambda f: change(f, spec__task__params=json.loads(deep(200))), "nested deeper than"),
    "summary is a pipe": (pipe("cell.json"), "cell.json cannot be read"),
    "summary has no end": (device("cell.json"), "cell.json cannot be read"),
    "summary is large": (larger("cell.json"), "cell.json is larger than 16 MiB"),
    "records are a pipe": (pipe("records.jsonl"), "records.jsonl cannot be read"),
    "records have no end": (device("records.jsonl"), "records.jsonl cannot be read"),
    "records are large": (larger("records.jsonl"), "records.jsonl line 23 is longer than 16 MiB"),
    "a record is deep": (
        lambda f: (place(f) / "records.jsonl").write_text(deep(100_000) + "\n"), "line 1 is not valid JSON"
    ),
    "references are a number": (lambda f: change_record(f, references=5), "records.jsonl: line 3 is not a record"),
    "a reference is a number": (lambda f: change_record(f, references=[5]), "line 3 is not a record"),
    "text is a list": (lambda f: change_record(f, text=["a"]), "line 3 is not a record"),
    "a curve is text": (lambda f: change_record(f, curve="abc"), "line 3 is not a record"),
    "a point is three numbers": (lambda f: change_record(f, curve=[[1, 2, 3]]), "line 3 is not a record"),
    "a depth is beyond the end": (lambda f: change_record(f, depths=[101.0]), "line 3 is not a record"),
    "a depth is no number": (lambda f: change_record(f, depths=[math.nan]), "line 3 is not a record"),
    "a count is negative": (lambda f: change_record(f, new_tokens=-5), "line 3 is not a record"),
    "a count is absurd": (lambda f: change_record(f, prompt_tokens=10**30), "line 3 is not a record"),
    "no token is scored": (lambda f: change_record(f, scored=0), "line 3 is not a record"),
    "a hash is no ASCII": (lambda f: change_record(f, hash="é"), "line 3 is not a record"),
    "a hash is missing": (lambda f: change_record(f, hash=None), "line 3 is not a record"),
    "an id is a number": (lambda f: change_record(f, id=2), "line 3 is not a record"),
    "an id is no ASCII digit": (lambda f: change_record(f, id="²"), "line 3 is not a record"),
    "a score is above 1": (lambda f: change_record(f, score=7.5), "a score of string_match_all is not in [0, 1]"),
    "a score is below 0": (lambda f: change_record(f, score=-1), "a score of string_match_all is not in [0, 1]"),
    "the task's protocol is a list": (lambda f: change(f, spec__task__protocol=[1]), "`$.spec.task.protocol`"),
    "the digests are text": (lambda f: change(f, spec__digests="a"), "`$.spec.digests`"),
    "the weights are a number": (lambda f: change(f, spec__weights=5), "`$.spec.weights`"),
    "the model is text": (lambda f: change(f, spec__model="a"), "`$.spec.model`"),
    "the engine is a list": (lambda f: change(f, engine=["hf"]), "`$.engine`"),
    "the memory is text": (lambda f: change(f, peak_memory="much"), "`$.peak_memory`"),
    "tokens are negative": (lambda f: change(f, prompt_tokens=-1), "`$.prompt_tokens`"),
    "lm-eval's part is text": (lambda f: change(f, lm_eval="yes"), "`$.lm_eval`"),
    "half a character": (
        lambda f: (place(f) / "cell.json").write_text(
            (place(f) / "cell.json").read_text().replace("a made-up device", "\\ud800")
        ), "cell.json is not valid JSON",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", HARM)
def test_a_harmful_cell_is_one_line_and_the_rest_goes_on(call: Call, folder: Path, how: str, tmp_path: Path) -> None:
    harm, said = HARM[how]
    harm(folder)
    results = read_cells(folder)
    assert len(results.finished) == 7
    (line,) = results.damaged
    assert line.startswith("tiny/rope/niah/512: ")
    assert said in line
    commands = (
        ("report", folder, "--table", "all"), ("report", folder, "--format", "html", "--out", tmp_path / "page.html"),
        ("list", "results", folder), ("show", "yarn-tiny/niah/512", "--out", folder),
    )  # fmt: skip
    for command in commands:
        code, out, err = call(*command)
        assert code == 0, err
        assert command[0] == "show" or f"missing: {line}" in (out + err).replace("\n", " ") or command[0] == "list"
    code, _, err = call("show", "rope-tiny/niah/512", "--out", folder)
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize("name", ["started.json", "records.jsonl"])
def test_a_pipe_in_an_unfinished_cell_is_not_waited_for(folder: Path, name: str) -> None:
    (place(folder) / "cell.json").rename(place(folder) / "started.json")
    pipe(name)(folder)
    results = read_cells(folder)
    assert len(results.finished) == 7
    assert len(results.missing) == 1


def test_pipes_beside_the_cells_are_not_waited_for(call: Call, folder: Path, tmp_path: Path) -> None:
    prompts = folder / "prompts/tiny/niah/512.jsonl"
    prompts.unlink()
    os.mkfifo(prompts)
    for name in ("parity/a.json", "probes/factors/tiny/2x.json", "probes/attention/tiny.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)
    (folder / "parity/b.json").write_text(deep(100_000))
    (folder / "parity/c.json").write_text('{"lengths": 5}')
    assert read_certificates(folder) == []
    assert read_excerpts(prompts) == {}
    assert "tiny" in page_of(folder)
    for kind in ("factors", "attention"):
        code, _, err = call("figures", folder, "--kind", kind, "--out", tmp_path)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "cannot be read" in err


@pytest.mark.parametrize(
    "probe",
    [
        {"rope": 5, "factors": {}, "scale": 2, "original_length": 512, "model": "a"},
        {"rope": [1.0], "factors": {"yarn": "a"}, "scale": 2, "original_length": 512, "model": "a"},
        {"rope": [1.0], "factors": {"yarn": [1.0]}, "scale": 0, "original_length": 512, "model": "a"},
        {"rope": [], "factors": {"yarn": []}, "scale": 2, "original_length": 512, "model": "a"},
        {"rope": [1.0], "factors": {"yarn": [math.nan]}, "scale": 2, "original_length": 512, "model": "a"},
        {"rope": [1.0], "factors": [], "scale": 2, "original_length": 512, "model": ["a"]},
        {"model": "a", "lengths": [{}] * 100_000, "heads": {}},
        {"model": "a", "lengths": {"a": 1}, "heads": {"positional": [0, 0]}},
        {"model": "a", "lengths": 5},
    ],
)
def test_a_probe_of_another_kind_is_one_line(call: Call, tmp_path: Path, probe: dict[str, Any]) -> None:
    kind = "attention" if "lengths" in probe else "factors"
    path = tmp_path / f"probes/{kind}/a/2x.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(probe))
    code, _, err = call("figures", tmp_path, "--kind", kind)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "run it again" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("loss.csv", "tokens,validation_loss\n1,nan\n"),
        ("loss.csv", "tokens,validation_loss\n1,1e999\n"),
        ("loss.csv", f'tokens,validation_loss\n1,"{"9" * 200_000}"\n'),
        ("README.md", "```yaml\na: &a [x, x]\nb: [" + "[" * 3000 + "\n```\n"),
        ("README.md", "\udcff"),
    ],
)
def test_a_curve_that_is_none_is_one_line(call: Call, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "loss.csv").write_text("tokens,validation_loss\n1,2.5\n")
    (tmp_path / name).write_text(content, errors="surrogateescape")
    code, _, err = call("figures", tmp_path, "--kind", "curves", "--checkpoints", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1), err


def test_names_of_a_card_that_refer_to_each_other_are_not_written_out(call: Call, tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("tokens,validation_loss\n1,2.5\n2,2.4\n")
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    (tmp_path / "README.md").write_text(f"```yaml\na0: &a0 ha\n{laughs}kind: *a11\nbase: *a11\n```\n")
    assert call("figures", tmp_path, "--kind", "curves", "--checkpoints", tmp_path)[0] == 0


# -- terminals ------------------------------------------------------------------------------------------------------


def write_escapes(folder: Path) -> Path:
    """A cell whose every text holds escapes."""
    cell = Cell(f"tiny{ESCAPE}", f"rope{ESCAPE}", f"niah{ESCAPE}", 512)
    record = needle_record(0, 1.0, ESCAPE) | {"references": [ESCAPE], "hash": "a" * 32}
    write_cell(
        folder, cell, [record], finished=f"2026{ESCAPE}", factor_source=ESCAPE,
        spec={
            "seed": 42, "dtype": ESCAPE, "engine": "hf", "chat_template": False,
            "task": {"name": ESCAPE, "params": None},
        },
        engine={"device": ESCAPE},
    )  # fmt: skip
    store = ResultStore(folder)
    kept = {
        "hash": "a" * 32, "begin": f"begin{ESCAPE}\nnext line\t", "end": ESCAPE, "hidden": 3, "needles": [ESCAPE],
        "answer_prefix": ESCAPE, "n_tokens": 5,
    }  # fmt: skip
    path = store.excerpts_path(cell)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(kept) + "\n")
    broken = folder / "runs" / f"a{ESCAPE.replace('/', '')}" / "rope" / "niah" / "512"
    broken.mkdir(parents=True)
    (broken / "started.json").write_text(json.dumps({"failed": ESCAPE}))
    return folder


def on_a_terminal(*arguments: str | Path) -> str:
    """Return what a command writes to a terminal, on both streams."""
    main, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", "from longctx_bench.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=child, stderr=child, stdin=child, env=environment)
    os.close(child)
    parts = []
    try:
        while part := os.read(main, 1 << 16):
            parts.append(part)
    except OSError:
        pass  # the end of a terminal whose last program ended
    process.wait(60)
    os.close(main)
    # What rich says by itself: bold, dim and the like.
    return re.sub(r"\x1b\[[\d;]*m", "", b"".join(parts).decode().replace("\r\n", "\n"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("list", "results"), ("report", "--table", "all"), ("report", "--format", "md"), ("report", "--format", "csv"),
        ("report", "--format", "latex"), ("show",), ("show", "no\x1b[31m"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_nothing_but_text_reaches_a_terminal(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = write_escapes(tmp_path / "made")
    name = str(read_cells(folder).finished[0].cell)
    if command[0] == "show":
        shown = on_a_terminal("show", *(command[1:] or [name]), "--out", folder)
    else:
        shown = on_a_terminal(*command, folder)
    assert "Traceback" not in shown
    assert "owned" in shown or "no such" in shown, "what is text is there"
    assert "2J" in shown or "no such" in shown
    assert not ACTIVE.search(shown), ascii(shown)


def test_an_example_is_shown_in_its_lines(call: Call, tmp_path: Path) -> None:
    folder = write_escapes(tmp_path / "made")
    code, out, _ = call("show", str(read_cells(folder).finished[0].cell), "--out", folder)
    assert code == 0
    assert "begin\\x1b]0;owned" in out
    assert "\nnext line\t\n" in out


@pytest.mark.slow
def test_warnings_logs_and_tracebacks_hold_no_commands() -> None:
    code = (
        "import logging, warnings; from longctx_bench.cli.main import _keep_terminal; _keep_terminal();"
        f"text = {ESCAPE!r}; warnings.warn(text); logging.getLogger('a').warning('%s', text); raise ValueError(text)"
    )
    said = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False).stderr.decode()
    assert said.count("]0;owned") >= 3
    assert not ACTIVE.search(said)


@pytest.mark.slow
@given(st.text())
def test_plain_text_is_one_line_without_commands(text: str) -> None:
    for shown in (single_line(text), escape_control_chars(text)):
        assert not ACTIVE.search(shown)
        shown.encode()
    assert "\n" not in single_line(text)
    assert single_line(single_line(text)) == single_line(text)


# -- tables for programs --------------------------------------------------------------------------------------------

FORMULAS = [
    "a\r=1",
    " \r\n@SUM(1)",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\uff1d1",
    "-",
    "=",
    "-2.5x",
    "- 3",
]
NUMBERS = ["-3", "+2.5", "-1e-05", "-inf", "-1,024", "-3.5 [-7.1, +0.2]", "+98.1 [+97.0, +99.0]†", "-2.0 %"]


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_holds_no_formula(text: str) -> None:
    tables = [
        Table("a", (text, "b"), ((text, "1"),)),
        Table("a", ("a",), (), records=({"name": text, text: 1, "score": -0.5},)),
    ]
    for table in tables:
        for row in csv.reader(io.StringIO(csv_text([table]), newline="")):
            for value in row:
                assert value.strip()[:1] not in tuple("=+-@\uff1d") or value == "-0.5"
                assert "\r" not in value


@pytest.mark.parametrize("text", NUMBERS)
def test_csv_leaves_numbers_alone(text: str) -> None:
    assert csv_text([Table("a", ("a", "b"), ((text, "-"),))]).splitlines()[1] in {f"{text},'-", f'"{text}",\'-'}


@given(st.floats() | st.integers())
def test_csv_leaves_values_that_are_numbers_alone(value: float) -> None:
    assert csv_text([Table("a", (), (), records=({"score": value, "n": 1},))]) == f"score,n\n{value},1\n"


# -- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a$b$c", "$\\frac$", "$", "\\$a$", "a_{b}^$x$", "$\x00\x1b[31m$"])
def test_names_in_figures_are_no_formulas(tmp_path: Path, name: str, call: Call) -> None:
    folder = tmp_path / "made"
    for method in ("rope", name):
        for length in (512, 1024):
            for task in ("niah", f"niah{name}"):
                records = [needle_record(place, float(place % 2), "a") for place in range(22)]
                write_cell(
                    folder, Cell(f"tiny{name}", method, task, length), records,
                    spec={
                        "seed": 42, "dtype": "float32", "engine": "hf", "chat_template": False,
                        "task": {"name": task, "params": {"depth_grid": 11}},
                    },
                )  # fmt: skip
    probe = {"rope": [1.0, 0.1], "factors": {name: [1.0, 0.5]}, "scale": 2.0, "original_length": 512, "model": name}
    (folder / "probes/factors/a").mkdir(parents=True)
    (folder / "probes/factors/a/2x.json").write_text(json.dumps(probe))
    (folder / "curve").mkdir()
    (folder / "curve/loss.csv").write_text("tokens,validation_loss\n1,2.5\n2,2.4\n")
    (folder / "curve/README.md").write_text(f"```yaml\n{json.dumps({'base': name, 'positions': name})}\n```\n")
    code, out, err = call("figures", folder, "--kind", "all", "--format", "svg", "--out", tmp_path / "drawn")
    assert code == 0, err
    written = list((tmp_path / "drawn").glob("*.svg"))
    assert len(written) >= 6
    for path in written:
        ElementTree.parse(path)  # noqa: S314 (our own)
    assert out.count("wrote") == len(written)


def test_a_label_is_drawn_as_it_stands() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from longctx_bench.reporting.figures import style

    drawn = []
    for label in ("a$b$c", r"\$"):
        with style.styled():
            figure = style.new_figure(2, 2)
            FigureCanvasAgg(figure)
            axis = figure.subplots()
            axis.set_title(label)
            axis.set_xticks([0, 1], [label, "b"])
            for _ in range(2):
                figure.draw_without_rendering()
        drawn.append([axis.title._preprocess_math(axis.title.get_text())[0], axis.get_xticklabels()[0].get_text()])
    assert drawn[0] == ["a$b$c", r"a\$b\$c"], "a dollar behind a backslash is a dollar"
    assert drawn[1][0] == r"\$"


# -- any file -------------------------------------------------------------------------------------------------------

_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = list(StoredRecord.__struct_fields__)
_lines = st.one_of(
    st.binary(max_size=60),
    _values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(_FIELDS), _values, max_size=len(_FIELDS)).map(
        lambda values: json.dumps({"id": "000000", "hash": "a", "score": 0.5, **values}).encode()
    ),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_lines, max_size=4))
def test_any_records_are_read_or_damaged(tmp_path: Path, content: list[bytes]) -> None:
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(content))
    try:
        records = list(read_records(tmp_path))
        columns = read_columns(tmp_path)
    except DamagedCellError:
        return
    assert len(columns.scores) <= len(records)
    for record in records:
        assert all(0 <= depth <= 100 for depth in record.depths)
        assert record.new_tokens >= 0
        assert record.scored >= 1


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_one_value_is_shown_or_named(tmp_path: Path, data: st.DataObject) -> None:
    """One value of ``cell.json`` becomes another one: reports, page and CSV never end in anything but a UserError."""
    folder = tmp_path / "changed"
    if not folder.exists():
        write_run(folder)
        (folder / "whole.json").write_text((place(folder) / "cell.json").read_text())
    details = json.loads((folder / "whole.json").read_text())
    at, key = details, data.draw(st.sampled_from(sorted(details)))
    while isinstance(at[key], dict) and data.draw(st.booleans()):
        at = at[key]
        key = data.draw(st.sampled_from(sorted(at)))
    at[key] = data.draw(_values)
    (place(folder) / "cell.json").write_text(json.dumps(details))
    from longctx_bench.reporting.formats import FORMATS
    from longctx_bench.reporting.tables.registry import report_tables

    results = read_cells(folder)
    assert len(results.finished) + len(results.damaged) == 8
    tables = report_tables(results.finished, "all")
    for render in FORMATS.values():
        render(tables).encode()
    page_of(folder, examples=1).encode()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=80), _values.map(lambda value: json.dumps(value).encode())))
def test_any_json_is_a_value_or_unreadable(content: bytes) -> None:
    try:
        value = parse_json(content)
    except UnreadableFile:
        return
    json.dumps(value, ensure_ascii=False).encode()


def test_json_is_as_deep_as_it_says() -> None:
    assert parse_json(deep(untrusted_files.MAX_DEPTH).encode())
    for content in (deep(untrusted_files.MAX_DEPTH + 1), "[" * 100_000, "[" * 500 + "]" * 500):
        with pytest.raises(UnreadableFile):
            parse_json(content.encode())
    with pytest.raises(UnreadableFile, match="is not a JSON object"):
        parse_object(b"[1]")


def test_lines_are_whole_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_files, "_BLOCK", 7)
    path = tmp_path / "a.jsonl"
    for text in (b"", b"\n", b"a\nbb\n\nccc\n", b"x" * 20 + b"\n" + b"y" * 15, b"1234567\n" * 3):
        path.write_bytes(text)
        assert list(read_lines(path)) == text.removesuffix(b"\n").split(b"\n") if text else not list(read_lines(path))
    path.write_bytes(b"a\n" + b"x" * 40)
    with pytest.raises(UnreadableFile, match="line 2 is longer"):
        list(read_lines(path, longest=20))
    path.write_bytes(b"x" * 21)
    with pytest.raises(UnreadableFile, match="larger than"):
        read_content(path, 20)
    with pytest.raises(FileNotFoundError):
        read_content(tmp_path / "none")
    with pytest.raises(UnreadableFile):
        read_content(tmp_path)
    with pytest.raises(UnreadableFile):
        read_content("a\0b")


def test_an_excerpt_is_found_without_reading_the_others_into_memory(folder: Path) -> None:
    path = folder / "prompts/tiny/niah/512.jsonl"
    write_prompts(folder, 512)
    wanted = json.loads(path.read_text().splitlines()[3])["hash"]
    path.write_bytes(b"[" * 5000 + b"\n\xff\n5\n" + path.read_bytes())
    assert set(read_excerpts(path, {wanted, "none"})) == {wanted}
    assert len(read_excerpts(path)) == 22


def test_a_missing_summary_is_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    with pytest.raises(UserError, match="holds no results"):
        read_cells(tmp_path)
