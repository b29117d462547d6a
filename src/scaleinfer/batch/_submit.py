"""From packs to batches at the server, so that none is ever submitted twice."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

from scaleinfer.batch._sent import Sent
from scaleinfer.errors import AuthError, ConfigError, EndpointError, Permanent, RateLimited
from scaleinfer.journal import BatchEvent, pack_members

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from scaleinfer.backends import BatchBackend
    from scaleinfer.batch._rows import Pack
    from scaleinfer.journal import Journal

__all__ = ["Log", "Submission", "Submitter", "too_large"]

_TOO_LARGE = 413
_NO_ROUTE = frozenset({404, 405, 501})
_LOOKS = 5
_LEAST_PAUSE_S = 0.001


class Log:
    """Writes to the journal what happens to batches; without a journal it does nothing."""

    def __init__(self, journal: Journal | None, endpoint: str) -> None:
        self._journal = journal
        self._endpoint = endpoint

    async def note(
        self, sent: Sent, event: Literal["planned", "submitted", "closed"], *, again: bool = False
    ) -> None:
        """Write it down and return when it is on disk.

        Args:
            sent: The batch.
            event: What happens.
            again: True if it was planned before; its members are known then.

        Raises:
            JournalError: It could not be written.
        """
        if self._journal is None:
            return
        members = b""
        if event == "planned" and not again:
            members = await asyncio.to_thread(pack_members, tuple(sent.members.values()))
        noted = sent.planned if event == "planned" else time.time()
        await self._journal.note_batch(
            BatchEvent(sent.token, event, sent.batch, self._endpoint, noted, members)
        )


class Submission:
    """A pack on its way to the server.

    Attributes:
        pack: The rows and their lines.
        token: Our own name for the batch.
        upload: Where its input file is, once it is there.
        sent: The batch, once the journal knows of it.
        not_before: When to try next.
        failures: Tries in a row that failed for reasons that may pass.
        failing_since: Since when.
        waits_for_room: True while the server's quota is full.
    """

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.token = f"scaleinfer-{secrets.token_hex(12)}"
        self.upload: str | None = None
        self.sent: Sent | None = None
        self.not_before = 0.0
        self.failures = 0
        self.failing_since = 0.0
        self.waits_for_room = False


class Submitter:
    """Uploads a pack, notes it in the journal, creates the batch, notes that.

    Args:
        backend: The endpoint's batch API.
        log: Where it is noted.
        poll_s: Seconds between two looks at a batch; also those between two tries.
        patience: Seconds for which failures that may pass are followed.
        settle_s: Seconds for which a batch is looked for that may have been accepted.
    """

    def __init__(
        self,
        backend: BatchBackend,
        log: Log,
        *,
        poll_s: tuple[float, float],
        patience: float,
        settle_s: float,
    ) -> None:
        self._backend = backend
        self._log = log
        self._poll_s = poll_s
        self._patience = patience
        self._settle_s = settle_s

    async def submit(self, submission: Submission, number: int, clock: Callable[[], float]) -> bool:
        """Try to submit; False if it is to be tried again at `submission.not_before`.

        Args:
            submission: What to submit.
            number: The batch's number in this run.
            clock: The clock.

        Raises:
            EndpointError: It cannot be submitted; status 413 if the file is too large.
            ConfigError: The endpoint has no batch API.
            JournalError: It could not be noted.
        """
        try:
            if submission.upload is None:
                submission.upload = await self._backend.upload(
                    submission.token, submission.pack.lines
                )
            sent = submission.sent
            if sent is None:
                sent = Sent.of_pack(
                    submission.pack, submission.token, number, clock(), self._poll_s, time.time()
                )
                await self._log.note(sent, "planned")
                submission.sent = sent
            else:
                sent.planned = time.time()
                await self._log.note(sent, "planned", again=True)
            sent.batch = await self._create(submission, submission.upload)
        except EndpointError as error:
            self._failed(submission, error, clock())
            return False
        await self._log.note(sent, "submitted")
        return True

    async def _create(self, submission: Submission, upload: str) -> str:
        try:
            return await self._backend.create(submission.token, submission.pack.group, upload)
        except (RateLimited, Permanent, AuthError):
            raise
        except EndpointError as error:
            if not error.reached:
                raise
            # It may have been accepted, and must not be paid for twice.
            until = time.time() + self._settle_s
            found = await self.settled(submission.token, until)
            if found is None:
                raise
            return found

    async def settled(self, token: str, until: float) -> str | None:
        """Look for a batch that may have been accepted, or may still be on its way there.

        Args:
            token: Our own name for the batch.
            until: Unix time up to which it may still appear.

        Returns:
            The server's name for it; `None` if it has none.

        Raises:
            EndpointError: The server does not tell.
        """
        began = time.monotonic()
        pause = max(self._settle_s / _LOOKS, _LEAST_PAUSE_S)
        while True:
            try:
                found = await self._backend.find(token)
            except (Permanent, AuthError):
                raise
            except EndpointError:
                if time.monotonic() - began > self._patience:
                    raise
            else:
                if found is not None or time.time() >= until:
                    return found
            await asyncio.sleep(pause)

    def _failed(self, submission: Submission, error: EndpointError, now: float) -> None:
        """Set the next try, or raise what does not pass."""
        if error.status in _NO_ROUTE and submission.upload is None:
            raise ConfigError(
                f"{self._backend.endpoint} has no batch API: {error.message}",
                hint="Use mode='online'.",
            ) from error
        if isinstance(error, Permanent | AuthError):
            raise error
        if not submission.failures:
            submission.failing_since = now
        submission.failures += 1
        submission.waits_for_room = isinstance(error, RateLimited)
        if not submission.waits_for_room and now - submission.failing_since > self._patience:
            raise error
        first, most = self._poll_s
        pause = min(most, first * 2.0 ** min(submission.failures - 1, 20))
        submission.not_before = now + max(pause, error.retry_after or 0.0)


def too_large(error: EndpointError) -> bool:
    """Return whether an upload was refused for its size."""
    return error.status == _TOO_LARGE
