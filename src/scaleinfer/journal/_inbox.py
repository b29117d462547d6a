"""What the event loop hands to the writer's thread, and how it wakes that.

One thread appends to a list and the other takes from its front; both are single operations of
the list, so no lock is needed, and a turn of the writer takes whole lists. Waking a thread costs
the loop more than a row does, so it is done once for all that comes while the thread sleeps.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from scaleinfer.errors import JournalError
    from scaleinfer.journal._batches import BatchEvent
    from scaleinfer.journal._store import Claim
    from scaleinfer.results import Attempt

    T = TypeVar("T")

    Ask: TypeAlias = tuple[Claim, asyncio.Future[Claim], float]
    """A claim to be answered, where to, and when it was asked."""

    Record: TypeAlias = tuple[Claim, bytes, bool, Callable[[JournalError | None], None], float]
    """A claim, its payload, whether that is an answer, whom to tell, and when it came."""

    Unrendered: TypeAlias = tuple[int, str, dict[str, Any]]
    """Index, key and error of an item without a prompt."""

__all__ = ["Close", "Inbox", "Turn"]


@dataclass(frozen=True, slots=True)
class Close:
    """The end of the run."""

    state: str
    counts: dict[str, Any]


@dataclass(slots=True)
class Turn:
    """What one look at the inbox brought.

    Attributes:
        holds: Identities whose first occurrence was claimed without a look into the file.
        attempts: Calls that were made.
        unrendered: Items without a prompt.
        batches: What happened to batches.
        releases: Claims that were given up.
        asks: Claims to be answered.
        records: Results to be written and reported.
        flushes: To be told when everything is on disk.
        spent: What the run has used, or may have by the next such word; the latest.
        close: The end, if it has come.
    """

    holds: list[bytes] = field(default_factory=list)
    attempts: list[tuple[Claim, Attempt]] = field(default_factory=list)
    unrendered: list[Unrendered] = field(default_factory=list)
    batches: list[BatchEvent] = field(default_factory=list)
    releases: list[Claim] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    flushes: list[asyncio.Future[None]] = field(default_factory=list)
    spent: dict[str, int] | None = None
    close: Close | None = None


class Inbox:
    """Filled by the event loop, emptied by the writer's thread.

    Attributes:
        asleep: True while the thread sleeps until it is rung for. Who appends to `asks`,
            `records`, `flushes` or `closes` calls `ring` then; the rest can wait.
        holds, attempts, unrendered, batches, releases, asks, records, flushes: As in `Turn`.
        closes: The end of the run; at most one.
        spent: What the run has used, as `Turn` has it; a new dict each time.
    """

    __slots__ = (
        "_bell", "asks", "asleep", "attempts", "batches", "closes", "flushes", "holds", "records",
        "releases", "spent", "unrendered",
    )  # fmt: skip

    def __init__(self) -> None:
        self.asleep = False
        self.holds: list[bytes] = []
        self.attempts: list[tuple[Claim, Attempt]] = []
        self.unrendered: list[Unrendered] = []
        self.batches: list[BatchEvent] = []
        self.releases: list[Claim] = []
        self.asks: list[Ask] = []
        self.records: list[Record] = []
        self.flushes: list[asyncio.Future[None]] = []
        self.closes: list[Close] = []
        self.spent: dict[str, int] | None = None
        self._bell: SimpleQueue[None] = SimpleQueue()

    def __len__(self) -> int:
        """Return how many rows and questions wait."""
        return (
            len(self.attempts) + len(self.unrendered) + len(self.asks) + len(self.records)
            + len(self.flushes)
        )  # fmt: skip

    def ring(self) -> None:
        """Wake the thread if it sleeps."""
        if self.asleep:
            self.asleep = False
            self._bell.put(None)

    def wait(self, timeout: float | None) -> None:
        """Sleep until rung for, at most `timeout` seconds; for the writer's thread.

        Returns at once if something is there already: it may have come before `asleep` was set.
        May return early for nothing.
        """
        self.asleep = True
        if not (self.records or self.asks or self.flushes or self.closes):
            with suppress(Empty):
                self._bell.get(timeout=timeout)
        self.asleep = False

    def take(self) -> Turn:
        """Take everything; for the writer's thread.

        What comes later in an item's life is taken first, so that whatever came before it, such
        as the hold of a claim that is released, is in the same turn or was in an earlier one.
        """
        close = self.closes.pop() if self.closes else None
        flushes, records, asks = _all(self.flushes), _all(self.records), _all(self.asks)
        releases, unrendered = _all(self.releases), _all(self.unrendered)
        batches = _all(self.batches)
        attempts, holds = _all(self.attempts), _all(self.holds)
        return Turn(
            holds, attempts, unrendered, batches, releases, asks, records, flushes, self.spent,
            close,
        )  # fmt: skip


def _all(items: list[T]) -> list[T]:
    """Move a list's items to a new list; what is appended meanwhile stays."""
    taken = items[:]
    del items[: len(taken)]
    return taken
