"""Options shared by several commands, and parsers of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from click.core import ParameterSource

from longctx_bench.core.argument_parsing import parse_lengths, parse_scales, split_commas
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import require_writable

__all__ = [
    "add_options",
    "engine_options",
    "make_registry",
    "parse_lengths",
    "parse_scales",
    "parse_settings",
    "parse_values",
    "registry_options",
    "renamed_option",
    "split_commas",
    "writable",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


def renamed_option(old: str, advice: str, **attributes: Any) -> Callable[[F], F]:
    """Return an option of earlier releases: still accepted, hidden from ``--help``, with a warning when it is used.

    Args:
        old: the spelling of earlier releases, such as ``--rerun``.
        advice: what to do instead, such as ``use --overwrite``.
        attributes: of the option, as for :func:`click.option`.
    """

    def warn(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT:
            click.echo(f"warning: {old} is deprecated and will be removed in the next release; {advice}", err=True)
        return value

    return click.option(old, hidden=True, callback=warn, help=f"Deprecated: {advice}.", **attributes)


_FOLDERS: dict[str, Any] = {"multiple": True, "type": click.Path(path_type=Path), "metavar": "DIR"}
_REGISTRY = (
    click.option("--include-path", "include_paths", **_FOLDERS,
                 help="Folder with your own methods, models.yaml or tasks (YAML); may be repeated."),
    renamed_option("--baselines", "use --include-path", **_FOLDERS),
    renamed_option("--task-folder", "use --include-path", **_FOLDERS),
    click.option("--data", "local_data", multiple=True, metavar="NAME=PATH",
                 help="Local file to use for a named data source; may be repeated."),
    click.option("--set", "settings", multiple=True, metavar="METHOD.PARAM=VALUE",
                 help="Override a method parameter, e.g. yarn.factor=8; may be repeated."),
)  # fmt: skip


_ENGINE = (
    click.option("--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]),
                 help="Data type of the weights; auto is bfloat16 where the device supports it."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--batch-tokens", type=click.IntRange(min=1),
                 help="Maximum tokens per batch (default: from free memory)."),
)  # fmt: skip


def writable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Option callback: raise if the file or folder cannot be written, or is a bundle."""
    if value is not None:
        from longctx_bench.store.bundle import BUNDLE_SUFFIX

        if value.suffix == BUNDLE_SUFFIX and value.is_file():
            raise UserError(f"--out {value}: is a bundle, which only `longctx-bench pack` writes; choose another")
        require_writable(value, "choose another with --out")
    return value


def add_options(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    """Add options to a command, in order."""
    for option in reversed(options):
        command = option(command)
    return command


def engine_options(command: F) -> F:
    """Add --dtype, --device and --batch-tokens."""
    return add_options(command, _ENGINE)


def registry_options(command: F) -> F:
    """Add the options that :func:`make_registry` reads."""
    return add_options(command, _REGISTRY)


def make_registry(
    include_paths: tuple[Path, ...],
    baselines: tuple[Path, ...],
    task_folder: tuple[Path, ...],
    local_data: tuple[str, ...],
    settings: tuple[str, ...],
) -> Any:
    """Build the registry from the shared options; ``baselines`` and ``task_folder`` are old spellings.

    Raises:
        UserError: an option is malformed, or names something that does not exist.
    """
    from longctx_bench.registry import Registry

    data = {}
    for pair in local_data:
        name, equals, path = pair.partition("=")
        if not equals:
            raise UserError(f"--data {pair}: expected NAME=PATH")
        data[name] = Path(path).expanduser()
    folders = tuple(dict.fromkeys((*baselines, *task_folder, *include_paths)))
    return Registry(folders, data, parse_settings(settings))


def parse_settings(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Parse ``yarn.factor=8`` into ``{"yarn": {"factor": 8}}``; values are YAML.

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


def parse_values(pairs: tuple[str, ...]) -> dict[str, list[Any]]:
    """Parse ``group=2,4,8`` into ``{"group": [2, 4, 8]}``; values are YAML.

    Raises:
        UserError: a pair is malformed, or two name one parameter.
    """
    values: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, listed = pair.partition("=")
        if not (equals and name):
            raise UserError(f"--param {pair}: expected NAME=VALUES, such as group=2,4,8")
        if name in values:
            raise UserError(f"--param {pair}: {name} is named twice; give all its values at once")
        try:
            values[name] = [yaml.safe_load(value) for value in split_commas(listed)]
        except yaml.YAMLError as error:
            raise UserError(f"--param {pair}: a value is not YAML") from error
    return values
