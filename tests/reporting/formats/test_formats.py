"""Output formats of tables: marks, and escaping of hostile names."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.table_cells import cell, hits
from rich.console import Console

from longctx_bench.reporting.formats import FORMATS, print_tables
from longctx_bench.reporting.tables.base import Entry, Mark, Table
from longctx_bench.reporting.tables.registry import report_tables

NASTY = [
    "a|b", "a&b", "100%", "<script>alert(1)</script>", "back\\slash", "\\input{x}", "under_score", "_edge_",
    "~tilde^hat", "$math$ #1 {x}", "*star*", "[bracket](link)", "`code`", 'quo"te\'s', "two--hyphens", "&lt;", "=1+1",
    "line\nbreak", "\x1b[31mred", "\u202eright to left", "a, b",
]  # fmt: skip


def plain_table(*names: str) -> Table:
    rows = tuple((name, Entry("97.5", "[95.0, 99.0]", mark)) for name, mark in zip(names, Mark, strict=False))
    return Table("task: score", ("model", "512 (1x)"), rows, ("a note",))


def nasty_table() -> Table:
    rows = tuple((name, Entry("97.5", "[95.0, 99.0]", Mark.BEST), name) for name in NASTY)
    return Table(f"{NASTY[3]}: in %", ("model", "512", "a|b & <i>_x\\"), rows, (f"note on {NASTY[5]} and {NASTY[3]}",))


def printed(tables: list[Table], **options: object) -> str:
    file = io.StringIO()
    print_tables(tables, Console(file=file, **{"width": 200, **options}))  # type: ignore[arg-type]
    return file.getvalue()


def test_markdown_marks() -> None:
    lines = FORMATS["md"]([plain_table("rope", "yarn", "ntk")]).splitlines()
    assert lines == [
        "**task: score**",
        "",
        "| model | 512 (1x) |",
        "| --- | ---: |",
        "| rope | 97.5 [95.0, 99.0] |",
        "| yarn | **97.5** [95.0, 99.0] |",
        "| ntk | 97.5† [95.0, 99.0] |",
        "",
        "*bold: best of the column; †: not significantly worse (paired test on the same examples, p values adjusted "
        "by Holm over the rows that share them, 5 %)*\\",
        "*a note*",
    ]


def test_latex_marks_and_float() -> None:
    text = FORMATS["latex"]([plain_table("rope", "yarn", "ntk")])
    assert r"rope & 97.5 {\scriptsize [95.0, 99.0]} \\" in text
    assert r"yarn & \textbf{97.5} {\scriptsize [95.0, 99.0]} \\" in text
    assert r"ntk & \underline{97.5} {\scriptsize [95.0, 99.0]} \\" in text
    order = ["\\begin{table}", "\\caption{task: score}", "\\label{tab:task}", "\\toprule", "\\midrule", "rope"]
    order += ["\\bottomrule", "bold: best of the column", "a note", "\\end{table}"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "graphicx" not in text


def test_html_marks() -> None:
    text = FORMATS["html"]([plain_table("rope", "yarn", "ntk")])
    assert "<td>rope</td><td>97.5 <small>[95.0, 99.0]</small></td>" in text
    assert "<td>yarn</td><td><b>97.5</b> <small>" in text
    assert "<td>ntk</td><td><u>97.5</u> <small>" in text
    assert "bold: best of the column; underlined: not significantly worse" in text


def test_terminal_marks_with_styles_and_without() -> None:
    styled = printed([plain_table("rope", "yarn", "ntk")], force_terminal=True, color_system="standard")
    assert "\x1b[1m97.5\x1b[0m" in styled
    assert "\x1b[4m97.5\x1b[0m" in styled
    assert "bold: best of the column" in styled
    bare = printed([plain_table("rope", "yarn", "ntk")])
    assert "97.5* [95.0, 99.0]" in bare
    assert "97.5† [95.0, 99.0]" in bare
    assert "*: best of the column; †: not significantly worse" in bare


def test_a_narrow_terminal_breaks_before_intervals() -> None:
    table = Table("t: x", ("model", "1", "2"), (("rope", Entry("97.5", "[95.0, 99.0]"), Entry("1.0", "[0.0, 2.0]")),))
    assert "97.5 [95.0, 99.0]" in printed([table], width=60)
    lines = printed([table], width=40).splitlines()
    assert [line.split("│")[2].strip() for line in lines if "│" in line] == ["97.5", "[95.0, 99.0]"]


@pytest.mark.parametrize("form", ["md", "latex", "html"])
def test_a_table_without_marks_has_no_legend(form: str) -> None:
    table = Table("t: x", ("model", "1"), (("rope", "5"),), ("a note",))
    assert "best of the column" not in FORMATS[form]([table])
    assert "a note" in FORMATS[form]([table])


def test_markdown_of_nasty_names_keeps_its_columns_and_shows_no_markup() -> None:
    lines = FORMATS["md"]([nasty_table()]).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == len(NASTY) + 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 4, row
    text = "\n".join(lines)
    assert "<script" not in text
    assert "&lt;script>" in text
    escaped = (r"a\|b", r"back\\slash", r"under_score", r"\_edge\_", r"\*star\*", r"[bracket\](link)", r"\`code\`")
    for name in (*escaped, "&amp;lt;", "line break"):
        assert f"| {name} |" in text, name
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_latex_of_nasty_names_is_escaped() -> None:
    text = FORMATS["latex"]([nasty_table()])
    for shown in (
        r"a\textbar{}b", r"a\&b", r"100\%", r"\textless{}script\textgreater{}", r"back\textbackslash{}slash",
        r"\textbackslash{}input\{x\}", r"under\_score", r"\textasciitilde{}tilde\textasciicircum{}hat",
        r"\$math\$ \#1 \{x\}", "two-{}-hyphens",
    ):  # fmt: skip
        assert f"\n{shown}" in text, shown
    # After the end of a row a bracket or a star would be an argument.
    assert "\n{}[bracket](link) &" in text
    assert "\n{}*star* &" in text
    assert not re.search(r"(?<!\\)[%$#~^]", text.partition("\n")[2].replace("{!}{%", "").replace("$-$", ""))


def test_latex_minus_and_bounds_are_signs() -> None:
    table = Table(
        "t: x",
        ("m", "d"),
        (("half-pi", Entry("-0.5", "[-1.5, +0.5]")), ("b-4", Entry("≥ 512", "[< 512, 512]")), ("c", "-2.0")),
    )
    text = FORMATS["latex"]([table])
    assert r"half-pi & $-$0.5 {\scriptsize [$-$1.5, +0.5]}" in text
    assert r"c & $-$2.0 \\" in text
    assert r"b-4 & $\geq$ 512 {\scriptsize [\textless{} 512, 512]}" in text


def test_latex_labels_are_unique_and_wide_tables_are_scaled() -> None:
    wide = Table("task: y", ("model", *(["a rather long heading"] * 6)), (("rope", *(["1"] * 6)),))
    text = FORMATS["latex"]([plain_table("a"), wide, Table("lm_eval:arc: z", ("model",), (("a",),))])
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:task", "tab:task-2", "tab:lm-eval-arc"]
    assert text.count("\\resizebox") == 1
    assert text.startswith("% needs \\usepackage{booktabs}\\usepackage{graphicx}\n")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    cells = [cell(name, hits(50), task=task) for name in ("rope", "x&%$#_{}~^\\|<>") for task in ("niah", "v_t")]
    text = FORMATS["latex"]([nasty_table(), *report_tables(cells, "all")])
    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    main = "\\documentclass{article}\\usepackage{booktabs}\\usepackage{graphicx}"
    (tmp_path / "main.tex").write_text(main + "\\begin{document}\\input{tables}\\end{document}")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert "Overfull" not in log


def test_html_of_nasty_names_is_text() -> None:
    class Texts(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: set[str] = set()
            self.cells: list[str] = []
            self.inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            if tag == "td":
                self.cells.append("")
            self.inside |= tag == "td"

        def handle_endtag(self, tag: str) -> None:
            self.inside &= tag != "td"

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.cells[-1] += data

    page = Texts()
    page.feed(FORMATS["html"]([nasty_table()]))
    assert page.tags.isdisjoint({"script", "i", "a", "link", "img"})
    tame = [name.replace("\n", " ").replace("\x1b", "").replace("\u202e", "") for name in NASTY]
    assert page.cells[::3] == page.cells[2::3] == tame


def test_csv_of_nasty_names_reads_back() -> None:
    cells = [cell(name, hits(50), model="m,\"'\n") for name in NASTY]
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](report_tables(cells)))))
    assert sorted(line["method"] for line in lines) == sorted(name.replace("=1+1", "'=1+1") for name in NASTY)
    assert {line["base"] for line in lines} == {"m,\"'\n"}


def test_csv_has_one_unrounded_line_a_cell() -> None:
    cells = [cell(name, hits(n, 9), task=task) for name, n in (("rope", 3), ("yarn", 6)) for task in ("niah", "vt")]
    lengths, everything = FORMATS["csv"](report_tables(cells)), FORMATS["csv"](report_tables(cells, "all"))
    assert lengths.startswith(
        "model,base,method,task,length,scale,factor,factor_source,metric,score,low,high,n,spec_hash"
    )
    lines = list(csv.DictReader(io.StringIO(lengths)))
    assert len(lines) == 4
    assert {(line["model"], line["base"]) for line in lines} == {(f"{name}-tiny", "tiny") for name in ("rope", "yarn")}
    assert {line["method"]: float(line["score"]) for line in lines} == {"rope": 1 / 3, "yarn": 2 / 3}
    assert {line["method"]: line["mark"] for line in lines} == {"rope": "not significantly worse", "yarn": "best"}
    assert {line["method"]: line["p_against_best"] for line in lines} == {"rope": "0.25", "yarn": ""}
    # Cost and scores of a cell share a line; what sums up several cells has its own.
    whole = list(csv.DictReader(io.StringIO(everything)))
    assert [line["seconds"] for line in whole if line["length"]] == ["2.0"] * 4
    assert len([line for line in whole if not line["length"]]) == 4


def test_csv_of_a_table_without_records_is_its_rows() -> None:
    table = Table("pairs: x", ("task", "difference"), (("niah", Entry("-2.0", "[-4.0, 0.0]")),))
    assert FORMATS["csv"]([table]) == 'task,difference\nniah,"-2.0 [-4.0, 0.0]"\n'
    assert FORMATS["csv"]([table, table]).splitlines()[1:] == ['pairs,niah,"-2.0 [-4.0, 0.0]"'] * 2


def test_terminal_of_nasty_names_sends_no_command() -> None:
    text = printed([nasty_table()], force_terminal=True, color_system="standard")
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in text
    assert "[bracket](link)" in text


def wide_table() -> Table:
    header = ("task", "length", *(f"a column of much {n}" for n in range(6)))
    rows = tuple((f"task-{row}", "1,024", *(f"{row}{n}.5" for n in range(6))) for row in range(3))
    return Table("a title that is much longer than any narrow table below it: x", header, rows, ("a note",), keys=2)


def test_a_narrow_terminal_gets_a_wide_table_in_parts_that_name_their_rows() -> None:
    lines = printed([wide_table()], width=50).splitlines()
    assert lines[0] == "a title that is much longer than any narrow table below it: x"
    assert all(len(line) <= 50 for line in lines[1:])
    rows = [[part.strip() for part in line.strip("│").split("│")] for line in lines if "task-1" in line]
    assert len(rows) > 1
    assert {tuple(row[:2]) for row in rows} == {("task-1", "1,024")}
    assert [part for row in rows for part in row[2:]] == [f"1{n}.5" for n in range(6)]
    assert sum("a note" in line for line in lines) == 1


def test_a_pipe_gets_a_row_a_line_without_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_tables([wide_table(), plain_table("rope", "yarn", "ntk")])
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if "task-1" in line]
    assert [part.strip() for part in row.strip("│").split("│")] == ["task-1", "1,024", *(f"1{n}.5" for n in range(6))]
    assert wide_table().title in lines
    assert "\x1b" not in "".join(lines)


def test_json_is_the_csv_with_types() -> None:
    cells = [cell(name, hits(n, 4), task=task) for name, n in (("rope", 1), ("yarn", 2)) for task in ("niah", "vt")]
    found = json.loads(FORMATS["json"](report_tables(cells, "all")))
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](report_tables(cells, "all")))))
    assert [list(one) for one in found] == [list(line) for line in lines]
    assert (found[0]["score"], found[0]["n"], found[0]["protocol"]) == (0.25, 4, "longctx-bench")
    assert found[0]["detectable_difference"] is None
    assert lines[0]["detectable_difference"] == str(math.inf)
