"""README documents every command and every option, and ARCHITECTURE every room."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from longctx_bench.cli.main import cli
from longctx_bench.registry import Registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_readme(name: str) -> None:
    assert f"longctx-bench {name}" in README
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert f"`{flag}" in README, f"{name} {flag}"


def test_every_method_and_group_is_in_readme() -> None:
    registry = Registry()
    for name in [*registry.methods, *registry.groups]:
        assert f"`{name}`" in README, name


def test_the_architecture_names_every_room_and_only_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "longctx_bench"
    rooms = [folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()]
    assert len([*rooms, *package.glob("[!_]*.py")]) <= 15
    for room in rooms:
        assert f"`{room}/`" in text, room
    named = {path for path in re.findall(r"`([\w/.]+\.(?:py|toml|yaml|md))`", text) if "/" in path}
    assert len(named) > 20
    for path in named:
        assert (package / path).is_file() or (ROOT / path).is_file(), path


def test_the_environment_of_vllm_differs_in_numpy_alone() -> None:
    tested, vllm = (
        dict(line.split("==") for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "==" in line)
        for name in ("constraints.txt", "requirements-vllm.txt")
    )
    assert {name for name in tested.keys() & vllm.keys() if tested[name] != vllm[name]} == {"numpy"}
    assert len(tested.keys() & vllm.keys()) > 50
