"""The documentation has every command, option, method and group, and ARCHITECTURE every package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest

from longctx_bench.cli.main import cli
from longctx_bench.registry import Registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
METHODS_AND_TASKS = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("methods.md", "tasks.md"))


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    assert f"longctx-bench {name}" in COMMANDS_PAGE
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert f"`{flag}" in COMMANDS_PAGE, f"{name} {flag}"


@pytest.mark.skipif(
    f"click=={version('click')}" not in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(),
    reason="other versions of click write help otherwise",
)
def test_the_reference_of_the_command_line_is_what_it_says_today() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import cli_reference; print(cli_reference.page(), end='')"],
        cwd=ROOT / "scripts",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert done.stdout == written, "run python scripts/cli_reference.py"


def test_every_method_and_group_is_documented() -> None:
    registry = Registry()
    for name in [*registry.methods, *registry.groups]:
        assert f"`{name}`" in METHODS_AND_TASKS, name


def test_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) < 120
    for page in ("getting-started", "concepts", "commands", "statistics", "results", "methods", "tasks", "engines"):
        assert f"(docs/{page}.md" in README, page


def test_the_front_table_is_what_its_records_say(call: Any) -> None:
    code, out, _ = call("report", str(ROOT / "results/reference/demo.bundle"), "--format", "md")
    assert code == 0
    _, _, behind = README.partition("<!-- front table: the demo -->\n")
    assert behind.startswith(out.strip() + "\n\n![needle heatmaps of the demo")


@pytest.mark.slow
def test_the_tables_of_smollm_are_what_their_records_say(call: Any) -> None:
    title = "**niah: string_match_all in % [95 % interval], higher is better, n = 506 a cell**"
    page, rows = (ROOT / "docs/results.md").read_text(encoding="utf-8"), []
    for bundle, options in (("smollm", []), ("smollm-methods", ["--column", "price"])):
        code, out, _ = call("report", str(ROOT / f"results/reference/{bundle}.bundle"), "--format", "md", *options)
        assert code == 0
        table = title + out.partition(title)[2].partition("\n\n**")[0]
        assert table.strip() + "\n\n" in page
        rows += table.splitlines()
    # README has four of the rows in words.
    front = " ".join(README.split())
    for name, said in {
        "drope-smollm": "(`drope-smollm`) it finds {}, {} and {} %",
        "yarn-smollm": "(`yarn-smollm`) {}, {} and {}.",
        "yarn-heads-smollm": "(`yarn-heads-smollm`), finds {}, {} and {}.",
        "self-extend-smollm": "(`self-extend-smollm`), finds {}, {} and {}.",
    }.items():
        row = next(line for line in rows if line.startswith(f"| {name} |"))
        assert said.format(*(cell.split()[0].strip("*†") for cell in row.strip("| ").split(" | ")[2:5])) in front, name


@pytest.mark.parametrize("page", sorted(["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]))
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text):
        if not target.startswith(("https://", "http://")):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_architecture_names_every_package_and_only_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "longctx_bench"
    packages = [folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()]
    assert len([*packages, *package.glob("[!_]*.py")]) <= 15
    for name in packages:
        assert f"`{name}/`" in text, name
    named = {path for path in re.findall(r"`([\w/.]+\.(?:py|toml|yaml|md))`", text) if "/" in path}
    assert len(named) > 20
    for path in named:
        assert (package / path).is_file() or (ROOT / path).is_file(), path


def test_the_environment_of_vllm_differs_in_what_its_file_says() -> None:
    tested, vllm = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(encoding="utf-8").lower(), re.MULTILINE))
        for name in ("constraints.txt", "requirements-vllm.txt")
    )
    vllm = {name.replace("_", "-"): version for name, version in vllm.items()}
    assert {name for name in tested.keys() & vllm.keys() if tested[name] != vllm[name]} == {
        "numpy",
        "setuptools",
        "triton",
    }
    assert len(tested.keys() & vllm.keys()) > 50
