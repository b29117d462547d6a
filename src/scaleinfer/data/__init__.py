"""Readers and writers: what goes in, one item at a time, and what comes out, one row at a time.

`source` turns whatever a caller has (a list, a generator, an async generator, a frame, a
dataset) into a `Source`; `read_items` does the same for a file or standard input.
`open_writer` writes rows to JSONL, CSV or Parquet, and `result_row` makes the row of a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.data._read import read_items
    from scaleinfer.data._source import END, Source, source
    from scaleinfer.data._write import Writer, open_writer, result_row

__all__ = ["END", "Source", "Writer", "open_writer", "read_items", "result_row", "source"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "END": "_source",
        "Source": "_source",
        "Writer": "_write",
        "open_writer": "_write",
        "read_items": "_read",
        "result_row": "_write",
        "source": "_source",
    },
)
