"""Divides limits that belong to a user, wherever the calls come from, among a fleet's workers.

A plain state machine: the clock is passed in.

Some gateways count a user's requests over all machines. Each worker then may send so many of them
within the limit's window, a whole number, and the sum is never above the limit: one worker's share
is raised only when another has said that it keeps to a smaller one, has left, or has been silent
for longer than its share lasts; and a window later, since the gateway remembers what was sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ShareDesk", "Shares"]

_MARGIN = 1.2
"""Windows for which what was given up is not given to others: requests travel for some time."""


@dataclass(slots=True)
class _Holder:
    most: int = 0
    """The largest share that it may believe in."""
    until: float = -math.inf
    here: bool = True


class Shares:
    """One limit and those who share it.

    Args:
        per_second: Requests a second of all together.
    """

    def __init__(self, per_second: float) -> None:
        self.limit = max(1, math.floor(per_second))
        self.window_s = self.limit / per_second
        self._holders: dict[str, _Holder] = {}
        self._cooling: list[tuple[float, int]] = []

    def heard(self, worker: str, held: int, now: float, *, lasts_s: float) -> int:
        """Return the share that a worker may use from now on.

        Args:
            worker: Who asks; all before it has been answered or never will be.
            held: The share it uses at this moment.
            now: The clock, in seconds.
            lasts_s: Seconds for which it may use the new one if it hears nothing more. It counts
                them from when it asked.
        """
        self._expire(now)
        holder = self._holders.setdefault(worker, _Holder())
        holder.here = True
        held = min(held, holder.most)
        self._lower(holder, held, now)
        share = min(self._target(worker), held + self._free())
        holder.most = max(held, share)
        holder.until = max(holder.until, now + lasts_s) if holder.most else -math.inf
        return share

    def left(self, worker: str, now: float) -> None:
        """A worker has ended: it sends nothing any more."""
        holder = self._holders.pop(worker, None)
        if holder is not None:
            self._lower(holder, 0, now)

    def gone(self, worker: str) -> None:
        """A worker is given up: nobody knows whether it still sends."""
        holder = self._holders.get(worker)
        if holder is not None:
            holder.here = False

    def _target(self, worker: str) -> int:
        """Return the share a worker should have: all the same, those who came first one more."""
        here = [name for name, holder in self._holders.items() if holder.here]
        each, more = divmod(self.limit, len(here))
        return each + (here.index(worker) < more)

    def _free(self) -> int:
        cooling = sum(amount for _, amount in self._cooling)
        return self.limit - cooling - sum(holder.most for holder in self._holders.values())

    def _lower(self, holder: _Holder, to: int, now: float) -> None:
        if to < holder.most:
            self._cooling.append((now + _MARGIN * self.window_s, holder.most - to))
            holder.most = to

    def _expire(self, now: float) -> None:
        for worker, holder in list(self._holders.items()):
            if holder.most and holder.until <= now:
                self._lower(holder, 0, now)
            if not holder.here and not holder.most:
                del self._holders[worker]
        self._cooling = [entry for entry in self._cooling if entry[0] > now]


@dataclass(slots=True)
class ShareDesk:
    """All limits of a fleet, by name."""

    _limits: dict[str, Shares] = field(default_factory=dict)

    def heard(
        self, worker: str, rates: Mapping[str, Any], now: float, *, lasts_s: float
    ) -> dict[str, int]:
        """Return a worker's share of each limit that it names.

        Args:
            worker: Who asks.
            rates: By the limits' names: requests a second of all together, and the share that the
                worker uses now.
            now: The clock, in seconds.
            lasts_s: Seconds for which the shares hold.
        """
        found: dict[str, int] = {}
        for name, (per_second, held) in rates.items():
            limit = self._limits.setdefault(name, Shares(float(per_second)))
            found[name] = limit.heard(worker, int(held), now, lasts_s=lasts_s)
        return found

    def left(self, worker: str, now: float) -> None:
        """A worker has ended."""
        for limit in self._limits.values():
            limit.left(worker, now)

    def gone(self, worker: str) -> None:
        """A worker is given up."""
        for limit in self._limits.values():
            limit.gone(worker)
