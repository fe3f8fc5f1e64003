"""How fast a page opens: ``python -m bench.page_load`` builds a large one and opens it."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell
from longctx_bench.reporting.html.build import html_page
from longctx_bench.reporting.results import read_cells
from longctx_bench.store.run_store import ResultStore

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
_METHODS = ("rope", "pi", "ntk", "llama3", "yarn", "nope", "alibi", "rnope-swa", "crop", "drope")
_LENGTHS = (512, 1024, 2048, 4096)
_TRIES = 5
_DRAWN = {"heatmaps": "table.map td", "examples": "#grid tbody td", "provenance": "#origins tbody td"}
"""What each view has once it is drawn."""


@contextmanager
def browser() -> Iterator[Chrome]:
    """Start headless Chromium with an empty profile; it logs its console and every request.

    Raises:
        UserError: Chromium, its driver or the package selenium is not installed.
    """
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise UserError(
            "no Chromium or no chromedriver found; Debian has both: apt-get install chromium chromium-driver"
        )
    try:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    except ModuleNotFoundError as error:
        raise UserError("selenium is not installed; run `pip install selenium`") from error
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Named, so that selenium looks for no driver elsewhere.
    started = Chrome(options=options, service=ChromeService(executable_path=driver))
    try:
        yield started
    finally:
        started.quit()


def opened(chrome: Chrome, page: Path, seconds: float = 30) -> float:
    """Open a page and return the seconds until its first view is drawn and takes input.

    Raises:
        UserError: it was not ready in time.
    """
    start = time.perf_counter()
    chrome.get(page.resolve().as_uri())
    while not chrome.execute_script("return document.documentElement.dataset.ready"):
        if time.perf_counter() - start > seconds:
            raise UserError(f"{page}: was not ready after {seconds:g} s")
        time.sleep(0.01)
    chrome.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    return time.perf_counter() - start


def made_up(folder: Path, number: int, seed: int = 0) -> None:
    """Write results of random words: ten methods, four lengths, two tasks, as many examples as wanted, with prompts."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghilmnoprstuv", k=draw.randint(2, 9))) for _ in range(3000)]
    store = ResultStore(folder)
    tasks = ("niah", "niah_multikey")
    each = number // (len(_METHODS) * len(_LENGTHS) * len(tasks))
    for task in tasks:
        for length in _LENGTHS:
            hashes = [f"{draw.getrandbits(128):032x}" for _ in range(each)]
            prompts = folder / "prompts" / "made-up" / task / f"{length}.jsonl"
            _write(prompts, [_excerpt(name, words, draw) for name in hashes])
            for method in _METHODS:
                cell = Cell("made-up", method, task, length)
                records = [_record(place, name, words, draw) for place, name in enumerate(hashes)]
                _write(store.path(cell) / "records.jsonl", records)
                _write(store.path(cell) / "cell.json", [_cell(cell, records)])


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _excerpt(name: str, words: list[str], draw: random.Random) -> dict[str, Any]:
    begin, end = (" ".join(draw.choices(words, k=110)) for _ in range(2))
    return {"hash": name, "begin": begin, "end": end, "hidden": 9000, "needles": [], "answer_prefix": "", "n_tokens": 1}


def _record(place: int, name: str, words: list[str], draw: random.Random) -> dict[str, Any]:
    return {
        "id": f"{place:06d}",
        "hash": name,
        "score": float(draw.random() < 0.5),
        "metric": "string_match_all",
        "text": " ".join(draw.choices(words, k=30)),
        "references": [name[:7]],
        "depths": [place % 11 * 10.0],
        "prompt_tokens": 480,
        "new_tokens": 32,
        "finish_reason": "length",
    }


def _cell(cell: Cell, records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "cell": vars(cell),
        "original_length": 512,
        "metric": "string_match_all",
        "score": statistics.fmean(record["score"] for record in records),
        "n": len(records),
        "prompt_tokens": 480 * len(records),
        "new_tokens": 32 * len(records),
        "seconds": 1.0,
        "finished": "2026-01-01T00:00:00+00:00",
        "factor": cell.length / 512,
        "factor_source": "derived",
        "spec_hash": "made up",
        "spec": {"seed": 0, "dtype": "float32", "engine": "none", "chat_template": False,
                 "task": {"name": cell.task, "params": {"depth_grid": 11}}},
    }  # fmt: skip


def _clicked(chrome: Chrome, view: str) -> float:
    """Return the seconds from a click on a view's tab until what it shows is drawn."""
    script = """
        const [view, drawn, done] = arguments, start = performance.now();
        const look = () => document.querySelector(drawn)
            ? setTimeout(() => done(performance.now() - start)) : requestAnimationFrame(look);
        document.getElementById("tab-" + view).click();
        requestAnimationFrame(look);
    """
    spent = chrome.execute_async_script(script, view, _DRAWN[view])
    return float(spent) / 1000


def main() -> None:
    """Print how long a page with 20,000 examples takes to build and to open, the median of five fresh browsers."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as name:
        folder, page = Path(name, "results"), Path(name, "page.html")
        made_up(folder, number)
        start = time.perf_counter()
        page.write_text(html_page(read_cells(folder), ResultStore(folder)), encoding="utf-8")
        print(f"built in {time.perf_counter() - start:.1f} s: {page.stat().st_size / 1e6:.1f} MB, {number:,} examples")
        times: dict[str, list[float]] = {view: [] for view in ("opened", *_DRAWN)}
        for _ in range(_TRIES):
            with browser() as chrome:
                times["opened"].append(opened(chrome, page))
                for view in _DRAWN:
                    times[view].append(_clicked(chrome, view))
        for what, seconds in times.items():
            print(f"{what}: {statistics.median(seconds):.2f} s (each: {', '.join(f'{s:.2f}' for s in seconds)})")


if __name__ == "__main__":
    main()
