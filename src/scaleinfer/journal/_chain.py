"""A hash chain over a journal's commits: each link covers what its commit wrote and the last link.

A row's own digest tells that the row is one that was written. The chain tells that it is the one
that was written there: a row that was removed, put in another place, taken from another journal
or set back to an earlier state belongs to no link. Rows that are only ever added (runs, attempts,
items without a prompt, batches) are covered by their number and the hash of their digests. Results
and the runs' states change, so a link names each one that its commit wrote, with its digest; the
last that names a row says what must be there.

Whoever can write the file can also make a chain anew. The digest of the last link, kept elsewhere,
shows that nobody has: it must be among the links.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "ADDED", "ANSWERED", "CHAIN_SCHEMA", "FAILED", "TAKEN_UP", "Chain", "Entry", "Link", "adopt",
    "hash_rows", "pack_entries", "pack_states", "read_links", "unpack_entries", "unpack_states",
]  # fmt: skip

CHAIN_SCHEMA = (
    "CREATE TABLE chain (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, noted REAL NOT NULL,"
    " runs INTEGER NOT NULL, attempts INTEGER NOT NULL, unrendered INTEGER NOT NULL,"
    " batches INTEGER NOT NULL, added BLOB NOT NULL, results BLOB NOT NULL, states BLOB NOT NULL,"
    " digest BLOB NOT NULL)"
)

ADDED = ("runs", "attempts", "unrendered", "batches")
"""Tables whose rows are only ever added, in the order in which a link covers them."""

FAILED, ANSWERED, TAKEN_UP = 0, 1, 2
"""What a run did to a result: recorded a failure or an answer, or took an earlier one up."""

_START = bytes(16)
_ENTRY = struct.Struct("<IqB16s")
_STATE = struct.Struct("<I8s")
_HEAD = struct.Struct("<QqdQQQQ")
_COLUMNS = "id, run, noted, runs, attempts, unrendered, batches, added, results, states, digest"


class Entry(NamedTuple):
    """One result that a commit wrote."""

    number: int
    """Of the row."""
    place: int
    """The item's position in the input of the run."""
    kind: int
    """`FAILED`, `ANSWERED` or `TAKEN_UP`."""
    digest: bytes
    """The row's, of its content."""


class Link(NamedTuple):
    """One commit; the columns in order."""

    id: int
    run: int
    noted: float
    """Unix time; 0 if it covers rows that were there before there was a chain."""
    runs: int
    """Runs that there are after it; likewise the next three."""
    attempts: int
    unrendered: int
    batches: int
    added: bytes
    """Hash of the digests of the rows that were added."""
    results: bytes
    """From `pack_entries`."""
    states: bytes
    """From `pack_states`."""
    digest: bytes

    def digest_after(self, before: bytes) -> bytes:
        """Return the digest that this link must have after one with the digest `before`."""
        hasher = blake2b(before, digest_size=16, person=b"link")
        numbers = self.id, self.run, self.noted, *self[3:7]
        hasher.update(_HEAD.pack(*numbers) + self.added)
        hasher.update(struct.pack("<QQ", len(self.results), len(self.states)))
        hasher.update(self.results)
        hasher.update(self.states)
        return hasher.digest()


def pack_entries(entries: Iterable[tuple[int, int, int, bytes]]) -> bytes:
    """Return entries as a link keeps them, 29 bytes each."""
    pack = _ENTRY.pack
    return b"".join([pack(*entry) for entry in entries])


def unpack_entries(data: bytes) -> Iterator[Entry]:
    """Yield what `pack_entries` packed."""
    return map(Entry._make, _ENTRY.iter_unpack(data))


def pack_states(states: Iterable[tuple[int, bytes]]) -> bytes:
    """Return runs and the digests of their states as a link keeps them."""
    return b"".join(_STATE.pack(*state) for state in states)


def unpack_states(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what `pack_states` packed."""
    return _STATE.iter_unpack(data)


def hash_rows(digests: Sequence[Sequence[bytes]]) -> bytes:
    """Return 16 bytes over the digests of the rows that were added, a list for each table."""
    hasher = blake2b(digest_size=16, person=b"added")
    for rows in digests:
        hasher.update(len(rows).to_bytes(8, "little"))
        hasher.update(b"".join(rows))
    return hasher.digest()


class Chain:
    """The end of a journal's chain, for its one writer.

    Attributes:
        head: Digest of the last link; zeros if there is none.
        links: Links that there are.
        counts: Rows of each table of `ADDED` that are covered.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM chain ORDER BY id DESC LIMIT 1"
        ).fetchone()
        last = None if row is None else Link(*row)
        self.head = _START if last is None else last.digest
        self.links = 0 if last is None else last.id
        self.counts = [0] * len(ADDED) if last is None else list(last[3:7])

    def append(
        self,
        connection: sqlite3.Connection,
        run: int,
        noted: float,
        *,
        added: Sequence[Sequence[bytes]],
        results: bytes = b"",
        states: bytes = b"",
    ) -> None:
        """Write a link into the open transaction.

        Args:
            connection: Inside a transaction.
            run: The run that commits.
            noted: Unix time.
            added: Digests of the rows that were added to each table of `ADDED`, in order.
            results: From `pack_entries`.
            states: From `pack_states`.
        """
        counts = [count + len(rows) for count, rows in zip(self.counts, added, strict=True)]
        runs, attempts, unrendered, batches = counts
        link = Link(
            self.links + 1, run, noted, runs, attempts, unrendered, batches, hash_rows(added),
            results, states, b"",
        )  # fmt: skip
        link = link._replace(digest=link.digest_after(self.head))
        connection.execute(f"INSERT INTO chain VALUES ({','.join('?' * len(link))})", link)
        self.head, self.links, self.counts = link.digest, link.id, counts


def read_links(connection: sqlite3.Connection, run: int | None = None) -> Iterator[Link]:
    """Yield the links, oldest first; only those of one run if it is named."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM chain WHERE ?1 IS NULL OR run = ?1 ORDER BY id", (run,)
    )
    return map(Link._make, rows)


def adopt(connection: sqlite3.Connection) -> None:
    """Begin the chain of a journal that has rows already, inside a transaction."""
    connection.execute("DROP TABLE IF EXISTS chain")
    connection.execute(CHAIN_SCHEMA)
    chain = Chain(connection)
    nothing: list[list[bytes]] = [[] for _ in ADDED]
    runs = connection.execute("SELECT DISTINCT run FROM results ORDER BY run").fetchall()
    for (run,) in runs:
        rows = connection.execute(
            "SELECT id, idx, ok, digest FROM results WHERE run = ? ORDER BY id", (run,)
        )
        chain.append(connection, run, 0.0, added=nothing, results=pack_entries(rows))
    added = [_digests(connection, table) for table in ADDED]
    states: Any = connection.execute("SELECT run, digest FROM run_states ORDER BY run")
    if any(added):
        chain.append(connection, 0, 0.0, added=added, states=pack_states(states))


def _digests(connection: sqlite3.Connection, table: str) -> list[bytes]:
    known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
    if not connection.execute(known, (table,)).fetchone()[0]:
        return []
    return [row[0] for row in connection.execute(f"SELECT digest FROM {table} ORDER BY id")]
