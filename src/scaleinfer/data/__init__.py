"""Readers and writers: what goes in, one item at a time, and what comes out, one row at a time.

`source` turns whatever a caller has (a list, a generator, an async generator, a frame, a
dataset) into a `Source`; `read_items` does the same for a file or standard input.
`open_writer` writes rows to JSONL, CSV or Parquet, and `result_row` makes the row of a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaleinfer.data._read import read_items
    from scaleinfer.data._source import END, Source, source
    from scaleinfer.data._write import Writer, open_writer, result_row

__all__ = ["END", "Source", "Writer", "open_writer", "read_items", "result_row", "source"]

_HOME = {
    "END": "_source",
    "Source": "_source",
    "Writer": "_write",
    "open_writer": "_write",
    "read_items": "_read",
    "result_row": "_write",
    "source": "_source",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
