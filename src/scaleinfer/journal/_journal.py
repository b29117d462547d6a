"""`Journal`: the face that asyncio code sees."""

from __future__ import annotations

import asyncio
import atexit
import copy
import os
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import JournalError
from scaleinfer.journal._database import (
    connect_reader,
    connect_writer,
    create,
    damaged,
    inspect,
    translate,
)
from scaleinfer.journal._format import storable
from scaleinfer.journal._inbox import Close
from scaleinfer.journal._lock import Lock
from scaleinfer.journal._seen import Seen
from scaleinfer.journal._store import Claim, Store
from scaleinfer.journal._writer import JournalStatistics, Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from scaleinfer.journal._batches import BatchEvent
    from scaleinfer.journal._format import Manifest
    from scaleinfer.journal._lock import Holder
    from scaleinfer.journal._pages import Header
    from scaleinfer.results import Attempt

__all__ = ["Journal"]

_EXIT_S = 10.0
"""How long an interpreter that ends waits for a journal that nobody closed."""


class Journal:
    """A run's durable record, open for writing.

    Made by `Journal.open`. All methods but `open` belong to one event loop. What `record`
    reported as done is on disk: a `kill -9`, a crash or a power loss after that loses nothing.
    After a failure (a full disk) everything committed stays and every later call raises it.

    Attributes:
        path: The journal's file, links resolved.
        run: This run's number in the journal.
        open_batches: Batches that earlier runs left at a server, oldest first.
        spent_before: What earlier runs have used, as `note_spent` was told.
    """

    def __init__(self, path: str, store: Store, writer: Writer, seen: Seen | None) -> None:
        self.path = path
        self.run = store.run
        self.open_batches = store.open_batches
        self.spent_before = store.spent_before
        self._writer = writer
        self._inbox = writer.inbox
        self._seen = seen
        self._closed = False
        self._at_exit = _exit_hook(writer)
        atexit.register(self._at_exit)

    @classmethod
    def open(cls, path: str | os.PathLike[str], manifest: Manifest) -> Journal:
        """Open a journal, or make one, and start a run in it.

        Blocks for some file operations; call it in a thread if the loop must not wait.

        Args:
            path: The journal's file; `<path>-lock` and, while it is open, `<path>-wal` lie
                beside it.
            manifest: What the run is.

        Raises:
            JournalError: `reason` says why: `locked`, `foreign`, `damaged`, `newer`, `older`,
                `full`, `readonly` or `io`.
        """
        real = os.path.realpath(path)
        if os.path.isdir(real):
            inspect(real)
        lock = Lock.acquire(real)
        connection: sqlite3.Connection | None = None
        try:
            header = inspect(real)
            if header is None:
                create(real)
            elif lock.displaced is not None:
                _check_progress(real, header, lock.displaced)
            connection = connect_writer(real, file_locks=lock.supports_file_locks)
            store = Store.begin(connection, manifest)
            lock.beat(store.run, store.tally.to_dict())
            fresh = store.tally.rows == 0
            writer = Writer(real, store, lock)
            writer.start()
        except BaseException as error:
            if connection is not None:
                connection.close()
            lock.release()
            if isinstance(error, Exception):
                raise translate(error, real) from error
            raise
        return cls(real, store, writer, Seen() if fresh else None)

    async def claim(
        self, identity: bytes, *, key: str, question: str = "", index: int, label: str = ""
    ) -> Claim:
        """Take hold of an item's row, and of its answer if there is one.

        Each claim of the same identity in one run gets its own occurrence: 0, 1, 2, ...

        Args:
            identity: 16 bytes: hash of the user's key, if any, and the rendered request.
            key: The item's key.
            question: Name of the question if the item asks several.
            index: The item's position in the input.
            label: What a policy calls the item.

        Raises:
            JournalError: The journal has failed or is closed.
        """
        claim = self.claim_nowait(identity, key=key, question=question, index=index, label=label)
        if claim is not None:
            return claim
        claim = Claim(identity, 0, storable(key), storable(question), index, None, label)
        future: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()
        self._inbox.asks.append((claim, future, monotonic()))
        self._inbox.ring()
        return await future

    def claim_nowait(
        self, identity: bytes, *, key: str, question: str = "", index: int, label: str = ""
    ) -> Claim | None:
        """Take hold of an item's row if it is certain that there is none in the file.

        Args:
            identity: As for `claim`.
            key: As for `claim`.
            question: As for `claim`.
            index: As for `claim`.
            label: As for `claim`.

        Returns:
            The claim; `None` if the file must be looked at, which `claim` does.

        Raises:
            JournalError: The journal has failed or is closed.
        """
        self._check()
        self._writer.loop = asyncio.get_running_loop()
        if self._seen is None or not self._seen.add(identity):
            return None
        self._inbox.holds.append(identity)
        return Claim(identity, 0, storable(key), storable(question), index, None, label)

    def attempt(self, claim: Claim, attempt: Attempt) -> None:
        """Note a call that was made; it lands with one of the next commits."""
        self._check()
        self._inbox.attempts.append((claim, attempt))

    def record(
        self,
        claim: Claim,
        payload: bytes,
        *,
        ok: bool,
        done: Callable[[JournalError | None], None],
    ) -> None:
        """Write an item's answer or failure.

        Args:
            claim: The item's claim.
            payload: JSON. `read_results` knows the fields of `Result`.
            ok: False for a failure; a later run asks the item again.
            done: Called in the event loop once it is on disk, or with the error if it is not.

        Raises:
            JournalError: The journal has failed or is closed.
        """
        self._check()
        inbox = self._inbox
        inbox.records.append((claim, payload, ok, done, monotonic()))
        if inbox.asleep:
            inbox.ring()

    def recorded(self, claim: Claim, payload: bytes, *, ok: bool) -> asyncio.Future[None]:
        """Write an item's answer or failure; as `record`, for those who wait for it.

        Args:
            claim: The item's claim.
            payload: As for `record`.
            ok: As for `record`.

        Returns:
            A future that is done once it is on disk. It may be cancelled; what was handed over
            is written all the same.

        Raises:
            JournalError: The journal has failed or is closed. The future raises it too.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.record(claim, payload, ok=ok, done=partial(_resolve, future))
        return future

    def release(self, claim: Claim) -> None:
        """Give up a claim whose item was not answered."""
        if not self._closed:
            self._inbox.releases.append(claim)

    def unrendered(self, *, index: int, key: str, error: dict[str, Any]) -> None:
        """Note an item for which this run has no prompt; it lands with one of the next commits."""
        self._check()
        self._inbox.unrendered.append((index, storable(key), error))

    async def note_batch(self, event: BatchEvent) -> None:
        """Write down what happened to a batch, and return when that is on disk.

        Raises:
            JournalError: It could not be written.
        """
        self._check()
        self._inbox.batches.append(event)
        await self.flush()

    def note_spent(self, spent: dict[str, int]) -> None:
        """Note what the run has used, or may have by the next such word.

        It lands with the next commit; `flush` waits for it. It is kept with the run's counts, so
        that the next run of this journal knows, even if this one is killed.

        Args:
            spent: Names that begin with `spent_`, and amounts; replaces what was said before.
        """
        self._check()
        self._inbox.spent = dict(spent)

    async def flush(self) -> None:
        """Return when everything handed over so far is on disk.

        Raises:
            JournalError: It could not be written.
        """
        self._check()
        loop = asyncio.get_running_loop()
        self._writer.loop = loop
        future: asyncio.Future[None] = loop.create_future()
        self._inbox.flushes.append(future)
        self._inbox.ring()
        await future

    async def aclose(
        self, *, state: str, counts: dict[str, int], limits: dict[str, Any] | None = None
    ) -> None:
        """End the run: commit, leave one file, remove the lock. Again does nothing.

        A cancelled caller still waits for it, then is cancelled.

        Args:
            state: `complete`, `stopped` or `failed`.
            counts: What the caller counted; shown by `list_runs`.
            limits: What the limiters decided when, as JSON data; for reports.

        Raises:
            JournalError: The end could not be written, and nobody was told of that before.
        """
        self._end(state, counts if limits is None else {**counts, "limits": limits})
        cancelled: asyncio.CancelledError | None = None
        # A future, not a task: whoever cancels all tasks does not cancel this.
        waiter = asyncio.get_running_loop().run_in_executor(None, self._writer.join)
        while not waiter.done():
            try:
                await asyncio.shield(waiter)
            except asyncio.CancelledError as error:
                cancelled = error
        # What the thread reported last is in the loop's queue; let it arrive before returning.
        await asyncio.sleep(0)
        if cancelled is not None:
            raise cancelled
        writer = self._writer
        if writer.failure is not None and not writer.reported:
            writer.reported = True
            raise copy.copy(writer.failure)

    @property
    def head(self) -> str:
        """Digest of the last commit, as hexadecimal digits; see `verify`."""
        return self._writer.head.hex()

    def statistics(self) -> JournalStatistics:
        """Return what the journal did and cost so far."""
        writer = self._writer
        return replace(writer.statistics, queued=len(writer.inbox))

    def _end(self, state: str, counts: dict[str, Any]) -> None:
        if not self._closed:
            self._closed = True
            self._inbox.closes.append(Close(state, dict(counts)))
            self._inbox.ring()
            atexit.unregister(self._at_exit)

    def _check(self) -> None:
        failure = self._writer.failure
        if failure is not None:
            self._writer.reported = True
            raise copy.copy(failure)
        if self._closed:
            raise JournalError(f"The journal {self.path} is closed.", path=self.path)


def _exit_hook(writer: Writer) -> Callable[[], None]:
    """Return what ends a journal that the program forgot, when the interpreter ends."""

    def close() -> None:
        if writer.is_alive():  # it is not in a forked child
            writer.loop = None
            writer.inbox.closes.append(Close("stopped", {}))
            writer.inbox.ring()
            writer.ended.wait(_EXIT_S)

    return close


def _check_progress(path: str, header: Header, dead: Holder) -> None:
    """Compare a dead writer's last sign of life with what the file holds.

    A log that was cut at its end looks to SQLite like one that was being written; the counts in
    the lock file, written after the commits they count, show that something is missing.

    Raises:
        JournalError: `damaged` if the file holds less.
    """
    connection = connect_reader(path, header)
    try:
        row = connection.execute(
            "SELECT s.ok + s.failed, s.rows, r.started FROM run_states s JOIN runs r"
            " ON r.id = s.run WHERE s.run = ?",
            (dead.run,),
        ).fetchone()
    finally:
        connection.close()
    promised = dead.progress.get("ok", 0) + dead.progress.get("failed", 0)
    if row is not None and row[2] >= dead.started and row[0] < promised:
        raise damaged(
            path,
            f"its log was cut: run {dead.run} had recorded {promised} results, {row[0]} are left",
        )


def _resolve(future: asyncio.Future[None], error: JournalError | None) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(copy.copy(error))
