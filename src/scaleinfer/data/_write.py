"""`open_writer`: rows to JSONL, CSV or Parquet; `result_row`: the row of a result.

A file appears under its name only when it is complete: rows go to a temporary file beside it,
which takes the name in one step at the end.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import orjson

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleinfer.results import Result

__all__ = ["Writer", "open_writer", "result_row"]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_BATCH_ROWS = 1024
_INT64 = 1 << 63
_AS_IT_IS = (str, int, bool, type(None))


class Writer(ABC):
    """Writes rows to a file that takes its name on `close`.

    As a context manager it commits if the block ends normally and leaves no file behind if it
    raises.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._file: BinaryIO = self._temporary.open("xb")
        self._closed = False

    @abstractmethod
    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row."""

    def close(self, *, commit: bool = True) -> None:
        """End the file; closing twice is harmless.

        Args:
            commit: Give the file its name, in place of one that had it. False: drop it.

        Raises:
            OSError: The rest could not be written (a full disk); no file is left behind.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if commit:
                self._finish()
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if commit:
                self._temporary.replace(self.path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:  # noqa: B027  # most formats have nothing to add
        """Write what a format wants at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(commit=kind is None)


class _JsonlWriter(Writer):
    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(_dumps(row) + b"\n")


class _CsvWriter(Writer):
    """The first row names the columns; later rows may lack some, not bring new ones."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns: list[str] | None = None
        self._text = io.StringIO(newline="")
        self._csv = csv.writer(self._text)

    def write(self, row: Mapping[str, Any]) -> None:
        if self._columns is None:
            self._columns = list(row)
            self._put(self._columns)
        new = row.keys() - set(self._columns)
        if new:
            raise ValueError(f"the first row had no column {', '.join(sorted(new))}")
        self._put([_cell(row.get(column)) for column in self._columns])

    def _put(self, cells: list[str]) -> None:
        self._csv.writerow(cells)
        # Text cut in the middle of a surrogate pair cannot be encoded; the rest of it can.
        self._file.write(self._text.getvalue().encode("utf-8", "replace"))
        self._text.seek(0)
        self._text.truncate()


class _ParquetWriter(Writer):
    """Rows wait as JSON lines until all are there, so that every column's type is known.

    A column becomes bool, int64, double or string if all its values are of that one kind
    (integers among floats are floats). Any other column is string: strings as they are,
    anything else as JSON.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._kinds: dict[str, set[str]] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        line = _dumps(row)
        for column, value in row.items():
            self._kinds.setdefault(column, set()).add(_kind(value))
        self._file.write(line + b"\n")

    def _finish(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        kinds = {column: _column_kind(kinds) for column, kinds in self._kinds.items()}
        schema = pa.schema([(c, types.get(kind, pa.string())) for c, kind in kinds.items()])
        spooled = self._temporary
        self._file.close()
        self._temporary = spooled.with_suffix(".parquet.tmp")
        try:
            self._file = self._temporary.open("xb")
            with spooled.open("rb") as lines, parquet.ParquetWriter(self._file, schema) as out:
                for batch in _batches(lines):
                    columns = [_values(batch, column, kinds[column]) for column in schema.names]
                    arrays = map(pa.array, columns, schema.types)
                    out.write_batch(pa.record_batch(list(arrays), schema=schema))
        finally:
            spooled.unlink(missing_ok=True)


_WRITERS: dict[str, type[Writer]] = {
    "jsonl": _JsonlWriter,
    "csv": _CsvWriter,
    "parquet": _ParquetWriter,
}


def open_writer(path: str | os.PathLike[str], *, format: str | None = None) -> Writer:
    """Return a writer of rows.

    * `.jsonl`: one JSON object a line, nested as it is.
    * `.csv`: UTF-8; strings as they are, `None` and NaN empty, anything else as JSON.
    * `.parquet`: typed columns; nested values as JSON text (needs pyarrow).

    Args:
        path: The file; one that exists is replaced when the writer is closed.
        format: `jsonl`, `csv` or `parquet`, where the extension does not tell.

    Raises:
        ConfigError: Nothing could be written there: unknown extension, missing folder, no
            permission, pyarrow missing. Known at once, before anything is spent.
    """
    target = Path(os.path.realpath(path))
    kind = format or target.suffix.lower().removeprefix(".")
    if kind not in _WRITERS:
        raise ConfigError(
            f"{path}: rows cannot be written as {kind or 'a file without extension'!r}.",
            hint="Known: .jsonl, .csv, .parquet.",
        )
    if not target.parent.is_dir():
        raise ConfigError(f"There is no folder {target.parent}.", hint="Create it first.")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{path} is not a regular file.", hint="Name a file.")
    if kind == "parquet":
        try:
            import pyarrow  # noqa: F401  # found now, not after the run
        except ImportError as error:
            raise ConfigError(
                "Writing Parquet needs pyarrow.", hint="Run: pip install 'scaleinfer[data]'"
            ) from error
    try:
        return _WRITERS[kind](target)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


def result_row(result: Result, *, id_field: str | None = None) -> dict[str, Any]:
    """Return a result as a row of plain JSON data, always with the same columns.

    `id` is the item's field `id_field` (default: its field `id`), `None` if it has none;
    `value` is the validated object as JSON data; `error` is `None` or a dict of `type` and
    `message`; `usage` is a dict of `prompt_tokens` and `completion_tokens`.
    """
    error = result.error
    return {
        "id": _plain(_field(result.item, id_field or "id")),
        "index": result.index,
        "key": result.key,
        "ok": result.ok,
        "text": result.text,
        "value": _plain(result.value),
        "error": error and {"type": type(error).__name__, "message": str(error)},
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
        },
        "cost_usd": result.cost_usd,
        "attempts": result.attempts,
        "latency_s": result.latency_s,
        "model": result.model,
        "endpoint": result.endpoint,
        "finish_reason": result.finish_reason,
        "resumed": result.resumed,
    }


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _plain(value: Any) -> Any:
    if type(value) in _AS_IT_IS:  # not isinstance: an enumeration's member may be a str
        return value
    return json.loads(_dumps(value))


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_default, option=_OPTIONS)
    except TypeError:  # integers beyond 64 bits, half a surrogate pair
        return json.dumps(_without_nan(value), default=_default).encode()


def _default(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, set | frozenset | array) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    text = _dumps(value).decode()
    return "" if text == "null" else text


def _kind(value: Any) -> str:
    """Return the kind of column that holds `value`; empty if any does."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -_INT64 <= value < _INT64 else "object"
    kinds = (kind for kind in (bool, float, str) if isinstance(value, kind))
    return next(kinds, object).__name__


def _column_kind(kinds: set[str]) -> str:
    found = kinds - {""}
    if found == {"int", "float"}:
        return "float"
    return found.pop() if len(found) == 1 else "str"


def _batches(lines: BinaryIO) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for line in lines:
        batch.append(json.loads(line))
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _values(batch: list[dict[str, Any]], column: str, kind: str) -> list[Any]:
    values = [row.get(column) for row in batch]
    if kind in {"bool", "int"}:
        return values
    if kind == "float":
        return [None if value is None else float(value) for value in values]
    return [None if value is None else _text(value) for value in values]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else _dumps(value).decode()
    return text.encode("utf-8", "replace").decode()
