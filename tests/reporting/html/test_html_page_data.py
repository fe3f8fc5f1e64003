"""Data of the page, and escaping of untrusted text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.page_results import (
    EVIL_METHOD,
    EXAMPLES,
    HOSTILE,
    needle_record,
    page_of,
    write_cell,
    write_prompts,
    write_run,
)

from longctx_bench.core.types import Cell
from longctx_bench.reporting.html.assets import grid_library, own_script
from longctx_bench.reporting.html.cell_provenance import provenance
from longctx_bench.reporting.html.escaping import inert_json, script_text, source_hash
from longctx_bench.reporting.html.examples import example_columns
from longctx_bench.reporting.html.overview import overview, page_tables, sort_cells
from longctx_bench.reporting.results import read_cells
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.store.run_store import ResultStore

TEXTS = [
    HOSTILE,
    "</script>",
    "<!--<script>",
    "\u2028\u2029\u202e\u2066\ufeff\x85",
    "\ud800 alone",
    "鱼 😀 é",
    "]]>&amp;",
]


class Elements(HTMLParser):
    """The elements of a page as a browser's parser meets them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.style = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self._inside == "style":
            self.style += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "made")


@pytest.mark.parametrize("text", TEXTS)
def test_json_in_a_page_is_inert_and_reads_back(text: str) -> None:
    written = inert_json({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert not set(written) & set("<>&\u2028\u2029\u202e\u2066\ufeff\x85\ud800")
    written.encode()  # a lone surrogate must not stop the page from being written


def test_json_has_no_number_that_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        inert_json(float("inf"))


def test_scripts_cannot_be_ended_by_their_own_text() -> None:
    code = 'x = "</script><!--<SCRIPT>"; y = a < b'
    assert script_text(code) == r'x = "\x3C/script>\x3C!--\x3CSCRIPT>"; y = a < b'
    for script in (own_script(), grid_library()):
        assert script == script_text(script)


def test_a_hash_is_what_the_policy_expects() -> None:
    assert source_hash("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"


def test_a_page_has_no_elements_but_its_own(run: Path) -> None:
    page = page_of(run)
    elements = Elements(page)
    assert "img" not in elements.tags
    assert elements.tags.count("script") == 4
    names = {name for name, _ in elements.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "href", "style", "srcdoc", "action"}
    # The text is there all the same, as data.
    data = json.loads(next(text for given, text in elements.scripts if given.get("id") == "examples-data"))
    assert HOSTILE in data["texts"]
    assert "{{ 7 * 7 }}" in HOSTILE, "the template must not be run on text"
    assert EVIL_METHOD not in page


def test_the_policy_allows_the_pages_own_scripts_only(run: Path) -> None:
    elements = Elements(page_of(run))
    policy = next(value for name, value in elements.attributes if name == "content" and "default-src" in (value or ""))
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    modules = [text for given, text in elements.scripts if given.get("type") == "module"]
    assert rules["script-src"].split() == [source_hash(text) for text in modules]
    assert rules["style-src"] == source_hash(elements.style)


def test_text_is_stored_once_and_methods_share_prompts(run: Path) -> None:
    store, cells = ResultStore(run), sort_cells(read_cells(run).finished)
    columns = example_columns(cells, store)
    assert len(columns["texts"]) == len(set(columns["texts"]))
    rows = columns["rows"]
    assert {len(values) for values in rows.values()} == {6 * EXAMPLES + 5 + 1}
    at = {
        (cells[cell].variant, cells[cell].cell.length, example): prompt
        for cell, example, prompt in zip(rows["cell"], rows["id"], rows["prompt"], strict=True)
        if cells[cell].cell.task != "perplexity_last"
    }
    assert at["rope-tiny", 1024, "000003"] == at["yarn-tiny", 1024, "000003"]
    assert at["rope-tiny", 1024, "000003"] != at["rope-tiny", 2048, "000003"]
    prompt = columns["prompts"][at["rope-tiny", 1024, "000003"]]
    assert columns["texts"][prompt["begin"]].startswith("Beginning 3. Some talk.")
    assert [columns["texts"][place] for place in prompt["references"]] == ["7000003"]
    assert (prompt["hidden"], prompt["needles"]) == (4321, [])
    kept_nothing = [place for (name, _, _), place in at.items() if EVIL_METHOD in name]
    assert "begin" not in columns["prompts"][kept_nothing[0]]


def test_a_limit_takes_the_same_examples_of_every_cell(run: Path) -> None:
    cells = read_cells(run).finished
    columns = example_columns(cells, ResultStore(run), limit=7)
    assert columns["shown"] == [min(7, summary.n) for summary in cells]
    assert set(columns["rows"]["id"]) == {f"{place:06d}" for place in range(7)}
    assert example_columns(cells, ResultStore(run), limit=0)["rows"]["id"] == []


def test_the_examples_keep_to_their_budget(run: Path) -> None:
    cells = read_cells(run).finished
    whole = len(inert_json(example_columns(cells, ResultStore(run))))
    budget = whole // 2
    columns = example_columns(cells, ResultStore(run), budget=budget)
    assert 1 <= max(columns["shown"]) < EXAMPLES
    assert budget / 4 < len(inert_json(columns)) <= budget
    assert max(example_columns(cells, ResultStore(run), budget=10)["shown"]) == 1, "never none at all"


def test_the_page_says_that_examples_were_left_out(run: Path) -> None:
    assert "all of them in this page" in page_of(run)
    page = page_of(run, examples=2)
    assert "<strong>15 of them in this page</strong>: the first 2 of each cell" in page


def test_what_an_interrupted_larger_run_left_is_no_part_of_the_page(run: Path) -> None:
    cell = Cell("tiny", "yarn", "niah", 512)
    records = ResultStore(run).path(cell) / "records.jsonl"
    lines = records.read_text().splitlines()
    late = json.loads(lines[0]) | {"id": "000090"}
    records.write_text("\n".join([*lines, json.dumps(late)]) + "\n")
    cells = read_cells(run).finished
    assert "000090" not in example_columns(cells, ResultStore(run))["rows"]["id"]


def test_a_score_that_is_no_number_is_no_number_in_the_page(tmp_path: Path) -> None:
    records = [{"score": float("inf"), "metric": "token_loss"}]
    write_cell(tmp_path, Cell("tiny", "rope", "perplexity", 512), records)
    cells = read_cells(tmp_path).finished
    columns = example_columns(cells, ResultStore(tmp_path))
    assert columns["rows"]["score"] == [None]
    assert overview(cells, columns)["cells"][0]["score"] is None


def test_depths_have_intervals_where_all_their_examples_are_known(run: Path) -> None:
    cells = sort_cells(read_cells(run).finished)
    place = next(p for p, s in enumerate(cells) if str(s.cell) == "yarn-tiny/niah/1024")
    found = overview(cells, example_columns(cells, ResultStore(run)))["cells"][place]["depths"]
    low, high = mean_interval([0.5, 1.0])  # examples 1 and 12
    assert found[1] == [10.0, 0.75, 2, round(low, 4), round(high, 4)]
    limited = overview(cells, example_columns(cells, ResultStore(run), limit=3))["cells"][place]["depths"]
    assert limited[1] == [10.0, 0.75, None, None, None]


def test_tables_mark_the_training_context_and_round_by_the_interval(run: Path) -> None:
    niah = next(table for table in page_tables(sort_cells(read_cells(run).finished)) if table.task == "niah")
    assert [(c.name, c.scale, c.last_trained) for c in niah.columns] == [
        ("512", "1x", True), ("1,024", "2x", False), ("2,048", "4x", False)
    ]  # fmt: skip
    assert [name for name, _ in niah.rows] == ["rope-tiny", "yarn-tiny"]
    place = niah.rows[0][1][1]
    assert place is not None
    assert str(place.entry) == "36 [20, 57]"
    assert place.order == pytest.approx(8 / 22)
    assert "over 512 tokens" in niah.notes[0]


def test_tables_of_several_training_contexts_name_them(tmp_path: Path) -> None:
    for model, context in (("small", 512), ("large", 2048)):
        record = [needle_record(0, 1.0, "x")]
        write_cell(tmp_path, Cell(model, "rope", "niah", 1024), record, original_length=context)
    table = page_tables(sort_cells(read_cells(tmp_path).finished))[0]
    assert not any(column.last_trained or column.scale for column in table.columns)
    assert table.notes[0] == "training contexts: large 2,048 tokens, small 512 tokens"


def test_provenance_says_where_numbers_come_from_and_bears_old_cells(run: Path, tmp_path: Path) -> None:
    cell = next(s for s in read_cells(run).finished if str(s.cell) == "yarn-tiny/niah/1024")
    found = provenance(cell)
    assert found["commit"] == "0123456789ab (with local changes)"
    assert found["versions"] == "torch 9.9.9"
    assert found["calibration"] == "attention factor 1.15 by retrieval"
    assert (found["device"], found["factor"], found["seed"]) == ("a made-up device", "2 (derived)", "42")
    write_cell(tmp_path, Cell("tiny", "rope", "old", 512), [needle_record(0, 1.0, "x")], environment=None, tuning=None)
    old = provenance(read_cells(tmp_path).finished[0])
    assert "commit" not in old
    assert old["calibration"] == "none"


def test_unfinished_cells_are_named(run: Path) -> None:
    begun = run / "runs" / "tiny" / "pi" / "niah" / "512"
    begun.mkdir(parents=True)
    (begun / "started.json").write_text("{}")
    page = page_of(run)
    assert "1 cell is missing" in page
    assert "tiny/pi/niah/512: not finished" in page


def test_a_folder_of_unfinished_cells_still_makes_a_page(tmp_path: Path) -> None:
    begun = tmp_path / "runs" / "tiny" / "pi" / "niah" / "512"
    begun.mkdir(parents=True)
    (begun / "started.json").write_text("{}")
    assert "No cell is finished yet." in page_of(tmp_path)


def test_report_writes_the_page(run: Path, tmp_path: Path, call) -> None:  # type: ignore[no-untyped-def]
    write_prompts(run, 512)
    code, out, _ = call("report", run, "--format", "html", "--out", tmp_path / "page.html", "--examples", "1")
    assert (code, out) == (0, f"wrote {tmp_path / 'page.html'}\n")
    assert "the first 1 of each cell" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, err = call("report", run, "--examples", "1")
    assert code == 2
    assert "--examples goes with --format html" in err


def test_a_note_of_several_tables_stands_once_with_references(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path))
    note = "factors derived from the length"
    shown = [part.partition("<")[0] for part in text.split("<bdi>")[1:]]
    assert len([part for part in shown if part.startswith(note)]) == 1
    assert text.count('title="' + note) >= 2, "each table that it belongs to refers to it"
    assert text.index('id="shared-notes"') > text.rindex('class="references"')
    # What one table alone says stays under it.
    own = next(part for part in shown if part.startswith("smallest difference"))
    assert own not in text[text.index('id="shared-notes"') : text.index('id="heatmaps"')]
