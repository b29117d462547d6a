"""Which rows wait for which batch: joins answers with rows, whichever comes first. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from scaleinfer.backends import BatchAnswer
    from scaleinfer.batch._rows import Row, Slot
    from scaleinfer.batch._sent import Sent
    from scaleinfer.errors import EndpointError
    from scaleinfer.journal import BatchMember
    from scaleinfer.results import Completion

__all__ = ["Landed", "Taker", "Waiting"]


class Landed(NamedTuple):
    """What became of a row."""

    member: BatchMember
    """The row, as the journal knows it."""
    row: Row | None
    """The row itself; `None` if nobody asked for it in this run."""
    outcome: Completion | EndpointError | None
    """The answer, or why there is none; `None` if the batch left it out."""
    batch: str
    """The server's name for the batch; empty if the row was in none."""

    @classmethod
    def without_batch(cls, row: Row) -> Landed:
        """Return what becomes of a row that no batch can hold."""
        return cls(row.member, row, None, "")


class Taker(Protocol):
    """Whoever gets the answers."""

    async def landed(self, rows: list[Landed]) -> None:
        """Take rows; return when what was answered is on disk. May `add` some of them again."""


class Waiting:
    """The batches at the server and the rows that wait for them.

    A batch of an earlier run may end before the input brings the items of its rows: their answers
    are kept until these come, or until it is certain that they do not.

    Attributes:
        open: Batches that were not fetched yet, oldest first.
    """

    def __init__(self) -> None:
        self.open: list[Sent] = []
        self._by_slot: dict[Slot, Sent] = {}
        self._early: dict[Slot, Landed] = {}
        self._late: list[Landed] = []
        self._fetched: list[Sent] = []

    @property
    def late(self) -> bool:
        """Whether there are answers that were there before their rows."""
        return bool(self._late)

    @property
    def unfinished(self) -> int:
        """Batches at the server that have no end yet."""
        return sum(bool(sent.batch) and not sent.job.ended for sent in self.open)

    def adopt(self, sent: Sent) -> None:
        """Take a batch in."""
        self.open.append(sent)
        self._by_slot.update(dict.fromkeys(sent.slots, sent))

    def has(self, row: Row) -> bool:
        """Return whether a row is in a batch that is open, or its answer is here already."""
        return row.slot in self._early or row.slot in self._by_slot

    def attach(self, row: Row) -> bool:
        """Let a row wait for the batch that it is in; False if it is in none."""
        early = self._early.pop(row.slot, None)
        if early is not None:
            row.repairs = early.member.repairs
            self._late.append(early._replace(row=row))
            return True
        sent = self._by_slot.get(row.slot)
        if sent is None:
            return False
        sent.take(row)
        return True

    def join(self, sent: Sent, answers: list[BatchAnswer]) -> tuple[list[Landed], int]:
        """Join answers with the rows that wait for them.

        Returns:
            What can be handed on, and how many answers belong to no row of the batch.
        """
        landed: list[Landed] = []
        strange = 0
        for name, outcome in answers:
            member = sent.members.get(name)
            if member is None:
                strange += 1
                continue
            slot = member.identity, member.occurrence
            if slot in sent.landed:
                continue
            sent.landed.add(slot)
            # The row may be added again while it is being handed on.
            self._by_slot.pop(slot, None)
            found = Landed(member, sent.rows.pop(slot, None), outcome, sent.batch)
            if found.row is None:
                self._early[slot] = found
            else:
                landed.append(found)
        return landed, strange

    def release(self, sent: Sent) -> list[Row]:
        """Let nobody wait for a batch any more; return the rows that did."""
        self.open.remove(sent)
        rows, sent.rows = list(sent.rows.values()), {}
        for slot in sent.slots:
            if self._by_slot.get(slot) is sent:
                del self._by_slot[slot]
        return rows

    def fetched(self, sent: Sent) -> list[Landed]:
        """Take note that a batch's output was read to its end.

        Returns:
            Its rows that have no answer.
        """
        missing = [Landed(row.member, row, None, sent.batch) for row in self.release(sent)]
        self._fetched.append(sent)
        return missing

    def take_late(self) -> list[Landed]:
        """Return the answers that were there before their rows."""
        late, self._late = self._late, []
        return late

    def take_orphans(self) -> list[Landed]:
        """Return answers whose rows have not come; to be called when no more rows come."""
        orphans, self._early = list(self._early.values()), {}
        return orphans

    def take_settled(self) -> list[Sent]:
        """Return the batches whose every answer was handed on."""
        unsettled = self._early.keys() | {one.row.slot for one in self._late if one.row}
        settled = [sent for sent in self._fetched if unsettled.isdisjoint(sent.landed)]
        self._fetched = [sent for sent in self._fetched if sent not in settled]
        return settled
