"""Rows of parquet files of any origin, read where they can do no harm.

A page of some kB may unpack to 2 GiB, a text that many rows share is stored once, and there are damaged files that end
the process in which pyarrow reads them. So a process of its own reads them, with a limit to its memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longctx_bench.core.decompression import open_decompressed_text, read_bounded_lines
from longctx_bench.core.errors import UserError

_PROGRAM = Path(__file__).with_name("parquet_subprocess.py")


def parquet_rows(file: Path, columns: Sequence[str], needed: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield a file's rows: texts, lists of texts and numbers by column.

    Args:
        file: of the ending ``.parquet``.
        columns: names at the top level; of those that the file does not have, its rows have nothing.
        needed: those of them that it must have.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, lacks a column or holds something else in it, or it
            unpacks to far more than text does.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{file}: .parquet needs the package 'pyarrow': pip install pyarrow")
    asked = {"file": str(file.resolve()), "columns": list(columns), "needed": list(needed)}
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM), json.dumps(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Other allocators and the threads of libraries reserve address space that they do not use.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        with open_decompressed_text(process.stdout, file.stat().st_size, str(file)) as lines:
            for line in read_bounded_lines(lines, str(file)):
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if isinstance(row, str):
                    raise UserError(f"{file}: {row}")
                yield row
        if process.wait():
            raise UserError(f"{file}: not a readable parquet file (pyarrow fails on it); fetch it again")
    finally:
        process.kill()
        process.wait()
