"""README documents every command and every option, and ARCHITECTURE every module."""

from __future__ import annotations

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
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert f"`{flag}" in README, f"{name} {flag}"


def test_every_method_and_group_is_in_readme() -> None:
    registry = Registry()
    for name in [*registry.methods, *registry.groups]:
        assert f"`{name}`" in README, name


@pytest.mark.parametrize(
    "folder",
    [
        *("", "methods", "engines", "executors", "benchmarks", "metrics", "cli", "training", "calibration"),
        *("harness", "parity", "probes", "speed"),
        *("reporting", "reporting/rendering", "reporting/figures", "reporting/papers", "reporting/page"),
    ],
)
def test_every_module_is_in_the_architecture(folder: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for module in (ROOT / "longctx_bench" / folder).glob("*.py"):
        if not module.stem.startswith("__"):
            assert f"`{module.name}`" in text, module


def test_the_environment_of_vllm_differs_in_numpy_alone() -> None:
    tested, vllm = (
        dict(line.split("==") for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "==" in line)
        for name in ("constraints.txt", "requirements-vllm.txt")
    )
    assert {name for name in tested.keys() & vllm.keys() if tested[name] != vllm[name]} == {"numpy"}
    assert len(tested.keys() & vllm.keys()) > 50
