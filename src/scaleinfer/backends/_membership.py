"""Who belongs to a set of endpoints, and whose health is checked when.

A plain state machine: the clock is passed in.

A dead endpoint is known by its failing calls, for which its breaker keeps calls away. Only such
a one is checked, and one whose model is not known yet. Checks of one endpoint are further and
further apart, and all checks together are a small share of the calls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["Address", "Change", "Membership"]

_LOOKS_TO_LEAVE = 2
_SHARE = 0.01
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
_FINE_S = 60.0
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint as a source names it.

    Attributes:
        url: Its base URL, `/v1` included.
        model: The model it serves, if the source says.
        tags: What else the source says of it; may change without its being another.
        weight: Its share of the calls, relative to others of the same speed.
    """

    url: str
    model: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)
    weight: float = 1.0

    def fits(self, tags: Mapping[str, str | Collection[str]]) -> bool:
        """Return whether it has all of these tags; a collection means any of its values."""
        for name, wanted in tags.items():
            value = self.tags.get(name)
            if value is None or (
                value != wanted if isinstance(wanted, str) else value not in wanted
            ):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Change:
    """What one look at the source changed.

    Attributes:
        joined: Endpoints that get calls from now on.
        left: URLs of those that get none any more.
        unknown: Endpoints that are new and must be checked first.
    """

    joined: tuple[Address, ...] = ()
    left: tuple[str, ...] = ()
    unknown: tuple[Address, ...] = ()


@dataclass(slots=True)
class _Member:
    address: Address
    missed: int = 0
    tried: bool = False
    running: bool = False
    pause: float = _FIRST_PAUSE_S
    due: float = 0.0
    fine_since: float = 0.0


class Membership:
    """Follows a source's lists and the troubles of the members.

    One that is missing from the list twice in a row leaves: a list that is being written anew
    may be short, or empty, for a moment.

    Args:
        share: Checks of members in trouble, at most, as a share of the calls. While no member
            takes calls there is no bound but the pauses.
        seed: Spreads the checks, the same way in every run.
    """

    def __init__(self, *, share: float = _SHARE, seed: int = 0) -> None:
        self._share = share
        self._random = random.Random(seed)
        self._members: dict[str, _Member] = {}
        self._new: set[str] = set()
        self._troubled: set[str] = set()
        self._spent = 0
        self.checks = 0

    @property
    def known(self) -> int:
        """Endpoints that are members or may become so."""
        return len(self._members)

    def members(self) -> list[str]:
        """Return the URLs of those that get calls, in the order in which they were seen."""
        return [url for url in self._members if url not in self._new]

    def urls(self) -> set[str]:
        """Return the URLs of all that are members or may become so."""
        return set(self._members)

    def is_member(self, url: str) -> bool:
        """Return whether an endpoint gets calls."""
        return url in self._members and url not in self._new

    def seen(self, addresses: Iterable[Address], now: float, *, ready: bool) -> Change:
        """The source lists these; of a URL that it names twice, the last counts.

        Args:
            addresses: All that it lists.
            now: The clock, in seconds.
            ready: True if one with a model of its own, or any at all if the set's model is
                known, needs no check before it joins.
        """
        listed = {address.url: address for address in addresses}
        joined: list[Address] = []
        left: list[str] = []
        unknown: list[Address] = []
        for url, member in list(self._members.items()):
            address = listed.get(url)
            if address == member.address:
                member.missed = 0
                continue
            member.missed += 1
            if address is None and member.missed < _LOOKS_TO_LEAVE:
                continue
            # Gone, or another than it was: that is one that leaves and one that comes.
            self._drop(url, left)
        for url, address in listed.items():
            if url in self._members:
                continue
            known = ready or address.model is not None
            self._members[url] = _Member(address, due=now)
            if not known:
                self._new.add(url)
            (joined if known else unknown).append(address)
        return Change(tuple(joined), tuple(left), tuple(unknown))

    def trouble(self, urls: Collection[str], now: float) -> None:
        """These members get no calls because they broke call after call; all others do."""
        broken = {url for url in urls if url in self._members and url not in self._new}
        for url in self._troubled - broken:
            self._members[url].fine_since = now
        for url in broken - self._troubled:
            member = self._members[url]
            if now - member.fine_since > _FINE_S:
                member.pause = _FIRST_PAUSE_S
            self._later(member, now)
        self._troubled = broken

    def due(self, now: float, *, calls: int, most: int | None = None) -> list[Address]:
        """Return what is to be checked now; `checked` takes the outcomes.

        Args:
            now: The clock, in seconds.
            calls: Calls sent to the members so far.
            most: Checks that may begin now.
        """
        waiting = [
            member
            for member in map(self._members.__getitem__, self._new | self._troubled)
            if not member.running and member.due <= now
        ]
        waiting.sort(key=lambda member: (member.due, member.address.url))
        free = len(self._members) - len(self._new) <= len(self._troubled)
        chosen: list[Address] = []
        for member in waiting:
            if most is not None and len(chosen) >= most:
                break
            again = member.tried or member.address.url in self._troubled
            if again and not free:
                if self._spent + 1 > self._share * calls:
                    continue
                self._spent += 1
            member.running = member.tried = True
            self.checks += 1
            chosen.append(member.address)
        return chosen

    def checked(self, address: Address, now: float, *, ok: bool) -> bool:
        """Take a check's outcome.

        Returns:
            True if it was new and joins now, or was in trouble and may be back.
        """
        member = self._members.get(address.url)
        if member is None or member.address != address:
            return False  # it left meanwhile
        member.running = False
        new = address.url in self._new
        wanted = new or address.url in self._troubled
        if ok and new:
            self._new.discard(address.url)
            member.pause, member.fine_since = _FIRST_PAUSE_S, now
        else:
            # If it was in trouble the next call tells whether it is back.
            self._later(member, now)
        return ok and wanted

    def _later(self, member: _Member, now: float) -> None:
        spread = self._random.uniform(1 - _JITTER, 1 + _JITTER)
        member.due = now + member.pause * spread
        member.pause = min(2 * member.pause, _LONGEST_PAUSE_S)

    def _drop(self, url: str, left: list[str]) -> None:
        del self._members[url]
        self._troubled.discard(url)
        if url in self._new:
            self._new.discard(url)
        else:
            left.append(url)
