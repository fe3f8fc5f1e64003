"""Reading untrusted parquet files in a subprocess with a memory limit.

A page of some kB may decompress to 2 GiB, a text that many rows share is stored once, and some damaged files crash the
process in which pyarrow reads them.
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
        file: a ``.parquet`` file.
        columns: top-level columns to read; those that the file lacks are left out of its rows.
        needed: the columns that the file must have.

    Raises:
        UserError: pyarrow is not installed, or the file is damaged, lacks a needed column, has one of another type, or
            unpacks to far more than text does.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{file}: .parquet needs the package 'pyarrow': pip install pyarrow")
    arguments = {"file": str(file.resolve()), "columns": list(columns), "needed": list(needed)}
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM), json.dumps(arguments)],
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
