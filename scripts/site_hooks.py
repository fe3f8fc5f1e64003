"""Hooks of mkdocs: the site also shows what lies outside ``docs/``, so that nothing is written twice.

A page or image that a page links to becomes part of the site at its path in the repository. What is neither (code,
YAML, folders) is a link to the repository where ``repo_url`` is set, and plain text otherwise. Each
package of ``examples/`` becomes a page with its files, the notebook one with its outputs: the tests run them all.
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
_CODE_OR_LINK = re.compile(r"```.*?^```|`[^`\n]+`|(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)", re.DOTALL | re.MULTILINE)
"""Code, without groups, or a link, whose text may be code: whichever begins first."""
_FENCES = {".toml": "toml", ".py": "python", ".yaml": "yaml"}
_SHOWN = {".md", ".png", ".svg"}


def _in_repository(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def _on_site(path: str) -> str:
    """Return the path on the site of a file of the repository."""
    return path.removeprefix("docs/").replace(".ipynb", ".md")


def _targets(path: str) -> set[str]:
    """Return the pages and images outside ``docs/`` that a page links to, by path in the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = [found[3] for found in _CODE_OR_LINK.finditer(text) if found[3]]
    linked = (posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) for target in targets)
    return {name for name in linked if Path(name).suffix in _SHOWN and (ROOT / name).is_file()}


def _nav_pages(entries: list[Any]) -> list[str]:
    pages: list[str] = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            pages += _nav_pages(value) if isinstance(value, list) else [value]
    return pages


def _package_page(folder: Path) -> str:
    """Return a page with the files of an example's package."""
    about = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["description"]
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in _FENCES and "egg-info" not in str(file)]
    shown = [(file, file.read_text(encoding="utf-8")) for file in files]
    blocks = [f"`{file.relative_to(folder)}`:\n\n```{_FENCES[file.suffix]}\n{text}```" for file, text in shown if text]
    kind = folder.name.removeprefix("example-")
    title = f"# {'An' if kind[0] in 'aeiou' else 'A'} {kind}"
    return "\n\n".join(
        [title, f"{about} `pip install ./examples/{folder.name}`; the tests install and run it.", *blocks]
    )


def _notebook_page(notebook: Path) -> str:
    """Return a page with the cells of a notebook, and their outputs as far as they are stored."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            elif "text/html" in data:
                parts.append("\n".join(filter(str.strip, "".join(data["text/html"]).splitlines())))
            else:
                parts.append("```text\n" + "".join(data.get("text/plain", output.get("text", ""))).rstrip() + "\n```")
    return "\n\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and images that the pages of the navigation link to, and what those link to."""
    for folder in sorted((ROOT / "examples").glob("example-*")):
        files.append(File.generated(config, f"examples/{folder.name}.md", content=_package_page(folder)))
    files.append(
        File.generated(config, "examples/quickstart.md", content=_notebook_page(ROOT / "examples/quickstart.ipynb"))
    )
    open_pages, seen = [_in_repository(page) for page in _nav_pages(config.nav)], set[str]()
    listed = set(open_pages)
    while open_pages:
        path = open_pages.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if files.get_file_from_path(_on_site(path)) is None:
            made = File.generated(config, path, abs_src_path=str(ROOT / path))
            if path not in listed:
                made.inclusion = made.inclusion.NOT_IN_NAV
            files.append(made)
        if path.endswith(".md"):
            open_pages += _targets(path)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead each link to where its target is on the site."""
    own = _in_repository(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if target is None or re.match(r"[a-z]+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
        if files.get_file_from_path(_on_site(path)) is not None:
            there = posixpath.relpath(_on_site(path), posixpath.dirname(page.file.src_uri) or ".")
            return f"{image}[{text}]({there}{anchor})"
        if not (ROOT / path).exists():
            return link[0]  # mkdocs names it
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path})" if config.repo_url else text

    return _CODE_OR_LINK.sub(moved, markdown)
