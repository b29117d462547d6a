"""The one thread that writes: takes what callers queued, answers claims, commits in groups."""

from __future__ import annotations

import asyncio
import copy
import ctypes
import math
import os
import sqlite3
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import JournalError
from scaleinfer.journal._database import translate
from scaleinfer.journal._inbox import Inbox
from scaleinfer.journal._lock import BEAT_S, STALE_S, Lock, locked_error, look
from scaleinfer.journal._pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.journal._inbox import Ask, Close, Record, Turn
    from scaleinfer.journal._store import Store

__all__ = ["JournalStatistics", "Writer"]

_LOG_BYTES = 16 << 20
"""Size from which on the log's pages are moved into the file."""


@dataclass(slots=True)
class JournalStatistics:
    """What the journal did and what it cost so far.

    Attributes:
        rows: Rows written.
        commits: Group commits.
        commit_s: Seconds spent in them.
        checkpoints: Times the log was moved into the file.
        checkpoint_s: Seconds spent on that.
        queued: Rows and questions that wait now.
        claims: Claims answered.
        claim_wait_s: Seconds callers waited for claims, summed.
        records: Records that were reported as done.
        record_wait_s: Seconds from `record` to `done`, summed.
    """

    rows: int = 0
    commits: int = 0
    commit_s: float = 0.0
    checkpoints: int = 0
    checkpoint_s: float = 0.0
    queued: int = 0
    claims: int = 0
    claim_wait_s: float = 0.0
    records: int = 0
    record_wait_s: float = 0.0


class Writer(threading.Thread):
    """Owns the `Store` of an open journal until it is closed.

    Attributes:
        inbox: What the event loop wants done.
        failure: Why nothing can be written any more.
        reported: True once somebody was told of `failure`.
        ended: Set when the file is closed and the lock is gone.
    """

    def __init__(self, path: str, store: Store, lock: Lock) -> None:
        super().__init__(name="scaleinfer-journal", daemon=True)
        self.path = path
        self.inbox = Inbox()
        self.statistics = JournalStatistics()
        self.failure: JournalError | None = None
        self.reported = False
        self.ended = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._store = store
        self._lock = lock
        self._pacing = Pacing()
        self._awaiting: list[Record] = []
        self._flushes: list[asyncio.Future[None]] = []
        self._beaten = time.monotonic()
        self._beaten_wall = time.time()
        _LIVE.add(self)

    @property
    def head(self) -> bytes:
        """Digest of the journal's last commit."""
        return self._store.head

    def run(self) -> None:
        """Serve the queue until a `Close` comes."""
        close: Close | None = None
        while close is None:
            turn = self._next_turn()
            close = turn.close
            self._awaiting += turn.records
            self._flushes += turn.flushes
            if self.failure is not None:
                self._refuse(turn.asks)
                continue
            try:
                self._serve(turn)
            except (sqlite3.Error, OSError, JournalError, MemoryError) as error:
                self._fail(error)
                self._refuse(turn.asks)
        try:
            self._finish(close)
        finally:
            self.ended.set()

    def _next_turn(self) -> Turn:
        """Wait for work or for the next commit or sign of life, then take all there is."""
        wait = None
        if self.failure is None:
            wait = max(min(self._due(), self._beaten + BEAT_S) - time.monotonic(), 0.0)
        if self._awaiting and wait:
            # A group is gathering, for a few milliseconds. Being woken for each of its rows
            # would cost the loop's thread more than the row itself.
            time.sleep(wait)
        elif wait is None or wait > 0:
            self.inbox.wait(wait)
        return self.inbox.take()

    def _due(self) -> float:
        if self._flushes:
            return -math.inf
        return self._pacing.due(
            time.monotonic(),
            rows=self._store.pending,
            awaited=len(self._awaiting),
            outstanding=self._store.outstanding,
        )

    def _serve(self, turn: Turn) -> None:
        store = self._store
        self._take_in(turn)
        if turn.asks:
            # Before the commit: nobody who wants to begin waits for the disk.
            store.claim([claim for claim, _, _ in turn.asks])
            asks, turn.asks = turn.asks, []
            self._post(self._settle_claims, asks, None)
        for claim, payload, ok, _, _ in turn.records:
            store.record(claim, payload, ok=ok)
        if store.pending:
            self._pacing.added(time.monotonic(), awaited=bool(turn.records))
        if self._due() <= time.monotonic():
            self._commit()
        if time.monotonic() - self._beaten >= BEAT_S:
            self._beat()

    def _take_in(self, turn: Turn) -> None:
        """Do what nobody waits for."""
        store = self._store
        if turn.spent is not None:
            store.spent = turn.spent
        store.hold(turn.holds)
        for claim, attempt in turn.attempts:
            store.attempt(claim, attempt)
        for index, key, error in turn.unrendered:
            store.unrendered(index, key, error)
        for event in turn.batches:
            store.note_batch(event)
        for claim in turn.releases:
            store.release(claim)

    def _commit(self, state: str = "running", counts: dict[str, Any] | None = None) -> None:
        """Bring everything at hand to disk, then tell those who wait, with one call."""
        self._check_ownership()
        began = time.monotonic()
        if self._store.pending or self._store.owes or state != "running":
            written = self._store.commit(state, counts)
            took = time.monotonic() - began
            self._pacing.committed(began + took, took, awaited=len(self._awaiting))
            self.statistics.rows += written
            self.statistics.commits += 1
            self.statistics.commit_s += took
        records, self._awaiting = self._awaiting, []
        flushes, self._flushes = self._flushes, []
        if records or flushes:
            self._post(self._settle_records, records, flushes, None)
        if self._store.log_bytes >= _LOG_BYTES:
            self._checkpoint()

    def _checkpoint(self) -> None:
        began = time.monotonic()
        self._store.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._store.log_bytes = 0
        self.statistics.checkpoints += 1
        self.statistics.checkpoint_s += time.monotonic() - began

    def _beat(self) -> None:
        """Give a sign of life; a full disk or a moment's trouble is no reason to stop."""
        self._beaten, self._beaten_wall = time.monotonic(), time.time()
        if not self._lock.owned():
            raise self._lost()
        try:
            self._lock.beat(self._store.run, self._store.tally.to_dict())
        except OSError:
            return

    def _check_ownership(self) -> None:
        """Before writing after a long pause, see whether somebody took us for dead.

        Both clocks, because the monotonic one stands still while a machine sleeps.
        """
        paused = max(time.monotonic() - self._beaten, time.time() - self._beaten_wall)
        if paused > STALE_S / 2:
            self._beat()

    def _lost(self) -> JournalError:
        seen = look(self.path)
        if seen is None:
            return JournalError(
                f"The lock file of the journal {self.path} was removed while it was open.",
                path=self.path,
                reason="locked",
                hint="Leave the -lock file alone; run again to go on.",
            )
        return locked_error(self.path, seen[0], seen[1])

    def _fail(self, error: Exception) -> None:
        """Remember what went wrong; the file is left as the last commit left it."""
        self.failure = translate(error, self.path)
        with suppress(sqlite3.Error):
            if self._store.connection.in_transaction:
                self._store.connection.execute("ROLLBACK")

    def _refuse(self, asks: list[Ask]) -> None:
        """Tell everyone who waits what went wrong."""
        records, self._awaiting = self._awaiting, []
        flushes, self._flushes = self._flushes, []
        if asks or records or flushes:
            self.reported = True
            self._post(self._settle_claims, asks, self.failure)
            self._post(self._settle_records, records, flushes, self.failure)

    def _finish(self, close: Close) -> None:
        """Commit the run's end, leave one file, remove the lock."""
        connection = self._store.connection
        if self.failure is None:
            try:
                self._commit(close.state, close.counts)
                # Back to a plain file: anything can read it, in a read-only folder too.
                connection.execute("PRAGMA journal_mode=DELETE").fetchall()
            except (sqlite3.Error, OSError, JournalError, MemoryError) as error:
                self._fail(error)
        if self._lock.owned():
            try:
                connection.close()
            except sqlite3.Error as error:
                self._fail(error)
        else:
            self.never_close()
        self._lock.release()
        self._refuse([])

    def never_close(self) -> None:
        """Keep the connection open for ever: closing would move our log over another's file.

        A reference that nobody gives back is the one way that holds while Python shuts down.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._store.connection))

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run something in the event loop; nobody is there any more if the loop is closed."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:
                if not self.loop.is_closed():
                    raise

    def _settle_claims(self, asks: list[Ask], error: JournalError | None) -> None:
        now = time.monotonic()
        self.statistics.claims += len(asks)
        self.statistics.claim_wait_s += sum(now - at for _, _, at in asks)
        for claim, future, _ in asks:
            if future.cancelled():
                if error is None:
                    self.inbox.releases.append(claim)
            elif error is not None:
                future.set_exception(copy.copy(error))
            else:
                future.set_result(claim)

    def _settle_records(
        self,
        records: list[Record],
        flushes: list[asyncio.Future[None]],
        error: JournalError | None,
    ) -> None:
        now = time.monotonic()
        self.statistics.records += len(records)
        self.statistics.record_wait_s += sum([now - record[4] for record in records])
        for record in records:
            try:
                record[3](error)
            except Exception as problem:  # one caller's mistake must not keep others waiting
                context = {"message": "The journal's done callback raised.", "exception": problem}
                asyncio.get_running_loop().call_exception_handler(context)
        for flush in flushes:
            if flush.cancelled():
                continue
            if error is not None:
                flush.set_exception(copy.copy(error))
            else:
                flush.set_result(None)


_LIVE: weakref.WeakSet[Writer] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked child, make sure that it neither writes nor closes its parent's journals."""
    for writer in list(_LIVE):
        writer.never_close()
        writer.failure = JournalError(
            f"The journal {writer.path} belongs to the process that opened it, not to its child.",
            path=writer.path,
            reason="locked",
            hint="Run the map in the parent, or give the child a journal of its own.",
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
