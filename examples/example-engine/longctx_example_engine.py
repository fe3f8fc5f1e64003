"""An engine: answers that another system gave and a file holds, by example id, to be scored and reported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec
from longctx_bench.core.types import Generation, Request
from longctx_bench.engines.base import DeviceOptions, StoppingCriterion
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.models.variant import ModelUnderTest


class RecordedOptions(DeviceOptions):
    """What ``--engine-arg`` takes."""

    answers: Path
    """JSON lines with ``id`` and ``text``."""


class RecordedEngine(EchoEngine):
    """Gives each example the answer of a file; tokenizer and batches are those of the echo engine."""

    name = "recorded"
    Options: ClassVar[type[Spec]] = RecordedOptions

    def __init__(self, answers: Path, **options: Any) -> None:
        """Read the file.

        Raises:
            UserError: it cannot be read.
        """
        super().__init__(**options)
        try:
            lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
            self._answers = {str(line["id"]): str(line["text"]) for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{answers}: not JSON lines with id and text ({error})") from error

    def generate(
        self, batch: Sequence[Request], model: ModelUnderTest, settled: StoppingCriterion
    ) -> Iterator[Generation]:
        """Yield the recorded answers."""
        for request in batch:
            text = self._answers.get(request.example_id)
            if text is None:
                raise UserError(f"--engine recorded: the file has no answer to example {request.example_id}")
            yield Generation(request.example_id, text, len(request.input_ids), 0, "eos", 0.0)
