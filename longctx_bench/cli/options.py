"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from longctx_bench.core.argument_parsing import parse_lengths, parse_scales, split_commas
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import require_writable

__all__ = [
    "added",
    "engine_options",
    "make_registry",
    "parse_lengths",
    "parse_scales",
    "parse_settings",
    "registry_options",
    "split_commas",
    "writable",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])

_REGISTRY = (
    click.option("--baselines", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
                 help="Folder with your own method YAMLs and models.yaml; may be repeated."),
    click.option("--task-folder", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
                 help="Folder with your own task YAMLs; may be repeated."),
    click.option("--data", "local_data", multiple=True, metavar="NAME=PATH",
                 help="A local file in place of a named data source; may be repeated."),
    click.option("--set", "settings", multiple=True, metavar="METHOD.PARAM=VALUE",
                 help="Override a method's parameter, such as yarn.factor=8; may be repeated."),
)  # fmt: skip


_ENGINE = (
    click.option("--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]),
                 help="Precision; auto is bfloat16 where the device computes in it."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N."),
    click.option("--batch-tokens", type=click.IntRange(min=1),
                 help="Tokens a batch; from the free memory by default."),
)  # fmt: skip


def writable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file or folder that cannot be written, as an option's callback."""
    if value is not None:
        require_writable(value, "choose another with --out")
    return value


def added(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def engine_options(command: F) -> F:
    """Add the options that say what a model is run in and on."""
    return added(command, _ENGINE)


def registry_options(command: F) -> F:
    """Add the options that change what names mean."""
    return added(command, _REGISTRY)


def make_registry(
    baselines: tuple[Path, ...], task_folder: tuple[Path, ...], local_data: tuple[str, ...], settings: tuple[str, ...]
) -> Any:
    """Build the registry from the shared options.

    Raises:
        UserError: an option is malformed or names nothing.
    """
    from longctx_bench.registry import Registry

    data = {}
    for pair in local_data:
        name, equals, path = pair.partition("=")
        if not equals:
            raise UserError(f"--data {pair}: expected NAME=PATH")
        data[name] = Path(path).expanduser()
    return Registry(baselines, task_folder, data, parse_settings(settings))


def parse_settings(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Turn ``yarn.factor=8`` into ``{"yarn": {"factor": 8}}``; values are read as YAML.

    Raises:
        UserError: a pair is malformed.
    """
    settings: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        target, equals, value = pair.partition("=")
        method, dot, parameter = target.partition(".")
        if not (equals and dot and parameter):
            raise UserError(f"--set {pair}: expected METHOD.PARAM=VALUE, such as yarn.factor=8")
        try:
            settings.setdefault(method, {})[parameter] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {pair}: the value is not YAML") from error
    return settings
