"""``longctx-bench lm-eval``: lm-eval's command line with our models."""

from __future__ import annotations

import sys
from importlib.util import find_spec

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

    register()
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
