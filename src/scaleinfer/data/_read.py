"""`read_items`: a file, or standard input, as a `Source` of items."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from scaleinfer.data._source import Source, ThreadSource
from scaleinfer.errors import ConfigError

__all__ = ["read_items"]

Lines = Iterable[tuple[int, str]]
"""Numbered lines, from 1, without their line ends."""

_BATCH_ROWS = 1024
_COUNT_UP_TO = {"jsonl": 1 << 30, "text": 1 << 30, "csv": 1 << 27, "tsv": 1 << 27}
"""Bytes up to which a file is read once beforehand to know how many items it holds."""
_BLANK = " \t\r\n\v\f"
_SHOWN = 60
_LONG_NUMBER = re.compile(r"\d{19}")
_EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "text")


def read_items(path: str | os.PathLike[str], *, format: str | None = None) -> Source:
    """Return the items of a file, read as they are pulled.

    | format | from the extension | an item is |
    |---|---|---|
    | `jsonl` | `.jsonl`, `.ndjson` | the line's JSON value, of whatever type |
    | `json` | `.json` | an element of the list; without a list, a line's JSON value |
    | `csv`, `tsv` | `.csv`, `.tsv` | a dict of column to string; the first row names them |
    | `parquet` | `.parquet`, `.pq` | a dict of column to value |
    | `text` | anything else | `{"text": line}` |

    All but Parquet may be gzipped (`.gz` after the extension). Text is UTF-8, with or without
    a byte order mark; empty lines are no items. Memory does not grow with the file, except
    that a `.json` list is read whole. `total` is known for Parquet and `.json` lists, and for
    other plain files that are small enough to be counted beforehand.

    Args:
        path: The file; `-` is standard input, JSONL if its first line is a JSON object, list
            or string, otherwise text.
        format: One of the above, where the extension does not tell.

    Raises:
        ConfigError: Here, if the file cannot be opened or the format is unknown; while items
            are pulled, if a line is not what it should be (the message names file and line).
    """
    if format is not None and format not in _FORMATS:
        raise ConfigError(
            f"There is no input format {format!r}.", hint=f"Known: {', '.join(_FORMATS)}."
        )
    if os.fspath(path) == "-":
        return _standard_input(format)
    file = Path(path)
    zipped = file.suffix.lower() == ".gz"
    suffix = Path(file.stem).suffix if zipped else file.suffix
    kind = format or _EXTENSIONS.get(suffix.lower(), "text")
    size = _size(file)
    if kind == "parquet":
        return _parquet(file)
    if kind == "json":
        return _json_file(file, zipped)
    total = None if zipped or size > _COUNT_UP_TO[kind] else _count(file, kind)
    return Source(_items(_file_lines(file, zipped), kind, str(file)), total)


def _size(file: Path) -> int:
    try:
        if file.is_dir():
            raise ConfigError(f"{file} is a folder, not a file.", hint="Name one file in it.")
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_size
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no file {file}.", hint=f"The current folder is {Path.cwd()}."
        ) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}.") from error


def _open(file: Path, zipped: bool) -> io.BufferedIOBase:
    return gzip.open(file, "rb") if zipped else file.open("rb")


def _file_lines(file: Path, zipped: bool) -> Generator[tuple[int, str]]:
    with _open(file, zipped) as opened:
        yield from _lines(opened, str(file))


def _lines(opened: Iterable[bytes], name: str) -> Generator[tuple[int, str]]:
    number = 0
    try:
        for number, raw in enumerate(opened, 1):  # the errors below name it
            line = raw.decode()
            yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}, line {number}: byte {error.start + 1} is not UTF-8 text.",
            hint="Save the file as UTF-8, or give its format if it is no text.",
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{name} is damaged after line {number}: {error}.", hint="Make the .gz file anew."
        ) from error
    except OSError as error:
        raise ConfigError(f"{name}, after line {number}: {error.strerror or error}.") from error


def _items(lines: Lines, kind: str, name: str) -> Iterator[Any]:
    readers: dict[str, Callable[[Lines, str], Iterator[Any]]] = {
        "jsonl": _jsonl,
        "json": _json,
        "text": _text,
        "csv": _csv,
        "tsv": _tsv,
    }
    return readers[kind](lines, name)


def _jsonl(lines: Lines, name: str) -> Iterator[Any]:
    for number, line in lines:
        text = line.strip(_BLANK)
        if text:
            yield _loads(text, f"{name}, line {number}")


def _loads(text: str, where: str) -> Any:
    try:
        return _parsed(text)
    except (json.JSONDecodeError, RecursionError) as error:
        detail = getattr(error, "msg", "nested too deeply")
        start = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        raise ConfigError(
            f"{where}: not JSON ({detail}): {start}",
            hint="Each line must be one JSON value; a .json file may also hold one list.",
        ) from error


def _parsed(text: str) -> Any:
    # orjson turns integers beyond 64 bits into floats and refuses NaN; json does neither.
    if not _LONG_NUMBER.search(text):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    return json.loads(text)


def _text(lines: Lines, name: str) -> Iterator[Any]:
    for number, line in lines:
        if "\0" in line:
            raise ConfigError(
                f"{name}, line {number}: a NUL byte, so this is no text.",
                hint=f"Give the file's format: {', '.join(_FORMATS)}.",
            )
        text = line.rstrip("\r\n")
        if text.strip(_BLANK):
            yield {"text": text}


def _csv(lines: Lines, name: str) -> Iterator[Any]:
    return _table(lines, name, ",")


def _tsv(lines: Lines, name: str) -> Iterator[Any]:
    return _table(lines, name, "\t")


def _rows(lines: Lines, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # A paper's full text is longer than the module's default of 128 KiB for one field.
    csv.field_size_limit(max(csv.field_size_limit(), (1 << 31) - 1))
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise ConfigError(
            f"{name}, line {rows.line_num}: {error}.",
            hint='A field that holds a quote is quoted itself, with the quote doubled: "a ""b""".',
        ) from error


def _table(lines: Lines, name: str, delimiter: str) -> Iterator[Any]:
    rows = _rows(lines, name, delimiter)
    _, header = next(rows, (0, []))
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ConfigError(
            f"{name}: more than one column is named {', '.join(map(repr, twice))}.",
            hint="The first row must give each column a name of its own.",
        )
    width = len(header)
    for number, row in rows:
        if len(row) != width:
            raise ConfigError(
                f"{name}, line {number}: {len(row)} fields where the header has {width}.",
                hint="Quote fields that hold the delimiter, or remove the line.",
            )
        yield dict(zip(header, row, strict=True))


def _count(file: Path, kind: str) -> int | None:
    try:
        if kind in {"jsonl", "text"}:
            with file.open("rb") as opened:
                first = opened.readline().removeprefix(b"\xef\xbb\xbf")
                return sum(1 for line in itertools.chain([first], opened) if line.strip())
        delimiter = "," if kind == "csv" else "\t"
        rows = _rows(_file_lines(file, False), str(file), delimiter)
        return max(sum(1 for _ in rows) - 1, 0)
    except (ConfigError, OSError):
        return None  # whoever pulls the item in question is told what is wrong


def _json_file(file: Path, zipped: bool) -> Source:
    """Return the list in a `.json` file, or its lines if it holds no list."""
    lines = _file_lines(file, zipped)
    first = next((pair for pair in lines if pair[1].strip(_BLANK)), None)
    if first is None or not first[1].lstrip(_BLANK).startswith("["):
        lines.close()
        return Source(_jsonl(_file_lines(file, zipped), str(file)))
    items = _listed(itertools.chain([first], lines), str(file))
    return Source(iter(items), len(items))


def _listed(lines: Lines, name: str) -> list[Any]:
    text = "".join(line for _, line in lines)
    try:
        return list(_parsed(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{name} starts as a JSON list but is none: {error}.",
            hint="If each line is an item of its own, the format is jsonl.",
        ) from error


def _json(lines: Lines, name: str) -> Iterator[Any]:
    yield from _listed(lines, name)


def _parquet(file: Path) -> Source:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            "Reading Parquet needs pyarrow.", hint="Run: pip install 'scaleinfer[data]'"
        ) from error

    def rows() -> Iterator[Any]:
        try:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{file} is no Parquet file, or a damaged one: {error}") from error

    try:
        with parquet.ParquetFile(file) as opened:
            total = opened.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file} is no Parquet file, or a damaged one: {error}") from error
    return Source(rows(), total)


def _standard_input(format: str | None) -> Source:
    if format == "parquet":
        raise ConfigError("Parquet cannot be read from standard input.", hint="Name the file.")
    try:
        number = sys.stdin.fileno()
    except (AttributeError, io.UnsupportedOperation):  # none at all, or one replaced in memory
        opened: Iterable[bytes] = getattr(sys.stdin, "buffer", ())
        return Source(_sniffed(_lines(opened, "standard input"), format))
    # An own file object: at exit the interpreter takes the lock of sys.stdin's buffer, which a
    # thread that still waits for input would hold.
    opened = open(number, "rb", closefd=False)  # noqa: SIM115  # lives with the source
    items = _sniffed(_lines(opened, "standard input"), format)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return Source(items)
    return ThreadSource(items)


def _sniffed(lines: Lines, format: str | None) -> Iterator[Any]:
    if format is None:
        lines = iter(lines)
        head = next((pair for pair in lines if pair[1].strip(_BLANK)), None)
        if head is None:
            return
        format = _guess(head[1].strip(_BLANK))
        lines = itertools.chain([head], lines)
    yield from _items(lines, format, "standard input")


def _guess(line: str) -> str:
    if line == "[":
        return "json"
    if line.startswith("{"):
        return "jsonl"  # a broken object is reported as such, not taken for text
    try:
        return "jsonl" if line[0] in '["' and json.loads(line) is not None else "text"
    except ValueError:
        return "text"
