"""Makes ``longctx`` a name that lm-eval's own command line knows.

lm-eval looks for no plug-ins. A line in a ``.pth`` file of this distribution imports this module where the command
that starts is lm-eval's and names ``longctx``; no other program pays for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from longctx_bench.plain import printable

NAME = "longctx"


def is_lm_eval(arguments: list[str]) -> bool:
    """Tell whether a command line (the interpreter's first) is lm-eval's and may ask for our model."""
    ours = NAME in arguments or f"--model={NAME}" in arguments or "--config" in arguments
    return ours and any(Path(argument).stem in {"lm_eval", "lm-eval"} for argument in arguments)


def register() -> None:
    """Add the model to lm-eval's registry, beside its own."""
    import lm_eval.models  # noqa: F401  (its own models first: it fills an empty registry only)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="longctx_bench.harness.model:LongCtxLM")


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a user's mistake as one line, as our own command line does; all else as before."""
    from longctx_bench.errors import UserError

    if isinstance(error, UserError):
        sys.stderr.write(printable(f"longctx: {error}\n"))
    else:
        sys.__excepthook__(kind, error, trace)


if is_lm_eval(sys.orig_argv):
    register()
    sys.excepthook = _one_line
