"""Subprocess that renders a chat template for :mod:`longctx_bench.benchmarks.chat_templates`.

Run as a file, so that it imports nothing of this package. Protocol: JSON lines. The first input line is the template
and its limits; each further line is a conversation, answered by one output line.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from typing import Any, TextIO

_MEMORY = 2 << 30
"""Address space limit in bytes: the process itself needs a tenth, the longest prompts a hundredth."""
_MORE = 1 << 20
"""Maximum output is twice the conversation's characters plus this."""


def serve(lines: TextIO, answers: TextIO) -> None:
    """Render conversations until the input ends."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to report
    setup = json.loads(lines.readline())
    from transformers.utils.chat_template_utils import render_jinja_template

    for line in lines:
        conversation = json.loads(line)
        _limit(setup["cpu_seconds"])
        try:
            # Despite its annotation it returns the texts and the positions of generations in them.
            rendered: Any = render_jinja_template(
                conversations=[conversation["messages"]],
                chat_template=setup["template"],
                add_generation_prompt=conversation["add_generation_prompt"],
                continue_final_message=conversation["continue_final_message"],
                **setup["special_tokens"],
            )
            answer = _answer(rendered[0][0], conversation["messages"])
        except Exception as error:  # noqa: BLE001 (templates may raise anything)
            answer = {"error": f"{type(error).__name__}: {error!s:.200}"}
        _limit(0.0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(text: str, messages: list[dict[str, Any]]) -> dict[str, str]:
    given = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
    if len(text) > 2 * given + _MORE:
        return {"error": f"{len(text):,} characters of a conversation of {given:,}"}
    return {"text": text}


def _limit(seconds: float) -> None:
    """Kill this process after that much CPU time; 0 cancels the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
