"""Which occurrences of which identities a run has claimed and not yet written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Outstanding"]


class Outstanding:
    """A set of (identity, occurrence); its length is the number of claims that are out.

    Nearly every claim is the first of its identity, and those come and go many at a time: they
    are one set that whole batches are added to and taken from.
    """

    __slots__ = ("_count", "_first", "_further")

    def __init__(self) -> None:
        self._first: set[bytes] = set()
        self._further: dict[bytes, set[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._first) + self._count

    def __contains__(self, claim: tuple[bytes, int]) -> bool:
        identity, occurrence = claim
        if occurrence == 0:
            return identity in self._first
        return occurrence in self._further.get(identity, ())

    def has(self, identity: bytes) -> bool:
        """Return whether any occurrence of an identity is out."""
        return identity in self._first or identity in self._further

    def add_first(self, identities: Iterable[bytes]) -> None:
        """Add occurrence 0 of each identity."""
        self._first.update(identities)

    def remove_first(self, identities: Iterable[bytes]) -> None:
        """Remove occurrence 0 of each identity, if it is there."""
        self._first.difference_update(identities)

    def add(self, identity: bytes, occurrence: int) -> None:
        """Add one."""
        if occurrence == 0:
            self._first.add(identity)
            return
        taken = self._further.setdefault(identity, set())
        self._count += occurrence not in taken
        taken.add(occurrence)

    def remove(self, identity: bytes, occurrence: int) -> bool:
        """Remove one and return whether it was there."""
        if (identity, occurrence) not in self:
            return False
        if occurrence == 0:
            self._first.discard(identity)
            return True
        taken = self._further[identity]
        taken.discard(occurrence)
        self._count -= 1
        if not taken:
            del self._further[identity]
        return True
