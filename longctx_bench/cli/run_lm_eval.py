"""``longctx-bench lm-eval``: lm-eval's command line with our models."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import click

from longctx_bench.core.errors import UserError


@click.command(
    "lm-eval",
    # All options are lm-eval's own, --help too.
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval_command(arguments: tuple[str, ...]) -> None:
    """Run lm-eval's command line with our models as --model longctx.

    Example: longctx-bench lm-eval --model longctx --model_args method=drope,base=tiny --tasks arc_easy
    """
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 'longctx-bench[lm-eval]'")
    from lm_eval.__main__ import cli_evaluate

    from longctx_bench.lm_eval_adapter.register import register
    from longctx_bench.lm_eval_adapter.run_task import without_git

    register()
    sys.argv = ["lm_eval", *arguments]
    here = Path.cwd()
    repository = any((folder / ".git").exists() for folder in (here, *here.parents))
    try:
        with nullcontext() if repository else without_git():
            cli_evaluate()
    except ValueError as error:
        # What lm-eval says of a name that it does not know; any other error is a bug, and keeps its traceback.
        if not str(error).startswith("Tasks not found"):
            raise
        listed = "`longctx-bench lm-eval ls tasks` lists them, --include_path adds yours"
        raise UserError(f"lm-eval: {error}; {listed}") from error
