"""What a journal file holds: its tables, its marks of origin, the digest of each row.

A row's digest covers its content, so that a flipped byte is found and a row that was picked out
of a damaged file can be trusted. Where a result was last seen (run and index) changes when a
later run takes the row up, so that has a small checksum of its own.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from scaleinfer.journal._chain import CHAIN_SCHEMA, adopt

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = [
    "APPLICATION_ID",
    "BATCHES_SCHEMA",
    "FORMAT",
    "MIGRATIONS",
    "PAGE_SIZE",
    "SCHEMA",
    "TABLES",
    "Manifest",
    "ResultRow",
    "Tally",
    "as_result",
    "attempt_digest",
    "decoded",
    "is_intact",
    "place_checksum",
    "result_digest",
    "row_digest",
    "storable",
]

APPLICATION_ID = 0x53494E46
"""Bytes 68 to 71 of the file: `SINF`."""

FORMAT = 2
"""The file's `user_version`."""

PAGE_SIZE = 4096


def _begin_chain(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE attempts ADD COLUMN more TEXT")
    adopt(connection)


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _begin_chain}
"""Format n -> what turns it into format n + 1. Runs inside one transaction."""

SCHEMA = (
    "CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT, started REAL NOT NULL,"
    " fingerprint TEXT NOT NULL, data TEXT NOT NULL, digest BLOB NOT NULL)",
    "CREATE TABLE run_states (run INTEGER PRIMARY KEY, state TEXT NOT NULL, ended REAL,"
    " counts TEXT NOT NULL, ok INTEGER NOT NULL, failed INTEGER NOT NULL, reused INTEGER NOT NULL,"
    " unrendered INTEGER NOT NULL, attempts INTEGER NOT NULL, rows INTEGER NOT NULL,"
    " digest BLOB NOT NULL)",
    "CREATE TABLE results (id INTEGER PRIMARY KEY, identity BLOB NOT NULL,"
    " occurrence INTEGER NOT NULL, run INTEGER NOT NULL, idx INTEGER NOT NULL,"
    " ok INTEGER NOT NULL, key TEXT NOT NULL, question TEXT NOT NULL, payload TEXT NOT NULL,"
    " digest BLOB NOT NULL, place INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX results_identity ON results (identity, occurrence)",
    "CREATE TABLE attempts (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, identity BLOB NOT NULL,"
    " occurrence INTEGER NOT NULL, number INTEGER NOT NULL, endpoint TEXT NOT NULL,"
    " started REAL NOT NULL, latency_s REAL NOT NULL, status TEXT NOT NULL, http_status INTEGER,"
    " prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, error TEXT NOT NULL,"
    " digest BLOB NOT NULL, more TEXT)",
    "CREATE TABLE unrendered (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, idx INTEGER NOT NULL,"
    " key TEXT NOT NULL, error TEXT NOT NULL, digest BLOB NOT NULL)",
    CHAIN_SCHEMA,
)

BATCHES_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS batches (id INTEGER PRIMARY KEY, run INTEGER NOT NULL,"
    " token TEXT NOT NULL, event TEXT NOT NULL, batch TEXT NOT NULL, endpoint TEXT NOT NULL,"
    " noted REAL NOT NULL, members BLOB NOT NULL, digest BLOB NOT NULL)"
)
"""Only in journals of runs that used a batch API; others are read by older versions as ever."""

TABLES: dict[str, tuple[str, ...]] = {
    "runs": ("id", "name", "started", "fingerprint", "data", "digest"),
    "run_states": (
        "run", "state", "ended", "counts", "ok", "failed", "reused", "unrendered", "attempts",
        "rows", "digest",
    ),
    "results": (
        "id", "identity", "occurrence", "run", "idx", "ok", "key", "question", "payload",
        "digest", "place",
    ),
    "attempts": (
        "id", "run", "identity", "occurrence", "number", "endpoint", "started", "latency_s",
        "status", "http_status", "prompt_tokens", "completion_tokens", "error", "digest", "more",
    ),
    "unrendered": ("id", "run", "idx", "key", "error", "digest"),
    "batches": (
        "id", "run", "token", "event", "batch", "endpoint", "noted", "members", "digest",
    ),
}  # fmt: skip
"""Columns of each table, the row's number first."""

_REAL_COLUMNS = frozenset({"started", "ended", "latency_s", "noted"})
"""SQLite stores a whole number of these as an integer."""

_BYTES_COLUMNS = frozenset({"identity", "digest", "payload", "members"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """Who, what and when of one run.

    Attributes:
        name: The run's name, if it was given one.
        fingerprint: Equal for runs of the same program: prompts, model, sampling, schema.
        data: JSON: versions, parameters, prompt_fn's source hash.
    """

    name: str | None
    fingerprint: str
    data: dict[str, Any]


@dataclass(slots=True)
class Tally:
    """What a run has put into the journal so far, exact at every commit.

    Attributes:
        ok: Answers recorded.
        failed: Failures recorded.
        reused: Answers of earlier runs that were taken up.
        unrendered: Items without a prompt.
        attempts: Calls recorded.
        rows: Results in the whole journal.
    """

    ok: int = 0
    failed: int = 0
    reused: int = 0
    unrendered: int = 0
    attempts: int = 0
    rows: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class ResultRow(NamedTuple):
    """One row of `results`; the columns in order."""

    id: int
    identity: bytes
    occurrence: int
    run: int
    idx: int
    ok: int
    key: str
    question: str
    payload: bytes
    digest: bytes
    place: int

    def intact(self) -> bool:
        """Return whether the content is what was written."""
        return self.digest == result_digest(
            self.identity,
            self.occurrence,
            ok=self.ok,
            key=self.key,
            question=self.question,
            payload=self.payload,
        )

    def placed(self) -> bool:
        """Return whether run and index are what was written."""
        try:
            return self.place == place_checksum(self.identity, self.occurrence, self.run, self.idx)
        except struct.error:
            return False


_RESULT = struct.Struct("<q?II")
_PLACE = struct.Struct("<qqq")

# A copy of a hash that has begun costs less than to begin one.
_BEGUN_RESULT = blake2b(digest_size=16, person=b"result")
_BEGUN_ATTEMPT = blake2b(digest_size=8, person=b"attempts")


def result_digest(
    identity: bytes, occurrence: int, *, ok: int, key: str, question: str, payload: bytes
) -> bytes:
    """Return 16 bytes of BLAKE2b over a result's content."""
    name, asked = key.encode(), question.encode()
    head = _RESULT.pack(occurrence, ok == 1, len(name), len(asked))
    hasher = _BEGUN_RESULT.copy()
    hasher.update(b"".join((head, identity, name, asked, payload)))
    return hasher.digest()


def place_checksum(identity: bytes, occurrence: int, run: int, idx: int) -> int:
    """Return the CRC-32 of where a result was last seen."""
    return zlib.crc32(identity + _PLACE.pack(occurrence, run, idx))


def row_digest(table: str, values: tuple[Any, ...]) -> bytes:
    """Return 8 bytes of BLAKE2b over a row of any table but `results`.

    Args:
        table: The table's name; it is part of the digest.
        values: The columns in order without the digest; bytes as they are.
    """
    plain = [value.hex() if isinstance(value, bytes) else value for value in values]
    return blake2b(orjson.dumps(plain), digest_size=8, person=table.encode()).digest()


def attempt_digest(values: tuple[Any, ...]) -> bytes:
    """Return what `row_digest` returns for a row of `attempts`, in half the time.

    Args:
        values: The columns before the digest, and the one after it if it holds anything.
    """
    hasher = _BEGUN_ATTEMPT.copy()
    hasher.update(orjson.dumps((values[0], values[1].hex(), *values[2:])))
    return hasher.digest()


def storable(text: str) -> str:
    """Return `text` as UTF-8 can hold it; a lone surrogate becomes its escape."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def decoded(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row whose text is bytes as it was when its digest was made.

    Raises:
        UnicodeDecodeError: Text is none.
    """
    values: list[Any] = []
    for name, value in zip(TABLES[table], row, strict=True):
        if isinstance(value, bytes) and name not in _BYTES_COLUMNS:
            values.append(value.decode())
        elif isinstance(value, int) and name in _REAL_COLUMNS:
            values.append(float(value))
        else:
            values.append(value)
    return tuple(values)


def as_result(row: tuple[Any, ...]) -> ResultRow:
    """Return a row of `results` whose text is bytes."""
    return ResultRow(*decoded("results", row))


def is_intact(table: str, row: tuple[Any, ...]) -> bool:
    """Return whether a row, whose text is bytes, has the digest of its content."""
    try:
        if table == "results":
            return as_result(row).intact()
        *values, digest = decoded(table, row)
        if table == "attempts":
            # What was added to the table later stands behind the digest.
            more, digest = digest, values.pop()
            values += [] if more is None else [more]
        # The number counts where other rows name it; elsewhere it is only the order.
        counted = values if table in {"runs", "run_states"} else values[1:]
        return bool(digest == row_digest(table, tuple(counted)))
    except (TypeError, ValueError, AttributeError, struct.error):
        return False
