"""What a journal knows of batches that a server works on: planned, submitted, closed.

Their table is made with the first batch, so that journals without batches are as they always were.
Rows are only ever added: a batch is open as long as no row closes it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import orjson

from scaleinfer.journal._format import TABLES, row_digest

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

__all__ = ["BatchEvent", "BatchMember", "OpenBatch", "has_batches", "open_batches", "pack_members"]


@dataclass(frozen=True, slots=True)
class BatchMember:
    """One row of a batch: enough to record its answer without the item.

    Attributes:
        identity: 16 bytes, as in a claim.
        occurrence: As in a claim.
        repairs: How often a bad answer had been shown to the model when the batch was planned.
        key: The item's key.
        question: Name of the question if the item asks several.
        index: The item's position in the input.
    """

    identity: bytes
    occurrence: int
    repairs: int
    key: str
    question: str
    index: int


class BatchEvent(NamedTuple):
    """Something that happened to a batch.

    `planned` is noted before a server is asked, with the members; `submitted` when it has
    answered, with its name for the batch; `closed` when every answer is recorded.
    """

    token: str
    """Our own name for the batch, unique everywhere; the server keeps it with the batch."""
    event: Literal["planned", "submitted", "closed"]
    batch: str
    """The server's name for it; empty if not known."""
    endpoint: str
    """Where it was submitted."""
    noted: float
    """Unix time, in seconds."""
    members: bytes
    """From `pack_members`; empty but for the first `planned`."""


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that an earlier run left at a server.

    Attributes:
        token: Our own name for it.
        batch: The server's; empty if the run ended before it was known.
        endpoint: Where it is.
        planned: Unix time at which it was noted, before the server was asked.
        members: Its rows.
    """

    token: str
    batch: str
    endpoint: str
    planned: float
    members: tuple[BatchMember, ...]


def pack_members(members: Sequence[BatchMember]) -> bytes:
    """Return a batch's rows as compressed JSON; a key that is the identity is left out."""
    rows = [
        (
            member.identity.hex(),
            member.occurrence,
            member.repairs,
            "" if member.key == member.identity.hex() else member.key,
            member.question,
            member.index,
        )
        for member in members
    ]
    return zlib.compress(orjson.dumps(rows), 1)


def unpack_members(data: bytes) -> tuple[BatchMember, ...]:
    """Return what `pack_members` packed."""
    return tuple(
        BatchMember(bytes.fromhex(identity), occurrence, repairs, key or identity, question, index)
        for identity, occurrence, repairs, key, question, index in orjson.loads(
            zlib.decompress(data)
        )
    )


def has_batches(connection: sqlite3.Connection) -> bool:
    """Return whether a journal has the table of batches."""
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'batches'"
    return bool(connection.execute(query).fetchone()[0])


def open_batches(connection: sqlite3.Connection) -> tuple[OpenBatch, ...]:
    """Return the batches that no row closes, oldest first; damaged rows are passed over."""
    if not has_batches(connection):
        return ()
    rows = connection.execute(
        f"SELECT {', '.join(TABLES['batches'][1:])} FROM batches WHERE token NOT IN"
        " (SELECT token FROM batches WHERE event = 'closed') ORDER BY id"
    )
    found: dict[str, OpenBatch] = {}
    for _, token, event, batch, endpoint, noted, members in _intact(rows):
        known = found.get(token)
        if known is None and members:
            found[token] = OpenBatch(token, batch, endpoint, noted, unpack_members(members))
        elif known is not None:
            planned = noted if event == "planned" else known.planned
            found[token] = OpenBatch(token, batch, endpoint, planned, known.members)
    return tuple(found.values())


def _intact(
    rows: Iterable[tuple[object, ...]],
) -> Iterable[tuple[int, str, str, str, str, float, bytes]]:
    for *values, digest in rows:
        if digest == row_digest("batches", tuple(values)):
            yield tuple(values)  # type: ignore[misc]  # the digest vouches for their types
