"""examples/quickstart.ipynb runs from its first cell to its last, in a folder and a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"

# As a kernel does it: one namespace, and what a cell ends in is shown.
RUN = """
import ast, json, sys
namespace = {}
for source in json.load(sys.stdin):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        show = getattr(value, "_repr_html_", None)
        print(show() if show else value)
"""


def test_the_quickstart_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(cells), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "drope-tiny" in done.stdout
    assert "McNemar" in done.stdout
    assert (tmp_path / "quickstart/figures/niah-heatmap.png").is_file()


def test_its_stored_outputs_name_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert '"output_type": "execute_result"' in text
    assert "site-packages" not in text
    assert len(text) < 500_000
