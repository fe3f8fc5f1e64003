"""Chat templates, rendered in a subprocess with time and memory limits, because they are untrusted programs.

Jinja's sandbox denies them files and Python, but not endless loops or unbounded memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError

_SECONDS = 60.0
"""Timeout for a rendered prompt; the subprocess's own limit is shorter."""
_CPU_SECONDS = 5.0
"""CPU time limit of the subprocess per prompt; a long prompt takes milliseconds."""
_PROGRAM = Path(__file__).with_name("chat_template_subprocess.py")


class ChatTemplate:
    """A tokenizer's chat template; renders the same text as ``tokenizer.apply_chat_template``."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a transformers tokenizer that has a chat template."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._failed: str | None = None

    def render(
        self,
        messages: Sequence[dict[str, str]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Return a conversation as one text.

        Raises:
            UserError: the template fails, does something forbidden, or exceeds the time or memory limit (then it is not
                tried again).
        """
        conversation = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        if not self._is_jinja():
            # A tokenizer class of an installed package with its own implementation.
            messages = conversation.pop("messages")  # type: ignore[assignment]
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **conversation)
            return text
        with self._lock:
            answer = {"error": self._failed} if self._failed else self._request(conversation)
        if "text" in answer:
            return str(answer["text"])
        raise UserError(f"--chat-template: that of {self._name} cannot be rendered ({answer['error']}); run without it")

    @property
    def _name(self) -> str:
        return str(getattr(self._tokenizer, "name_or_path", "this tokenizer"))

    def _is_jinja(self) -> bool:
        from transformers import PreTrainedTokenizerBase

        function = getattr(self._tokenizer.apply_chat_template, "__func__", None)
        return function is PreTrainedTokenizerBase.apply_chat_template

    def _request(self, conversation: dict[str, Any]) -> dict[str, Any]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(conversation) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            process.kill()
            self._failed = "it takes too long, or too much memory"
            return {"error": self._failed}
        loaded: dict[str, Any] = json.loads(answer)
        return loaded

    def _start(self) -> subprocess.Popen[str]:
        try:
            setup = {
                "template": self._tokenizer.get_chat_template(),
                "special_tokens": self._tokenizer.special_tokens_map,
                "cpu_seconds": _CPU_SECONDS,
            }
        except ValueError as error:
            raise UserError(f"--chat-template: {self._name}: {error!s:.200}") from error
        process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            # Unused library threads would reserve address space.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        weakref.finalize(self, _end, process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(setup, default=str) + "\n")
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # unsent input
                continue
