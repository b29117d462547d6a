"""`BatchClient`: brings rows to answers through an endpoint's batch API."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from scaleinfer.batch._options import Batch
from scaleinfer.batch._rows import Packer
from scaleinfer.batch._sent import Sent, words
from scaleinfer.batch._submit import Log, Submission, Submitter, too_large
from scaleinfer.batch._waiting import Landed, Waiting
from scaleinfer.errors import AuthError, EndpointError, Permanent

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.backends import BatchBackend, BatchState
    from scaleinfer.batch._rows import Row
    from scaleinfer.batch._waiting import Taker
    from scaleinfer.journal import Journal

__all__ = ["BatchClient"]

_ROOM = 2
"""Batches' worth of rows that may wait for room at the server before the input is held up."""
_GONE = 404
_NO_ROOM = "waiting for room: the quota of batches is full"
_QUOTA_CODES = frozenset({"token_limit_exceeded", "quota_exceeded", "rate_limit_exceeded"})
_SIZE_CODES = frozenset({"too_many_tasks", "file_too_large", "too_many_requests"})


class BatchClient:
    """Submits rows in batches, watches these, and hands on what comes of them.

    One run's rows go in with `add`; `run` does the work and ends when every row has landed after
    `end_input`. Batches that an earlier run left open in the journal are picked up: rows that are
    in them wait for them instead of being sent again.

    Args:
        backend: The endpoint's batch API, open.
        options: How to work.
        journal: Where batches are noted; without one, those of a killed process are lost.
        taker: Gets what lands.
        note: Shows a line to the user.
        patience: Seconds for which failures of the server that may pass are followed.
        cancel_after: Seconds from now after which batches are cancelled; 0 sends no new ones.
        clock: A monotonic clock, in seconds.

    Attributes:
        submitted: Batches that this run has submitted.
    """

    def __init__(
        self,
        backend: BatchBackend,
        *,
        options: Batch | None = None,
        journal: Journal | None = None,
        taker: Taker,
        note: Callable[[str], None] = lambda _: None,
        patience: float = 900.0,
        cancel_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        options = options or Batch()
        limits = backend.limits
        self.submitted = 0
        self._backend = backend
        self._taker = taker
        self._note = note
        self._clock = clock
        self._settle_s = options.settle_s
        self._poll_s = options.poll_s or limits.poll_s
        self._max_open = options.max_open or limits.open or math.inf
        self._packer = Packer(
            min(limits.rows, options.max_rows or limits.rows),
            min(limits.bytes, options.max_bytes or limits.bytes),
        )
        self._log = Log(journal, backend.endpoint)
        self._submitter = Submitter(
            backend, self._log, poll_s=self._poll_s, patience=patience, settle_s=options.settle_s
        )
        self._cancel_at = math.inf if cancel_after is None else clock() + cancel_after
        self._waiting = Waiting()
        self._next: Submission | None = None
        self._hold = 0.0
        self._ended = self._flush = self._now = False
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._count = 0
        self._pick_up(journal)

    def _pick_up(self, journal: Journal | None) -> None:
        elsewhere = 0
        for known in () if journal is None else journal.open_batches:
            if known.endpoint != self._backend.endpoint:
                elsewhere += 1
                continue
            self._count += 1
            self._waiting.adopt(Sent.of_journal(known, self._count, self._clock(), self._poll_s))
        if self._count:
            self._note(f"Picking up {self._count} of an earlier run's batches.")
        if elsewhere:
            self._note(f"{elsewhere} open batches in the journal are at other endpoints.")

    # What the run calls.

    def add(self, row: Row) -> bool:
        """Take a row; False if no batch can hold it, so that it is to be asked online.

        Raises:
            PromptError: It cannot be written as JSON.
        """
        over = self._clock() >= self._cancel_at
        if self._waiting.attach(row):
            if over or self._waiting.late:
                self._wake.set()
            return True
        if over:
            return False
        packer, group = self._packer, self._backend.group(row.request)
        if not packer.add(row, group, self._backend.line(row.custom_id, row.request)):
            return False
        if packer.waiting >= packer.max_rows:
            self._wake.set()
            if packer.waiting >= _ROOM * packer.max_rows:
                self._has_room.clear()
        return True

    async def room(self) -> None:
        """Wait until more rows from the input can be taken."""
        await self._has_room.wait()

    def awaits(self, row: Row) -> bool:
        """Return whether the row is in a batch of an earlier run."""
        return self._waiting.has(row)

    def flush(self) -> None:
        """Submit what was gathered, full or not: whoever adds rows waits for what lands."""
        self._now = True
        self._wake.set()

    def end_input(self) -> None:
        """No more rows come from the input."""
        self._ended = self._flush = True
        self._wake.set()

    @property
    def phase(self) -> str:
        """Where it stands, in words; empty while nothing is at the server."""
        for sent in self._waiting.open:
            if not sent.job.ended and (sent.rows or not self._ended):
                waiting = math.ceil(self._packer.waiting / self._packer.max_rows)
                return words(sent, self._count + (self._next is not None) + waiting)
        if self._next is not None:
            return _NO_ROOM if self._next.waits_for_room else "submitting a batch"
        return "gathering a batch" if self._packer.waiting else ""

    @property
    def unfinished(self) -> int:
        """Batches at the server that have no end yet."""
        return self._waiting.unfinished

    async def run(self) -> None:
        """Submit, watch and fetch until every row has landed.

        Raises:
            EndpointError: The endpoint refuses what all batches need.
            ConfigError: It has no batch API.
            JournalError: Something could not be recorded.
        """
        await self._find_lost()
        while True:
            self._wake.clear()
            while self._waiting.late:
                await self._land(self._waiting.take_late())
            if self._clock() >= self._cancel_at:
                await self._cancel_all()
            await self._submit()
            await self._look()
            if self._ended:
                await self._land(self._waiting.take_orphans())
            for sent in self._waiting.take_settled():
                await self._log.note(sent, "closed")
            if self._over():
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()

    async def abandon(self) -> None:
        """Cancel every batch at the server: nobody will come for them."""
        for sent in self._waiting.open:
            if sent.batch and not sent.job.ended:
                with suppress(EndpointError):
                    await self._backend.cancel(sent.batch)

    # Where it stands.

    def _over(self) -> bool:
        awaited = any(
            sent.rows or (sent.earlier and sent.job.state is None and not sent.job.failures)
            for sent in self._waiting.open
        )
        idle = not self._packer.waiting and self._next is None and not self._waiting.late
        return self._ended and idle and not awaited

    def _pause(self) -> float:
        """Return the seconds until something is due."""
        now = self._clock()
        due = [sent.job.next_look for sent in self._waiting.open]
        if self._next is not None and not self._full:
            due.append(max(self._next.not_before, self._hold))
        if now < self._hold:
            due.append(self._hold)
        if now < self._cancel_at:
            due.append(self._cancel_at)
        return max(0.0, min(min(due, default=math.inf) - now, self._poll_s[1]))

    @property
    def _full(self) -> bool:
        return sum(not sent.job.ended for sent in self._waiting.open) >= self._max_open

    # Submitting.

    async def _find_lost(self) -> None:
        """Learn the server's names of batches whose submission was cut short."""
        for sent in self._waiting.open[:]:
            if sent.batch:
                continue
            until = sent.planned + self._settle_s
            found = await self._submitter.settled(sent.token, until)
            if found is None:
                await self._add_again(await self._forget(sent))
            else:
                sent.batch = found
                await self._log.note(sent, "submitted")

    async def _submit(self) -> None:
        """Submit what is ready, as far as there is room."""
        while not self._full and self._clock() >= self._hold:
            if self._next is None:
                self._next = self._take()
            submission = self._next
            if submission is None or self._clock() < submission.not_before:
                return
            try:
                done = await self._submitter.submit(submission, self._count + 1, self._clock)
            except EndpointError as error:
                if not too_large(error):
                    raise
                await self._split(submission)
                continue
            if not done:
                return
            assert submission.sent is not None
            self._next = None
            self._count += 1
            self.submitted += 1
            self._waiting.adopt(submission.sent)

    def _take(self) -> Submission | None:
        # What batches left over is gathered until none is open; what the input left, at once.
        awaited = any(sent.rows for sent in self._waiting.open)
        over = self._ended and (self._flush or not awaited)
        pack = self._packer.take(rest=self._now or over)
        if pack is None:
            self._flush = self._now = False
        if self._packer.waiting < _ROOM * self._packer.max_rows:
            self._has_room.set()
        return None if pack is None else Submission(pack)

    async def _split(self, submission: Submission) -> None:
        """Split a pack whose file was too large."""
        pack, self._next = submission.pack, None
        if submission.sent is not None:
            await self._log.note(submission.sent, "closed")
        refused = pack.rows
        if self._packer.shrink(pack):
            refused = self._packer.give_back(pack)
            self._note(
                f"A file was too large; at most {self._packer.max_bytes:,} bytes from now on."
            )
        self._flush = True
        await self._land([Landed.without_batch(row) for row in refused])

    async def _cancel_all(self) -> None:
        """Cancel what is at the server; rows that are not there land without an answer."""
        for sent in self._waiting.open:
            # One that nobody here waits for is another program's.
            if sent.batch and sent.rows and not sent.cancelled and not sent.job.ended:
                with suppress(EndpointError):
                    await self._backend.cancel(sent.batch)
                    sent.cancelled = True
                    sent.job.look_now(self._clock())
        packs = []
        if self._next is not None:
            if self._next.sent is not None:
                await self._log.note(self._next.sent, "closed")
            packs.append(self._next.pack)
            self._next = None
        while (pack := self._packer.take(rest=True)) is not None:
            packs.append(pack)
        self._has_room.set()
        await self._land([Landed.without_batch(row) for pack in packs for row in pack.rows])

    # Watching and fetching.

    async def _look(self) -> None:
        """Look at every batch that is due; fetch what has ended."""
        for sent in self._waiting.open[:]:
            if self._clock() < sent.job.next_look or not sent.batch:
                continue
            try:
                state = await self._backend.poll(sent.batch)
                if state.ended:
                    await self._fetch(sent, state)
            except (AuthError, Permanent):
                raise
            except EndpointError as error:
                sent.job.unseen(self._clock(), error.retry_after)
                continue
            sent.job.seen(state, self._clock())
            if sent.job.ended:
                await self._end(sent, state)

    async def _fetch(self, sent: Sent, state: BatchState) -> None:
        """Hand on every answer of an ended batch."""
        unread = 0
        try:
            async for chunk in self._backend.fetch(sent.batch, state):
                landed, strange = self._waiting.join(sent, chunk)
                unread += strange
                await self._land(landed)
        except Permanent as error:
            if error.status != _GONE:
                raise
            self._note(f"The output of {sent.batch} is not there any more: {error.message}")
        if unread:
            self._note(f"{unread:,} lines of the output of {sent.batch} could not be read.")

    async def _end(self, sent: Sent, state: BatchState) -> None:
        """Find out what becomes of the rows that an ended batch has no answer for."""
        self._hold = 0.0
        if self._next is not None and self._next.waits_for_room:
            self._next.not_before = 0.0
        if state.phase == "failed" and not state.begun:
            await self._not_begun(sent, state)
            return
        missing = self._waiting.fetched(sent)
        if missing:
            self._note(
                f"{sent.batch} is {state.phase} without an answer for {len(missing):,} of its "
                f"{len(sent.members):,} rows; they are asked again."
            )
        await self._land(missing)

    async def _not_begun(self, sent: Sent, state: BatchState) -> None:
        """Act on a batch that the server would not even begin."""
        codes = {problem.code for problem in state.problems}
        said = "; ".join(problem.message for problem in state.problems[:3]) or "no reason given"
        blamed = [sent.rows.pop(slot) for slot in sent.rows_at(state) if slot in sent.rows]
        rows = await self._forget(sent)
        alone = not any(not other.job.ended for other in self._waiting.open)
        if codes & _SIZE_CODES or (codes & _QUOTA_CODES and alone):
            # Too much for one batch; or for the quota, which nothing else takes up.
            self._packer.max_rows = max(1, min(self._packer.max_rows, len(sent.members) // 2))
            if len(sent.members) == 1:
                blamed, rows = rows, []
        elif codes & _QUOTA_CODES:
            self._hold = self._clock() + self._poll_s[1]  # or until another one ends
        elif not blamed and rows:
            raise Permanent(
                f"{self._backend.endpoint} failed the batch {sent.batch}: {said}",
                endpoint=self._backend.endpoint,
                fatal=True,
            )
        self._note(f"{sent.batch} was not begun: {said}")
        refused = partial(
            Permanent, f"the row was refused: {said}", endpoint=self._backend.endpoint
        )
        await self._land([Landed(row.member, row, refused(), sent.batch) for row in blamed])
        await self._add_again(rows)

    async def _forget(self, sent: Sent) -> list[Row]:
        """Take a batch for one that never was; return the rows that waited for it."""
        rows = self._waiting.release(sent)
        await self._log.note(sent, "closed")
        return rows

    async def _add_again(self, rows: list[Row]) -> None:
        refused = [row for row in rows if not self.add(row)]
        # What waits for room at the server is not submitted before there is some.
        self._flush = True
        await self._land([Landed.without_batch(row) for row in refused])

    async def _land(self, landed: list[Landed]) -> None:
        for one in landed:
            if one.row is not None and one.batch:
                one.row.sent += 1
        if landed:
            await self._taker.landed(landed)
