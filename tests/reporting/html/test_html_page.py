"""The page in headless Chromium; skipped where there is none (``make browser`` installs Debian's)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.page_results import EVIL_METHOD, EXAMPLES, HOSTILE, hash_of, needle_record, page_of, write_cell, write_run

from bench.page_load import browser, opened
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell
from longctx_bench.store.run_store import ResultStore

pytestmark = pytest.mark.slow

Page = Any


class Driven:
    """A page in a browser, with what the tests ask of it."""

    def __init__(self, chrome: Any, path: Path) -> None:
        self.chrome, self.path = chrome, path

    def open(self) -> Driven:
        self.chrome.get("about:blank")
        opened(self.chrome, self.path)
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until what came into sight is drawn: observers are told in the order in which they were made."""
        self.chrome.execute_async_script(
            "const told = arguments[0];"
            "new IntersectionObserver((_, own) => { own.disconnect(); told(); }).observe(document.body);"
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return list(self.chrome.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        """What a person can read, in the order of the page."""
        return [element.text for element in self.all(selector) if element.is_displayed()]

    def click(self, selector: str, containing: str = "") -> None:
        element = next(found for found in self.all(selector) if containing in found.text)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def view(self, name: str) -> None:
        self.click(f"#tab-{name}")
        self.settle()

    def column(self, heading: str) -> list[str]:
        """One column of the examples on screen."""
        place = next(p for p, th in enumerate(self.texts("#grid thead th")) if heading in th)
        return [row.find_elements("css selector", "td")[place].text for row in self.all("#grid tbody tr")]

    def sort(self, table: str, heading: str) -> None:
        wait_for(lambda: bool(self.all(f"{table} .dt-column-order")))  # tables become sortable when they are seen
        told = next(found for found in self.all(f"{table} thead th") if heading in found.text)
        before = told.get_attribute("aria-sort")
        self.click(f"{table} thead th", heading)
        # DataTables sorts after the click, rows and heading at once.
        wait_for(lambda: told.get_attribute("aria-sort") != before)

    def tick(self, choice: str, *labels: str) -> None:
        """Leave only these values in a filter."""
        self.click(f"#choice-{choice} summary")
        self.click(f"#choice-{choice} .options button", "none")
        for label in labels:
            next(e for e in self.all(f"#choice-{choice} label") if e.text.strip() == label).click()
        self.click(f"#choice-{choice} summary")

    def example(self, number: int) -> None:
        self.click(f"#grid button.open[aria-label^='Example {number} of']")


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "page.html"
    path.write_text(page_of(write_run(folder / "made")), encoding="utf-8")
    started = browser()
    try:
        chrome = started.__enter__()
    except UserError as error:
        pytest.skip(str(error))
    yield Driven(chrome, path)
    started.__exit__(None, None, None)


@pytest.fixture
def page(driven: Driven) -> Driven:
    return driven.open()


def shown_of(page: Driven) -> int:
    """How many examples the page says that it shows."""
    return int(page.texts("#count")[0].split()[0].replace(",", ""))


def test_no_error_and_no_request_whatever_is_opened(page: Driven) -> None:
    for kind in ("browser", "performance"):
        page.chrome.get_log(kind)  # what came before
    page.open()
    for view in ("heatmaps", "examples", "provenance"):
        page.view(view)
    page.view("examples")
    page.example(1)
    page.click("#detail .others button")
    page.click("#detail .origin summary")
    assert page.chrome.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.chrome.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {page.path.resolve().as_uri()}


def test_the_log_would_show_a_request_and_the_policy_forbids_it(page: Driven) -> None:
    page.chrome.get_log("browser")
    page.run("fetch('http://127.0.0.1:9/').catch(() => {}); new Image().src = 'http://127.0.0.1:9/a.png'")
    page.run("const e = document.createElement('script'); e.textContent = 'window.bad = 1'; document.body.append(e)")
    assert page.run("return window.bad") is None
    assert sum("Content Security Policy" in entry["message"] for entry in page.chrome.get_log("browser")) >= 3


def test_tables_sort_by_any_column(page: Driven) -> None:
    def names() -> list[str]:
        return page.texts("article[data-task=niah] table.scores tbody th")

    assert names() == ["rope-tiny", "yarn-tiny"]
    page.sort("article[data-task=niah] table.scores", "1,024")
    assert names() == ["yarn-tiny", "rope-tiny"], "the best first"
    page.sort("article[data-task=niah] table.scores", "1,024")
    assert names() == ["rope-tiny", "yarn-tiny"]
    heading = page.all("article[data-task=niah] thead th[data-length='1024']")[0]
    assert heading.get_attribute("aria-sort") == "ascending"


def test_tables_show_intervals_and_the_training_context(page: Driven) -> None:
    row = page.texts("article[data-task=niah] tr[data-name=rope-tiny] td")
    assert row[1].split("\n")[0] == "36 [20, 57]"
    ends = page.all("article[data-task=niah] tr[data-name=rope-tiny] [data-length='1024'] .range")[0].get_attribute("d")
    assert [round(float(end)) for end in ends.removeprefix("M").split(" 3H")] == [20, 57]
    edges = {element.get_attribute("data-length") for element in page.all("article[data-task=niah] .edge")}
    assert edges == {"512"}
    assert "in % [95 % interval], higher is better" in page.texts("article[data-task=niah] h2")[0]
    assert "in nats a token [95 % interval], lower is better" in page.texts("article[data-task=perplexity_last] h2")[0]


def test_filters_hide_methods_tasks_and_lengths_everywhere(page: Driven) -> None:
    page.tick("methods", "yarn-tiny")
    page.tick("tasks", "niah")
    page.tick("lengths", "1,024 tokens", "2,048 tokens")
    assert page.texts("#choice-methods summary") == ["Methods: 1 of 3"]
    assert page.texts("table.scores tbody th") == ["yarn-tiny"]
    assert [text.split()[0] for text in page.texts("table.scores thead th")] == ["model", "1,024", "2,048"]
    page.view("heatmaps")
    assert page.texts("#maps figcaption") == ["yarn-tiny"]
    assert [text.split()[0] for text in page.texts("#maps thead th")] == ["depth", "1,024", "2,048"]
    page.view("examples")
    assert shown_of(page) == 2 * EXAMPLES
    assert (set(page.column("length")), set(page.column("model"))) == ({"1,024", "2,048"}, {"yarn-tiny"})
    page.click("#reset")
    assert shown_of(page) == 6 * EXAMPLES + 5 + 1
    assert len(page.texts("#grid tbody tr")) == 25, "only one page of rows is built"


@pytest.mark.parametrize(
    ("outcome", "number"),
    [
        ("right", 22 + 2 * 8 + 3 * 15),  # rope at 512, rope beyond, yarn
        ("partly", 3 * 7),
        ("wrong", 2 * 14 + 1),
        ("loss", 5),
    ],
)
def test_examples_filter_by_outcome(page: Driven, outcome: str, number: int) -> None:
    page.view("examples")
    for box in page.all("#outcomes input"):
        if box.get_attribute("value") != outcome:
            box.click()
    assert shown_of(page) == number
    signs = {"right": "✓", "partly": "◐", "wrong": "✗", "loss": "·"}
    assert {text[0] for text in page.column("score")} == {signs[outcome]}


def test_examples_sort_and_search(page: Driven) -> None:
    page.view("examples")
    page.tick("tasks", "niah")
    page.sort("#grid", "score")
    assert page.column("score")[0] == "✗ 0 %"
    page.sort("#grid", "score")
    assert page.column("score")[0] == "✓ 100 %"
    page.all("#find")[0].send_keys("7000013 IT IS")
    wait_for(lambda: shown_of(page) == 3)
    assert set(page.column("references")) == {"7000013"}


def wait_for(true: Callable[[], bool]) -> None:
    import time

    for _ in range(200):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("did not come about")


def test_a_score_opens_its_examples(page: Driven) -> None:
    page.click("tr[data-name=rope-tiny] td[data-length='2048'] button.cell")
    assert page.texts("[role=tab][aria-selected=true]") == ["Examples"]
    assert shown_of(page) == EXAMPLES
    assert (set(page.column("model")), set(page.column("length"))) == ({"rope-tiny"}, {"2,048"})


def test_a_heatmap_tells_and_opens_a_square(page: Driven) -> None:
    from selenium.webdriver import ActionChains

    page.view("heatmaps")
    square = page.all("figure[data-name=yarn-tiny] tbody tr:nth-child(2) td[data-length='1024']")[0]
    assert square.text == "75"
    page.run("arguments[0].scrollIntoView({block: 'center'})", square)
    ActionChains(page.chrome).move_to_element(square).perform()
    assert page.texts("#tip") == ["yarn-tiny\n1,024 tokens, depth 10 %\nscore 75.0 % [20, 97], n = 2"]
    square.click()
    assert shown_of(page) == 2
    assert page.column("example") == ["1", "12"]
    page.click("#depth")
    assert shown_of(page) == EXAMPLES


def test_heatmaps_and_views_work_by_keyboard(page: Driven) -> None:
    from selenium.webdriver import Keys

    page.all("#tab-scores")[0].send_keys(Keys.ARROW_RIGHT)
    page.settle()
    assert page.texts("[role=tab][aria-selected=true]") == ["Heatmaps"]
    stops = page.all("figure[data-name=rope-tiny] td[tabindex='0']")
    assert len(stops) == 1
    stops[0].send_keys(Keys.ARROW_DOWN)
    page.chrome.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.chrome.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.column("example") == ["1", "12"]
    assert (set(page.column("model")), set(page.column("length"))) == ({"rope-tiny"}, {"1,024"})


def test_an_example_shows_prompt_needle_references_generation_and_score(page: Driven) -> None:
    page.click("tr[data-name=yarn-tiny] td[data-length='1024'] button.cell")
    page.example(1)
    assert page.texts("#detail .answer h3") == ["yarn-tiny ◐ 50 %"]
    assert [text.strip() for text in page.texts("#detail .generation")] == ["7000001 it is"]
    assert page.texts("#detail .generation mark") == ["7000001"]
    assert page.texts("#detail .references li") == ["7000001"]
    prompt = page.texts("#detail .excerpt")[0]
    assert prompt.startswith("Beginning 1. Some talk.")
    assert prompt.endswith("The end of 1. The number is")
    assert "4,321 characters not shown" in prompt
    assert page.texts("#detail .needle") == ["The special magic number for keen-1 is: 7000001."]
    assert page.texts("#detail .needle mark") == ["7000001"]
    page.click("#detail .steps button", "Next")
    assert "example 2" in page.texts("#detail h2")[0]
    assert page.texts("#detail .hidden-part .needle") == ["The special magic number for keen-2 is: 7000002."]
    page.click("#detail .origin summary")
    assert "0123456789ab (with local changes)" in page.texts("#detail .origin dl")[0]


def test_a_run_without_prompts_says_how_to_see_them(page: Driven) -> None:
    page.tick("tasks", "other")
    page.view("examples")
    page.example(0)
    prompt = page.texts("#detail .prompt")[0]
    assert "did not keep its prompts" in prompt
    assert f"longctx-bench show {EVIL_METHOD}-tiny/other/512 0 --out made" in prompt


def test_a_loss_shows_its_curve(page: Driven) -> None:
    page.click("article[data-task=perplexity_last] button.cell")
    page.example(2)
    assert page.texts("#detail .answer h3") == ["rope-tiny · 3.200 nats a token"]
    assert "2.50 to 4.00 nats a token, tokens 0 to 32" in page.texts("#detail figcaption")[0]
    assert len(page.all("#detail .curve polyline")[0].get_attribute("points").split()) == 3


def test_two_methods_stand_side_by_side_on_the_same_prompt(page: Driven) -> None:
    page.click("tr[data-name=rope-tiny] td[data-length='1024'] button.cell")
    page.example(4)
    page.click("#detail .others button", "yarn-tiny")
    assert page.texts("#detail .answer h3") == ["rope-tiny ✗ 0 %", "yarn-tiny ◐ 50 %"]
    left, right = (element.rect for element in page.all("#detail .answer"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert page.texts("#detail .generation")[1].strip() == "7000004 it is"


def test_examples_can_be_those_where_two_methods_differ(page: Driven) -> None:
    from selenium.webdriver.support.select import Select

    page.click("tr[data-name=rope-tiny] td[data-length='1024'] button.cell")
    Select(page.all("#beside")[0]).select_by_visible_text("yarn-tiny")
    page.click("#differ")
    assert shown_of(page) == 14, "rope is right on every third, yarn at least half right on all"
    assert set(zip(page.column("score"), page.column("beside"), strict=True)) == {
        ("✗ 0 %", "◐ 50 %"),
        ("✗ 0 %", "✓ 100 %"),
    }
    page.example(4)
    assert len(page.texts("#detail .answer")) == 2


def test_harmful_text_is_shown_as_text(page: Driven) -> None:
    page.click("tr[data-name=rope-tiny] td[data-length='1024'] button.cell")
    page.example(1)
    assert page.all("#detail .generation img, #detail .generation script, main img, main script, main a") == []
    content = page.run("return document.querySelector('#detail .generation').textContent")
    labelled = HOSTILE
    for code in (0x202E, 0x202C, 0x200F, 0x2028, 0x1B):
        labelled = labelled.replace(chr(code), f"U+{code:04X}")
    assert content == labelled
    assert page.texts("#detail .control") == ["U+202E", "U+202C", "U+200F", "U+2028", "U+001B"]
    assert page.all("#detail .control")[0].get_attribute("title") == "right-to-left override"
    direction = "return getComputedStyle(document.querySelector('#detail .generation')).unicodeBidi"
    assert page.run(direction) == "isolate"
    # Nothing of it ran: an alert would be open, and every command would fail on it.
    assert "<script>alert(1)</script>" in " ".join(page.column("generation"))
    page.click("#reset")
    page.tick("tasks", "other")
    assert page.column("model") == [f"{EVIL_METHOD}-tiny"]
    page.view("scores")
    assert page.texts("article[data-task=other] tbody th") == [f"{EVIL_METHOD}-tiny"]


def test_provenance_has_a_row_a_cell(page: Driven) -> None:
    page.view("provenance")
    assert len(page.all("#origins tbody tr")) == 8
    headings = [text.strip() for text in page.texts("#origins thead th")]
    assert {"calibration", "device", "commit", "versions", "factor"} <= set(headings)
    page.tick("tasks", "perplexity_last")
    assert len(page.all("#origins tbody tr")) == 1
    assert "attention factor 1.15 by retrieval" in page.texts("#origins tbody tr")[0]


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(page: Driven) -> None:
    page.chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        for view in ("scores", "heatmaps", "provenance", "examples"):
            page.view(view)
            assert page.run("return document.documentElement.scrollWidth") <= 380, view
        page.example(1)
        wait_for(lambda: 0 <= page.run("return document.querySelector('#detail').getBoundingClientRect().top") < 400)
    finally:
        page.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_generation_is_in_view_and_rows_are_even_on_a_laptop(tmp_path: Path, page: Driven) -> None:
    method, task = "a-method-of-a-long-name", "niah_multiquery_of_mine"
    texts = ["short", "word " * 60, "line\n" * 20]
    records = [
        needle_record(place, 0, texts[place % 3]) | {"depths": [10.0, 20.5, 30.25, 90.0], "references": ["1234567"] * 4}
        for place in range(30)
    ]
    write_cell(tmp_path / "made", Cell("smollm2-135m", method, task, 131_072), records)
    path = tmp_path / "page.html"
    path.write_text(page_of(tmp_path / "made"), encoding="utf-8")
    page.chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1300, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        own = Driven(page.chrome, path).open()
        own.view("examples")
        assert "generation" in own.texts("#grid thead th")[-1]
        right, edge = own.run(
            "return ['#grid thead th:last-child', '.list'].map("
            "(found) => document.querySelector(found).getBoundingClientRect().right)"
        )
        assert right <= edge + 1
        heights = own.run("return [...document.querySelectorAll('#grid tbody tr')].map((row) => row.offsetHeight)")
        assert len(heights) == 25
        assert max(heights) - min(heights) <= 1
        assert own.run("return document.querySelector('#grid td.name span[title]').title") == f"{method}-smollm2-135m"
    finally:
        page.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


PAYLOADS = [
    "</script><script>window.owned = 1</script>",
    "<img src=x onerror=window.owned=2>",
    "<svg/onload=window.owned=3>",
    "javascript:window.owned=4",
    "<a href=javascript:window.owned=5>a</a>",
    "\"onmouseover=window.owned=6 x=\"",
    "'-window.owned=7-'",
    "${window.owned=8}{{window.owned=8}}",
    "<!--<script>window.owned=9",
    "\x1b]8;;javascript:window.owned=10\x07click\x1b]8;;\x07",
    "<iframe srcdoc='<script>parent.owned=11</script>'>",
    "<style>@import 'http://127.0.0.1:9/a.css'</style><link rel=stylesheet href=http://127.0.0.1:9/b.css>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><base href=http://127.0.0.1:9/>",
    "__proto__", "constructor", "\ud800", "\u2028\u2029\u202e", "a\x00b", "&lt;script&gt;",
]  # fmt: skip


def write_payloads(folder: Path) -> Path:
    """A run all of whose names, texts and facts are payloads."""
    text = " ".join(PAYLOADS)
    # What a file takes: halves of characters are only in records.
    name = text.replace("\ud800", "")
    for method in PAYLOADS:
        cell = Cell(PAYLOADS[1], method.replace("\ud800", "rope"), PAYLOADS[0], 512)
        records = [
            needle_record(place, place % 2, payload) | {"references": PAYLOADS, "depths": [50.0]}
            for place, payload in enumerate(PAYLOADS)
        ]
        write_cell(
            folder, cell, [record | {"finish_reason": "<b onclick=window.owned=12>"} for record in records],
            finished=name, factor_source=name, spec_hash=name,
            tuning={"scalar": name, "value": 1.0, "source": name},
            engine={"engine": name, "device": name, "dtype": name, "attention": name},
            environment={"git": {"commit": name, "dirty": name}, "python": name, "packages": {name: name}},
            spec={
                "seed": 42, "dtype": name, "engine": name, "chat_template": False, "digests": {name: name},
                "task": {"name": name, "params": {"depth_grid": 11}, "protocol": name},
                "weights": {"hub": name, "revision": name},
            },
        )  # fmt: skip
    path = ResultStore(folder).excerpts_path(cell)
    kept = {
        "begin": text, "end": text, "hidden": 9, "needles": PAYLOADS, "answer_prefix": text, "n_tokens": 5,
    }  # fmt: skip
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(kept | {"hash": hash_of(512, place)}) + "\n" for place in range(22)))
    unfinished = ResultStore(folder).path(Cell("a", "b", "c", 512))
    unfinished.mkdir(parents=True)
    (unfinished / "started.json").write_text(json.dumps({"failed": name}))
    return folder


def test_nothing_that_a_run_holds_is_executed_or_fetched(driven: Driven, tmp_path: Path) -> None:
    folder = write_payloads(tmp_path / "made")
    path = tmp_path / "page.html"
    path.write_text(page_of(folder), encoding="utf-8")
    page = Driven(driven.chrome, path)
    page.chrome.get("about:blank")
    for kind in ("browser", "performance"):
        page.chrome.get_log(kind)  # what came before
    page.open()
    for view in ("heatmaps", "examples", "provenance", "examples"):
        page.view(view)
    page.example(1)
    page.run("document.querySelector('#detail .others button').click()")
    page.run(
        "for (const e of document.querySelectorAll('*'))"
        " for (const kind of ['mouseover', 'focus', 'toggle', 'error', 'load'])"
        " e.dispatchEvent(new Event(kind, {bubbles: true}))"
    )
    assert page.run("return window.owned") is None
    assert (
        page.run("return document.querySelectorAll('img, iframe, svg[onload], link, base, object, embed').length") == 0
    )
    links = page.run("return [...document.querySelectorAll('[href], [src]')].map(e => e.href || e.src)")
    assert not [link for link in links if not link.startswith(path.resolve().as_uri())]
    assert page.chrome.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.chrome.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {path.resolve().as_uri()}
    assert "onerror=window.owned=2" in page.run("return document.body.innerText"), "the text is there, as text"
