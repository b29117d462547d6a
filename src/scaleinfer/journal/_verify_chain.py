"""Checking a journal's chain: every link, what it covers, and that every item is accounted for."""

from __future__ import annotations

import sqlite3
import struct
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.journal._batches import has_batches
from scaleinfer.journal._chain import (
    ADDED,
    ANSWERED,
    FAILED,
    TAKEN_UP,
    hash_rows,
    read_links,
    unpack_entries,
    unpack_states,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scaleinfer.journal._chain import Link

__all__ = ["Account", "ChainCheck", "check_chain"]

_DIGEST = 16
_COUNTED = ("answers", "failures", "answers taken up", "items without a prompt", "calls")
_UNREADABLE = (struct.error, TypeError, ValueError, OverflowError)


@dataclass(slots=True)
class Account:
    """What one run did, by the chain's links and by its own count.

    Attributes:
        run: The run.
        state: As it ended; `running` if it was killed and nobody came after it.
        items: Items that it finished, by its own count; `None` if it was killed.
        ok: Those with an answer, by its own count.
        failed: Those without.
        not_asked: Items that it left, by its own count.
        recorded: Results that it recorded or took up.
        missing: Items that it says it finished and of which there is no trace.
    """

    run: int
    state: str
    items: int | None = None
    ok: int = 0
    failed: int = 0
    not_asked: int = 0
    recorded: int = 0
    missing: int = 0


@dataclass(slots=True)
class _Run:
    """What the links say of one run."""

    kinds: list[int] = field(default_factory=lambda: [0, 0, 0])
    attempts: int = 0
    unrendered: int = 0
    indices: bytearray = field(default_factory=bytearray)

    def see(self, index: int) -> None:
        """Note an item by its position."""
        byte = index >> 3
        if byte >= len(self.indices):
            self.indices.extend(bytes(byte + 1 - len(self.indices) + len(self.indices) // 2))
        self.indices[byte] |= 1 << (index & 7)

    @property
    def seen(self) -> int:
        """Return how many items were noted."""
        return int.from_bytes(self.indices, "little").bit_count()


@dataclass(slots=True)
class ChainCheck:
    """What the chain says.

    Attributes:
        links: Links that are intact.
        head: Digest of the last, as hexadecimal digits.
        accounts: What each run did.
    """

    links: int = 0
    head: str = ""
    accounts: list[Account] = field(default_factory=list)


def check_chain(
    connection: sqlite3.Connection, note: Callable[[str], None], *, head: str | None = None
) -> ChainCheck:
    """Follow the chain from its first link to its last and compare it with the tables.

    Args:
        connection: Gives text as bytes.
        note: Told of everything that is wrong.
        head: Digest of a link that must be there, as hexadecimal digits.
    """
    try:
        return _Walk(connection, note, head).result()
    except (sqlite3.DatabaseError, *_UNREADABLE) as error:
        note(f"the chain cannot be compared to its end: {error}")
        return ChainCheck()


class _Walk:
    """One walk along a chain."""

    def __init__(
        self, connection: sqlite3.Connection, note: Callable[[str], None], head: str | None
    ) -> None:
        self._connection = connection
        self._note = note
        self._wanted = head
        self._check = ChainCheck()
        self._counts = [0] * len(ADDED)
        self._rows = [self._digests(table) for table in ADDED]
        # Of each result the last link that names it: run, index, digest.
        self._run_of = array("q")
        self._index_of = array("q")
        self._digest_of = bytearray()
        self._states: dict[int, bytes] = {}
        self._runs: dict[int, _Run] = defaultdict(_Run)
        self._adopted = 0
        self._highest: int = connection.execute(
            "SELECT max((SELECT coalesce(max(id), 0) FROM results),"
            " (SELECT coalesce(max(rows), 0) FROM run_states))"
        ).fetchone()[0]

    def result(self) -> ChainCheck:
        before, found, number = bytes(16), self._wanted is None, 0
        for number, link in enumerate(read_links(self._connection), 1):
            try:
                whole = link.id == number and link.digest == link.digest_after(before)
                if whole:
                    self._check.links += 1
                else:
                    self._note(f"link {number} of the chain is not what was written")
                self._follow(link, whole=whole)
            except _UNREADABLE as error:
                self._note(f"link {number} of the chain cannot be read: {error}")
            before = link.digest if isinstance(link.digest, bytes) else b""
            found = found or before.hex() == self._wanted
        self._check.head = before.hex()
        if not found:
            self._note(
                f"the chain has no link {self._wanted}: the journal was written anew, cut, or is "
                "another one"
            )
        for table, rows in zip(ADDED, self._rows, strict=True):
            more = sum(1 for _ in rows)
            if more:
                self._note(f"{more} rows of {table} belong to no link of the chain")
        self._compare_results()
        self._compare_states()
        self._account()
        return self._check

    def _digests(self, table: str) -> Iterator[tuple[int, int, bytes, int]]:
        """Yield number, run and digest of a table's rows, in order."""
        if table == "batches" and not has_batches(self._connection):
            return iter(())
        run = "id" if table == "runs" else "run"
        index = "idx" if table == "unrendered" else "0"
        return iter(
            self._connection.execute(f"SELECT id, {run}, digest, {index} FROM {table} ORDER BY id")
        )

    def _follow(self, link: Link, *, whole: bool) -> None:
        """Take what a link says, and compare the rows that it says were added.

        Of a link that is not whole only what keeps other rows from being taken for strangers.
        """
        adopted = not link.noted
        added = []
        for place, (table, covered) in enumerate(zip(ADDED, link[3:7], strict=True)):
            taken = list(islice(self._rows[place], max(0, covered - self._counts[place])))
            added.append([row[2] for row in taken])
            self._counts[place] = max(covered, self._counts[place])
            if not adopted:
                self._tally(table, taken)
        if hash_rows(added) != link.added:
            self._note(f"link {link.id} of the chain: {_ranges(link, added)} are not as recorded")
        if adopted:
            self._adopted = max(self._adopted, link.runs, link.run)
        run = self._runs[link.run]
        for entry in unpack_entries(link.results):
            if not 0 < entry.number <= self._highest:
                self._note(f"link {link.id} of the chain names results row {entry.number}")
                continue
            self._keep(link.run, entry.number, entry.place, entry.digest)
            if whole and not adopted:
                run.kinds[min(entry.kind, TAKEN_UP)] += 1
                run.see(entry.place)
        self._states.update(unpack_states(link.states))

    def _tally(self, table: str, rows: list[Any]) -> None:
        for _, run, _, index in rows:
            if table == "attempts":
                self._runs[run].attempts += 1
            elif table == "unrendered":
                self._runs[run].unrendered += 1
                self._runs[run].see(index)

    def _keep(self, run: int, number: int, index: int, digest: bytes) -> None:
        more = number - len(self._run_of)
        if more > 0:
            self._run_of.extend([-1] * more)
            self._index_of.extend([0] * more)
            self._digest_of.extend(bytes(more * _DIGEST))
        at = number - 1
        self._run_of[at], self._index_of[at] = run, index
        self._digest_of[at * _DIGEST : number * _DIGEST] = digest

    def _compare_results(self) -> None:
        known = len(self._run_of)
        there = bytearray(known)
        rows = self._connection.execute("SELECT id, run, idx, digest, key FROM results ORDER BY id")
        for number, run, index, digest, key in rows:
            at = number - 1
            if not 0 <= at < known or self._run_of[at] < 0:
                self._note(f"results row {number} ({_key(key)}) belongs to no link of the chain")
                continue
            there[at] = 1
            last = bytes(self._digest_of[at * _DIGEST : number * _DIGEST])
            if digest != last:
                self._note(f"results row {number} ({_key(key)}) is not the one recorded last")
            elif (run, index) != (self._run_of[at], self._index_of[at]):
                self._note(
                    f"results row {number} ({_key(key)}) was run {self._run_of[at]}'s at index "
                    f"{self._index_of[at]}, not run {run}'s at {index}"
                )
        for at in range(known):
            if not there[at] and self._run_of[at] >= 0:
                self._note(f"results row {at + 1} was recorded and is gone")

    def _compare_states(self) -> None:
        there: dict[int, bytes] = dict(
            self._connection.execute("SELECT run, digest FROM run_states").fetchall()
        )
        for run in sorted(there.keys() | self._states.keys()):
            if there.get(run) != self._states.get(run):
                self._note(f"the state of run {run} is not the one recorded last")

    def _account(self) -> None:
        """Compare what each run counted with what the links say of it."""
        rows = self._connection.execute(
            "SELECT s.run, s.state, s.counts, s.ok, s.failed, s.reused, s.unrendered, s.attempts,"
            " r.data FROM run_states s LEFT JOIN runs r ON r.id = s.run ORDER BY s.run"
        )
        for number, state, counts, *tallies, data in rows:
            if number <= self._adopted:
                continue  # it was before there was a chain
            run = self._runs[number]
            kinds = run.kinds
            linked = [
                kinds[ANSWERED], kinds[FAILED], kinds[TAKEN_UP], run.unrendered, run.attempts
            ]  # fmt: skip
            if tallies != linked:
                told = ", ".join(
                    f"{there} of {counted} {name}"
                    for name, there, counted in zip(_COUNTED, linked, tallies, strict=True)
                    if there != counted
                )
                self._note(f"run {number}: {told} are there")
            account = Account(number, _text(state), recorded=sum(kinds))
            self._check.accounts.append(account)
            self._account_items(account, run, _data(counts), _data(data))

    def _account_items(
        self, account: Account, run: _Run, counts: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        if not all(isinstance(counts.get(name), int) for name in ("items", "ok", "failed")):
            return  # it was killed, or whoever wrote it did not count items
        items: int = counts["items"]
        account.ok, account.failed = counts["ok"], counts["failed"]
        account.items = items
        account.not_asked = counts.get("not_asked", 0)
        if items != account.ok + account.failed:
            self._note(
                f"run {account.run}: {items} items, of which {account.ok} have an answer and "
                f"{account.failed} have none"
            )
        if facts.get("kind") == "program":
            return  # what its items asked is their own affair, and may be nothing
        account.missing = max(0, items - run.seen - counts.get("unrecorded", 0))
        if account.missing:
            self._note(f"run {account.run}: {account.missing} of {items} items left no trace")


def _ranges(link: Link, added: list[list[bytes]]) -> str:
    """Return in words which rows a link says were added."""
    told = [
        f"{table} {covered - len(rows) + 1} to {covered}"
        for table, rows, covered in zip(ADDED, added, link[3:7], strict=True)
        if rows
    ]
    return ", ".join(told) or "the rows that were added"


def _key(key: Any) -> str:
    return f"key {_text(key)!r}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _data(text: Any) -> dict[str, Any]:
    try:
        data = orjson.loads(text or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}
