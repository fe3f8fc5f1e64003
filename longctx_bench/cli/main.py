"""Root command and entry point."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

import click

from longctx_bench.cli.calibrate import calibrate_command
from longctx_bench.cli.check import check_command
from longctx_bench.cli.compare import compare_command
from longctx_bench.cli.data import data_group
from longctx_bench.cli.examples import examples_command
from longctx_bench.cli.export import export_command
from longctx_bench.cli.figures import figures_command
from longctx_bench.cli.list import list_group
from longctx_bench.cli.migrate import migrate_command
from longctx_bench.cli.output import say
from longctx_bench.cli.pack import pack_command
from longctx_bench.cli.parity import parity_command
from longctx_bench.cli.probe import probe_group
from longctx_bench.cli.report import report_command
from longctx_bench.cli.run import run_command
from longctx_bench.cli.run_lm_eval import lm_eval_command
from longctx_bench.cli.score import score_command
from longctx_bench.cli.show import show_command
from longctx_bench.cli.train import train_command
from longctx_bench.cli.unpack import unpack_command
from longctx_bench.core.errors import UserError, missing_extra
from longctx_bench.core.io import disk_is_full
from longctx_bench.core.provenance import package_version
from longctx_bench.core.sanitize import escape_control_chars

_format_warning = warnings.formatwarning


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_version(), prog_name="longctx-bench")
def cli() -> None:
    """Measure whether a method really lets a model read beyond the context it was trained on."""


cli.add_command(run_command)
cli.add_command(list_group)
cli.add_command(show_command)
cli.add_command(report_command)
cli.add_command(compare_command)
cli.add_command(figures_command)
cli.add_command(score_command)
cli.add_command(examples_command)
cli.add_command(data_group)
cli.add_command(train_command)
cli.add_command(calibrate_command)
cli.add_command(export_command)
cli.add_command(probe_group)
cli.add_command(parity_command)
cli.add_command(check_command)
cli.add_command(pack_command)
cli.add_command(unpack_command)
cli.add_command(migrate_command)
cli.add_command(lm_eval_command)


def main() -> None:
    """Run the command line; user errors are one line on standard error and exit code 2."""
    # An unreachable hub must cost seconds, not the minute of its default retries.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Spinning OpenMP threads slow each other down on virtual machines, by up to 20 times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _sanitize_terminal_output()
    try:
        cli(prog_name="longctx-bench", standalone_mode=False)
    except UserError as error:
        say(f"longctx-bench: {error}", err=True)
        sys.exit(2)
    except click.MissingParameter as error:
        usage = error.ctx.get_usage() if error.ctx else ""
        say(f"longctx-bench: {error.format_message()} {' '.join(usage.split())}".rstrip(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        say(f"longctx-bench: {error.format_message()}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        hint = missing_extra(error)
        if hint is None:
            raise
        say(f"longctx-bench: {hint}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        say("longctx-bench: interrupted; repeat the command to resume", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader, e.g. head, closed the pipe.
        _close_output()
        sys.exit(0)
    except OSError as error:
        # Errors of files are UserErrors: only a standard output on a full disk gets here.
        if not disk_is_full(error):
            raise
        _close_output()
        say(f"longctx-bench: the output cannot be written: {error.strerror}", err=True)
        sys.exit(2)


def _sanitize_terminal_output() -> None:
    """Strip terminal control characters from warnings, log messages and tracebacks.

    They may quote untrusted text: a name in a model's config, a server's response.
    """
    warnings.formatwarning = _warning
    sys.excepthook = _traceback
    logging.setLogRecordFactory(_LogRecord)


def _warning(*arguments: Any, **named: Any) -> str:
    return escape_control_chars(_format_warning(*arguments, **named))


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(escape_control_chars("".join(traceback.format_exception(kind, error, trace))))


class _LogRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        return escape_control_chars(super().getMessage())


def _close_output() -> None:
    """Redirect standard output to devnull, so that flushing it at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
