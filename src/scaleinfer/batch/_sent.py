"""One batch at a server: its rows, what has come of them, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer.batch._job import Job
from scaleinfer.batch._rows import custom_id_of

if TYPE_CHECKING:
    from scaleinfer.backends import BatchState
    from scaleinfer.batch._rows import Pack, Row, Slot
    from scaleinfer.journal import BatchMember, OpenBatch

__all__ = ["Sent", "words"]

_PHASES = {
    "submitted": "submitted",
    "validating": "being checked",
    "finalizing": "being written",
    "cancelling": "being cancelled",
}


class Sent:
    """A batch from its submission, by this run or an earlier one, until its end is recorded.

    Args:
        token: Our own name for it.
        members: Its rows, as the journal keeps them, in the order of the lines.
        number: Its number in this run, from 1.
        now: The clock.
        poll_s: Seconds between two looks, at first and at most.

    Attributes:
        batch: The server's name for it; empty as long as it is not known.
        planned: Unix time before which the server was not asked.
        earlier: True if an earlier run submitted it.
        rows: Rows that wait for it.
        slots: The same rows by what the journal knows them by.
        landed: Those of them whose answer was handed on.
        job: Where it stands.
        cancelled: True once we have asked the server to cancel it.
    """

    def __init__(  # noqa: PLR0917 - all that a batch is
        self,
        token: str,
        members: tuple[BatchMember, ...],
        number: int,
        now: float,
        poll_s: tuple[float, float],
        planned: float,
    ) -> None:
        self.token = token
        self.members = {custom_id_of(member): member for member in members}
        self.number = number
        self.batch = ""
        self.planned = planned
        self.earlier = False
        self.slots = {(member.identity, member.occurrence): member for member in members}
        self.rows: dict[Slot, Row] = {}
        self.landed: set[Slot] = set()
        self.job = Job(now, poll_s)
        self.cancelled = False

    @classmethod
    def of_pack(  # noqa: PLR0917 - as for the class
        cls, pack: Pack, token: str, number: int, now: float, poll_s: tuple[float, float],
        planned: float,
    ) -> Sent:  # fmt: skip
        """Return a pack as the batch that it becomes."""
        made = cls(token, tuple(row.member for row in pack.rows), number, now, poll_s, planned)
        made.rows = {row.slot: row for row in pack.rows}
        return made

    @classmethod
    def of_journal(
        cls, known: OpenBatch, number: int, now: float, poll_s: tuple[float, float]
    ) -> Sent:
        """Return a batch that an earlier run left at the server."""
        made = cls(known.token, known.members, number, now, poll_s, known.planned)
        made.batch = known.batch
        made.earlier = True
        made.job.look_now(now)
        return made

    def take(self, row: Row) -> None:
        """Let a row wait for it that an earlier run has put into it."""
        row.repairs = self.slots[row.slot].repairs
        self.rows[row.slot] = row

    def rows_at(self, state: BatchState) -> list[Slot]:
        """Return the slots of the lines that the server blames for a failed batch."""
        members = list(self.members.values())
        lines = [problem.line for problem in state.problems if problem.line is not None]
        return [
            (members[line - 1].identity, members[line - 1].occurrence)
            for line in lines
            if 0 < line <= len(members)
        ]


def words(sent: Sent, total: int) -> str:
    """Return where a batch stands, for the progress display."""
    phase = sent.job.phase
    where = _PHASES.get(phase) or f"{int(100 * sent.job.share)} % done"
    return f"batch {sent.number} of {total}: {where}"
