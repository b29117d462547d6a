"""What a run does to its journal, one call after the other: claim, write, commit, close.

No threads and no asyncio here; the writer's thread owns a `Store` and nothing else touches it.
Rows are held until `commit`, which writes them in one transaction with the run's counts.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.journal._batches import open_batches
from scaleinfer.journal._chain import (
    ANSWERED,
    FAILED,
    TAKEN_UP,
    Chain,
    pack_entries,
    pack_states,
)
from scaleinfer.journal._format import (
    BATCHES_SCHEMA,
    PAGE_SIZE,
    TABLES,
    Manifest,
    ResultRow,
    Tally,
    attempt_digest,
    place_checksum,
    result_digest,
    row_digest,
    storable,
)
from scaleinfer.journal._outstanding import Outstanding
from scaleinfer.journal._redaction import redact, redact_data

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from scaleinfer.journal._batches import BatchEvent, OpenBatch
    from scaleinfer.results import Attempt

__all__ = ["RESULT_COLUMNS", "Claim", "Store", "insert_many"]

_CHUNK = 64
"""Rows of one statement. Python gives up its interpreter lock at every step of SQLite, so one
statement for many rows keeps the writer from queueing behind a busy event loop row by row."""

_SMALL_ROW = 256
"""Bytes of the log that a row without index and payload takes, roughly."""

_CURSORS = 1 << 16
"""Identities whose next occurrence is remembered, at most."""

_MANY = 8
"""Occurrences from which on remembering pays."""

RESULT_COLUMNS = (
    "id, identity, occurrence, run, idx, ok, key, question, CAST(payload AS BLOB), digest, place"
)

_UPSERT = (
    " ON CONFLICT (identity, occurrence) DO UPDATE SET run=excluded.run, idx=excluded.idx,"
    " ok=excluded.ok, key=excluded.key, question=excluded.question, payload=excluded.payload,"
    " digest=excluded.digest, place=excluded.place"
)


@dataclass(slots=True)
class Claim:
    """One item's (or question's) hold on its row.

    Attributes:
        identity: 16 bytes: hash of the user's key, if any, and the rendered request.
        occurrence: 0 for the first item of this identity in the run, then 1, 2, ...
        key: The item's key.
        question: Name of the question if an item asks several.
        index: The item's position in the input.
        stored: The payload if the journal holds an answer already.
        label: What a policy calls the item; kept with its calls.
        row: Number of its row, if it is known to have one.
    """

    identity: bytes
    occurrence: int
    key: str
    question: str
    index: int
    stored: bytes | None
    label: str = ""
    row: int = 0


@dataclass(slots=True)
class Store:
    """The tables of an open journal, as one run uses them.

    Attributes:
        connection: Opened by `connect_writer`.
        run: This run's number.
        tally: What the run has recorded.
        open_batches: Batches that earlier runs left at a server.
        spent: What the run has used so far, or may have by the next such word.
        spent_before: What earlier runs have used.
        log_bytes: Roughly what went into the write-ahead log since it was last emptied; a row
            changes about one page of the index and its share of the table.
    """

    connection: sqlite3.Connection
    run: int
    tally: Tally
    log_bytes: int = 0
    open_batches: tuple[OpenBatch, ...] = ()
    spent: dict[str, int] = field(default_factory=dict)
    spent_before: dict[str, int] = field(default_factory=dict)
    _written_spent: dict[str, int] = field(default_factory=dict)
    _outstanding: Outstanding = field(default_factory=Outstanding)
    _cursors: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    _results: list[tuple[Any, ...]] = field(default_factory=list)
    _attempts: list[tuple[Any, ...]] = field(default_factory=list)
    _places: list[tuple[Any, ...]] = field(default_factory=list)
    _unrendered: list[tuple[Any, ...]] = field(default_factory=list)
    _batches: list[tuple[Any, ...]] = field(default_factory=list)
    _settled: list[tuple[bytes, int]] = field(default_factory=list)
    _recorded: list[Claim] = field(default_factory=list)
    _chain: Chain = field(init=False)

    def __post_init__(self) -> None:
        self._chain = Chain(self.connection)

    @property
    def head(self) -> bytes:
        """Digest of the journal's last commit."""
        return self._chain.head

    @classmethod
    def begin(cls, connection: sqlite3.Connection, manifest: Manifest) -> Store:
        """Start a run: its row is on disk when this returns."""
        rows = _highest(connection, "results")
        run = _highest(connection, "runs") + 1
        data = orjson.dumps(
            redact_data(manifest.data), default=str, option=orjson.OPT_NON_STR_KEYS
        ).decode()
        name = None if manifest.name is None else redact(manifest.name)
        now = time.time()
        values = (run, name, now, manifest.fingerprint, data)
        store = cls(connection, run, Tally(rows=rows))
        connection.execute("BEGIN IMMEDIATE")
        killed = connection.execute("SELECT run FROM run_states WHERE state = 'running'").fetchall()
        states = [(other, _mark_killed(connection, other)) for (other,) in killed]
        digest = row_digest("runs", values)
        insert_many(connection, "runs", [(*values, digest)])
        states.append((run, store.save_state("running", None, {})))
        store._chain.append(
            connection, run, now, added=[[digest], [], [], []], states=pack_states(states)
        )
        store.open_batches = open_batches(connection)
        store.spent_before = _spent_before(connection, run)
        connection.execute("COMMIT")
        return store

    @property
    def outstanding(self) -> int:
        """Claims that are neither written nor released."""
        return len(self._outstanding)

    @property
    def owes(self) -> bool:
        """True if there is a new word on what was spent that is not on disk."""
        return self.spent != self._written_spent

    @property
    def pending(self) -> int:
        """Rows that wait for the next commit."""
        return (
            len(self._results) + len(self._attempts) + len(self._places) + len(self._unrendered)
            + len(self._batches)
        )  # fmt: skip

    def claim(self, claims: Sequence[Claim]) -> None:
        """Give each claim its occurrence and, if there is one, the stored answer."""
        known = self._known({claim.identity for claim in claims})
        for claim in claims:
            if claim.identity in known or self._outstanding.has(claim.identity):
                self._claim_known(claim)
            else:
                claim.occurrence = 0
            self._outstanding.add(claim.identity, claim.occurrence)

    def hold(self, identities: Iterable[bytes]) -> None:
        """Note the first occurrence of each identity as claimed; none of them has a row."""
        self._outstanding.add_first(identities)

    def _known(self, identities: set[bytes]) -> set[bytes]:
        """Return those of the identities that have rows."""
        found: set[bytes] = set()
        wanted = list(identities)
        for start in range(0, len(wanted), _CHUNK):
            some = wanted[start : start + _CHUNK]
            # Few statement sizes, so that SQLite's compiled statements are used again.
            some += some[-1:] * (_power_of_two(len(some)) - len(some))
            marks = ",".join("?" * len(some))
            query = f"SELECT DISTINCT identity FROM results WHERE identity IN ({marks})"
            found.update(row[0] for row in self.connection.execute(query, some))
        return found

    def _claim_known(self, claim: Claim) -> None:
        """Find the smallest occurrence that this run has not claimed."""
        identity, taken = claim.identity, self._outstanding
        candidate = self._cursors.get(claim.identity, 0)
        rows = self.connection.execute(
            "SELECT occurrence, id, ok, run FROM results WHERE identity = ? AND occurrence >= ?"
            " ORDER BY occurrence",
            (claim.identity, candidate),
        )
        stored = None
        for occurrence, number, ok, run in rows:
            while candidate < occurrence and (identity, candidate) in taken:
                candidate += 1
            if candidate < occurrence:
                break
            if run != self.run and (identity, occurrence) not in taken:
                stored = number if ok else None
                claim.row = number
                break
            candidate = occurrence + 1
        rows.close()
        while (identity, candidate) in taken:
            candidate += 1
        claim.occurrence = candidate
        if stored is not None:
            self._take_up(claim, stored)
        if candidate >= _MANY:
            self._cursors[claim.identity] = candidate + 1
            self._cursors.move_to_end(claim.identity)
            if len(self._cursors) > _CURSORS:
                self._cursors.popitem(last=False)

    def _take_up(self, claim: Claim, number: int) -> None:
        """Hand out a stored answer and note that this run has it; a damaged one is not used."""
        row = ResultRow(
            *self.connection.execute(
                f"SELECT {RESULT_COLUMNS} FROM results WHERE id = ?", (number,)
            ).fetchone()
        )
        if not row.intact():
            return
        claim.stored = row.payload
        digest = row.digest
        if (claim.key, claim.question) != (row.key, row.question):
            digest = result_digest(
                claim.identity,
                claim.occurrence,
                ok=1,
                key=claim.key,
                question=claim.question,
                payload=row.payload,
            )
        place = place_checksum(claim.identity, claim.occurrence, self.run, claim.index)
        self._places.append(
            (self.run, claim.index, claim.key, claim.question, digest, place, number)
        )
        self._settled.append((claim.identity, claim.occurrence))
        self.tally.reused += 1

    def record(self, claim: Claim, payload: bytes, *, ok: bool) -> None:
        """Hold an answer or a failure for the next commit."""
        identity, occurrence, index, run = claim.identity, claim.occurrence, claim.index, self.run
        key, question = claim.key, claim.question
        digest = result_digest(
            identity, occurrence, ok=ok, key=key, question=question, payload=payload
        )
        self._results.append(
            (identity, occurrence, run, index, int(ok), key, question, payload, digest,
             place_checksum(identity, occurrence, run, index))
        )  # fmt: skip
        self._recorded.append(claim)
        if ok:
            self.tally.ok += 1
        else:
            self.tally.failed += 1

    def attempt(self, claim: Claim, attempt: Attempt) -> None:
        """Hold a call for the next commit."""
        values = (
            self.run, claim.identity, claim.occurrence, attempt.number,
            _clean_endpoint(attempt.endpoint), float(attempt.started), float(attempt.latency_s),
            attempt.status, attempt.http_status, attempt.prompt_tokens,
            attempt.completion_tokens, redact(storable(attempt.error)),
        )  # fmt: skip
        more = _further(attempt, claim.label)
        digest = attempt_digest(values if more is None else (*values, more))
        self._attempts.append((*values, digest, more))
        self.tally.attempts += 1

    def unrendered(self, index: int, key: str, error: dict[str, Any]) -> None:
        """Hold an item that has no prompt for the next commit."""
        text = orjson.dumps(redact_data(error), default=str).decode()
        values = (self.run, index, key, text)
        self._unrendered.append((*values, row_digest("unrendered", values)))
        self.tally.unrendered += 1

    def note_batch(self, event: BatchEvent) -> None:
        """Hold what happened to a batch for the next commit."""
        values = (
            self.run, storable(event.token), event.event, storable(event.batch),
            _clean_endpoint(event.endpoint), float(event.noted), event.members,
        )  # fmt: skip
        self._batches.append((*values, row_digest("batches", values)))

    def release(self, claim: Claim) -> None:
        """Give a claim back; the next of its identity gets its occurrence."""
        if claim.stored is None and self._outstanding.remove(claim.identity, claim.occurrence):
            cursor = self._cursors.get(claim.identity)
            if cursor is not None:
                self._cursors[claim.identity] = min(cursor, claim.occurrence)

    def commit(self, state: str = "running", counts: dict[str, Any] | None = None) -> int:
        """Write what is held, durably, and return how many rows that were.

        Args:
            state: The run's state from now on; any but `running` ends it.
            counts: What the caller counted, kept with an ended run.
        """
        written = self.pending
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        if self._places:
            # Before the results: one that was taken up may have been asked again since.
            connection.executemany(
                "UPDATE results SET run=?, idx=?, key=?, question=?, digest=?, place=? WHERE id=?",
                self._places,
            )
        insert_many(connection, "results", self._results, tail=_UPSERT)
        insert_many(connection, "attempts", self._attempts)
        insert_many(connection, "unrendered", self._unrendered)
        if self._batches:
            connection.execute(BATCHES_SCHEMA)
            insert_many(connection, "batches", self._batches)
        before, self.tally.rows = self.tally.rows, _highest(connection, "results")
        entries = self._entries(before)
        spent = self.spent
        now = time.time()
        saved = self.save_state(state, None if state == "running" else now, spent | (counts or {}))
        self._chain.append(
            connection,
            self.run,
            now,
            added=[
                [],
                [row[12] for row in self._attempts],
                [row[-1] for row in self._unrendered],
                [row[-1] for row in self._batches],
            ],
            results=entries,
            states=pack_states([(self.run, saved)]),
        )
        connection.execute("COMMIT")
        self._written_spent = spent
        self._note_written()
        for held in (
            self._results, self._attempts, self._places, self._unrendered, self._batches,
            self._settled, self._recorded,
        ):  # fmt: skip
            held.clear()
        return written

    def _entries(self, before: int) -> bytes:
        """Return what the chain is to know of the results that are being written.

        Args:
            before: The highest row number before they were.
        """
        last = before
        for claim in self._recorded:
            if not claim.row:
                # SQLite numbers new rows one by one, in the order of the statement.
                last += 1
                claim.row = last
        if last != self.tally.rows:
            # A row was recorded through two claims.
            for claim in self._recorded:
                claim.row = self._number_of(claim)
        taken = [(row[6], row[1], TAKEN_UP, row[4]) for row in self._places]
        recorded = [
            (claim.row, row[3], ANSWERED if row[4] else FAILED, row[8])
            for claim, row in zip(self._recorded, self._results, strict=True)
        ]
        return pack_entries(taken + recorded)

    def _number_of(self, claim: Claim) -> int:
        found = self.connection.execute(
            "SELECT id FROM results WHERE identity = ? AND occurrence = ?",
            (claim.identity, claim.occurrence),
        ).fetchone()
        return int(found[0])

    def _note_written(self) -> None:
        """Count what went into the log and take what is on disk from the claims that are out."""
        results, places, out = self._results, self._places, self._outstanding
        sizes = sum(len(row[7]) for row in results) + sum(len(row[6]) for row in self._batches)
        small = len(self._attempts) + len(self._unrendered) + len(self._batches)
        changed = len(results) + len(places)
        self.log_bytes += changed * PAGE_SIZE + sizes + small * _SMALL_ROW
        out.remove_first([row[0] for row in results if row[1] == 0])
        for row in results:
            if row[1]:
                out.remove(row[0], row[1])
        for identity, occurrence in self._settled:
            out.remove(identity, occurrence)

    def save_state(self, state: str, ended: float | None, counts: dict[str, Any]) -> bytes:
        """Write the run's state and counts into the open transaction; return their digest."""
        tally = self.tally
        values = (
            self.run, state, ended, orjson.dumps(counts).decode(), tally.ok, tally.failed,
            tally.reused, tally.unrendered, tally.attempts, tally.rows,
        )  # fmt: skip
        return _put_state(self.connection, values)


def insert_many(
    connection: sqlite3.Connection,
    table: str,
    rows: Sequence[tuple[Any, ...]],
    *,
    tail: str = "",
) -> None:
    """Insert rows with as few statements as SQLite's limits allow.

    Args:
        connection: Inside a transaction.
        table: One of `TABLES`.
        rows: The columns in order; the row's number may be left out.
        tail: What follows the values, such as `ON CONFLICT`.
    """
    if not rows:
        return
    start = 0
    while start < len(rows):
        # Powers of two: few statement sizes, so that compiled statements are used again.
        size = min(_CHUNK, 1 << (len(rows) - start).bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + size]))
        connection.execute(_insertion(table, len(rows[0]), size, tail), values)
        start += size


@cache
def _insertion(table: str, width: int, size: int, tail: str) -> str:
    """Return the statement that inserts `size` rows of the last `width` columns."""
    columns = TABLES[table][-width:]
    marks = ["CAST(? AS TEXT)" if name == "payload" else "?" for name in columns]
    one = f"({','.join(marks)})"
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES {','.join([one] * size)}{tail}"


@lru_cache(maxsize=4096)
def _clean_endpoint(endpoint: str) -> str:
    return redact(storable(endpoint))


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def _highest(connection: sqlite3.Connection, table: str) -> int:
    """Return the highest row number. Rows are never deleted, so it is their count too."""
    return int(connection.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0])


def _put_state(connection: sqlite3.Connection, values: tuple[Any, ...]) -> bytes:
    columns, digest = TABLES["run_states"], row_digest("run_states", values)
    connection.execute(
        f"INSERT OR REPLACE INTO run_states ({','.join(columns)})"
        f" VALUES ({','.join('?' * len(columns))})",
        (*values, digest),
    )
    return digest


def _further(attempt: Attempt, label: str) -> str | None:
    """Return what else there is to know of a call, as JSON; `None` if that is nothing."""
    model = attempt.model
    more = (
        attempt.cached_tokens, attempt.reasoning_tokens, None if model is None else storable(model),
        attempt.cost_usd, storable(label),
    )  # fmt: skip
    return None if more == _NOTHING_FURTHER else orjson.dumps(more).decode()


_NOTHING_FURTHER = (0, 0, None, None, "")


def _spent_before(connection: sqlite3.Connection, run: int) -> dict[str, int]:
    """Return what the runs before this one have used; see `Journal.note_spent`.

    Of a run that was killed without a word on it, only its calls and their tokens are known.
    """
    total: dict[str, int] = {}
    silent: list[int] = []
    rows = connection.execute("SELECT run, counts FROM run_states WHERE run < ?", (run,)).fetchall()
    for earlier, counts in rows:
        spent = {n: c for n, c in orjson.loads(counts or "{}").items() if n.startswith("spent_")}
        if not spent:
            silent.append(earlier)
        for name, count in spent.items():
            total[name] = total.get(name, 0) + count
    for earlier in silent:
        calls, tokens = connection.execute(
            "SELECT count(*), coalesce(sum(prompt_tokens + completion_tokens), 0) FROM attempts"
            " WHERE run = ?",
            (earlier,),
        ).fetchone()
        total["spent_requests"] = total.get("spent_requests", 0) + calls
        total["spent_tokens"] = total.get("spent_tokens", 0) + tokens
        total["unpriced_tokens"] = total.get("unpriced_tokens", 0) + tokens
    return total


def _mark_killed(connection: sqlite3.Connection, run: int) -> bytes:
    columns = TABLES["run_states"][:-1]
    row = connection.execute(
        f"SELECT {','.join(columns)} FROM run_states WHERE run = ?", (run,)
    ).fetchone()
    return _put_state(connection, (run, "killed", *row[2:]))
