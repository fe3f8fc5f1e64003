"""Subprocess that reads a parquet file for :mod:`longctx_bench.core.parquet_reader`, with a memory limit.

Run as a file, so that it imports nothing of this package. Its only argument is a JSON object: ``file``, ``columns``,
and ``needed``, the columns that the file must have. Each row becomes a JSON object on a line of standard output; an
error in the file becomes a JSON string on the last line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

_MEMORY = 6 << 30
"""Bytes of address space: the process itself takes two, a page of long documents one or two each time it is copied."""
_LONGEST = 1 << 26
"""Bytes of a row's text: twenty times the longest document of any benchmark here."""
_MAX_ROWS = 256
"""Rows that are decoded at a time; fewer where they could take more than :data:`_MAX_BYTES`."""
_MAX_BYTES = 1 << 30
_BUFFER = 1 << 20
"""Bytes of a file that are read at a time, since a row group may have gigabytes."""


class _Unfit(Exception):
    """A file that pyarrow can read, but not one of text; the message says why."""


def serve(file: str, columns: list[str], needed: list[str]) -> None:
    """Write the rows, and an error in the file as the last line; any other failure shows in the exit status."""
    import pyarrow

    encoder = msgspec.json.Encoder()
    try:
        for rows in _batches(file, columns, needed):
            sys.stdout.buffer.write(encoder.encode_lines(rows))
    except MemoryError:
        message = "it decompresses to more than the memory limit"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"not a readable parquet file ({' '.join(str(error).split()):.200})"
    except _Unfit as error:
        message = str(error)
    else:
        return
    sys.stdout.buffer.write(encoder.encode(message) + b"\n")


def _batches(file: str, columns: list[str], needed: list[str]) -> Iterator[list[dict[str, Any]]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file, buffer_size=_BUFFER) as table:
        schema = table.schema_arrow
        for name in needed:
            if name not in schema.names:
                raise _Unfit(f"no column '{name}' among {schema.names!s:.200}")
        names = list(dict.fromkeys(name for name in schema.names if name in columns))
        for name in names:
            _require_flat(name, schema)
        for batch in table.iter_batches(_rows_at_once(table.metadata), columns=names, use_threads=False):
            if _size(batch) <= _LONGEST:
                yield batch.to_pylist()
                continue
            for index in range(len(batch)):
                row = batch.slice(index, 1)
                if _size(row) > _LONGEST:
                    raise _Unfit(f"a row of more than {_LONGEST >> 20} MiB; remove it")
                yield row.to_pylist()


def _rows_at_once(metadata: Any) -> int:
    """Return how many rows can be decoded together: all of them may name one text that is as large as the column."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    largest = max((column.total_uncompressed_size for column in columns), default=1)
    return int(min(_MAX_ROWS, max(1, _MAX_BYTES // max(1, largest))))


def _size(batch: Any) -> int:
    """Return how many bytes the texts and lists of texts of some rows have."""
    import pyarrow
    from pyarrow import compute

    size = 0
    for column in batch.columns:
        texts = column.flatten() if isinstance(column, pyarrow.ListArray | pyarrow.LargeListArray) else column
        if isinstance(texts, pyarrow.DictionaryArray):
            texts = texts.dictionary_decode()
        if isinstance(texts, pyarrow.StringArray | pyarrow.LargeStringArray):
            size += compute.sum(compute.binary_length(texts)).as_py() or 0
    return size


def _require_flat(name: str, schema: Any) -> None:
    """Refuse a column of anything else than texts, lists of texts and numbers."""
    from pyarrow import types

    if schema.names.count(name) > 1:
        raise _Unfit(f"two columns are called '{name}'")
    kind = schema.field(name).type
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    plain = (
        types.is_string,
        types.is_large_string,
        types.is_null,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
    )
    if not any(is_kind(kind) for is_kind in plain):
        raise _Unfit(f"column '{name}' holds no text but {schema.field(name).type!s:.100}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to report
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(BrokenPipeError):  # the caller has read enough
        serve(**msgspec.json.decode(sys.argv[1]))
        sys.stdout.flush()
    os._exit(0)  # nothing is left to be cleaned up
