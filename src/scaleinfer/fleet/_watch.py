"""When a node's server counts as ready, stuck or lost. A plain state machine: no clock, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

__all__ = ["Again", "GiveUp", "Kill", "Watch", "WatchState"]

WatchState = Literal["stopped", "starting", "ready", "waiting", "failed"]
Kill = Literal["late", "stuck"]

_AT_ONCE = 5.0
_FIRST_RESTARTS = 1
_MOVES = 5
_FIRST_PAUSE, _LONGEST_PAUSE, _JITTER = 0.5, 30.0, 0.1
_SETTLED = 60.0
_FIRST_CHECK, _CHECK_SHARE, _SLOWEST_CHECK = 0.1, 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Again:
    """The server is to be started again.

    Attributes:
        at: The clock when.
        move: True if another port is to be taken.
    """

    at: float
    move: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The server is not started again.

    Attributes:
        why: `exited` (it ended and was never ready), `late` (not ready in time and never
            before), `ports` (each port it got was taken) or `restarts` (too many in a row).
    """

    why: Literal["exited", "late", "ports", "restarts"]


class Watch:
    """Follows one server through its starts.

    A server that was never ready is not worth many tries: one that ends within seconds has a
    wrong command line, and one that is not ready in time will not be so the next time. One that
    was ready before is started again, `restarts` times in a row if it does not become ready.

    Pauses double from half a second to 30 s. They begin anew only once it has stayed ready for a
    minute, so that a server which dies of every first request does not load its model without
    end at full speed.

    Args:
        ready_timeout: Seconds it may take to become ready.
        restarts: Restarts in a row without having become ready.
        check_every: Seconds between checks of a ready server.
        failed_checks: Failed checks in a row that make a ready server a stuck one.
        seed: Spreads the restarts of several servers, the same way in every run.

    Attributes:
        state: `stopped` (not started, or on purpose), `starting`, `ready`, `waiting` (for its
            restart) or `failed` (given up).
        restarts: How often it was started again.
        ready_since: The clock when it last became ready; `None` if it is not.
    """

    def __init__(
        self,
        *,
        ready_timeout: float,
        restarts: int,
        check_every: float,
        failed_checks: int,
        seed: int = 0,
    ) -> None:
        self.state: WatchState = "stopped"
        self.restarts = 0
        self.ready_since: float | None = None
        self._ready_timeout = ready_timeout
        self._allowed = restarts
        self._check_every = check_every
        self._failed_checks = failed_checks
        self._random = random.Random(seed)
        self._started = 0.0
        self._ever_ready = False
        self._in_a_row = self._moves = self._pauses = self._failed = 0

    def started(self, now: float) -> None:
        """Its process runs."""
        self.state = "starting"
        self._started = now
        self._failed = 0

    def next_check(self, now: float) -> float:
        """Return when to look at its health next; at a young server often, but not for long."""
        if self.state == "ready":
            return now + self._check_every
        pause = _FIRST_CHECK + _CHECK_SHARE * (now - self._started)
        last = self._started + self._ready_timeout
        return max(now, min(now + min(pause, _SLOWEST_CHECK), last))

    def passed(self, now: float) -> bool:
        """It is healthy; return whether that makes it ready."""
        self._failed = 0
        if self.state == "ready":
            return False
        self.state = "ready"
        self.ready_since = now
        self._ever_ready = True
        self._in_a_row = self._moves = 0
        return True

    def failed(self, now: float) -> Kill | None:
        """A health check failed; return why to kill it, if that is to be done."""
        if self.state == "starting":
            return "late" if now - self._started >= self._ready_timeout else None
        self._failed += 1
        return "stuck" if self._failed >= self._failed_checks else None

    def ended(
        self, now: float, *, killed: Kill | None = None, port_taken: bool = False
    ) -> Again | GiveUp:
        """Its process has ended.

        Args:
            now: The clock.
            killed: Why we killed it, if we did.
            port_taken: Somebody else listens on its port.
        """
        ran, ready_since = now - self._started, self.ready_since
        self.ready_since = None
        if ready_since is not None and now - ready_since >= _SETTLED:
            self._pauses = 0
        self.state = "failed"
        if port_taken and ready_since is None:
            self._moves += 1
            if self._moves > _MOVES:
                return GiveUp("ports")
            self.state = "waiting"
            return Again(now, move=True)
        if not self._ever_ready:
            if killed is not None:
                return GiveUp("late")
            if ran < _AT_ONCE or self._in_a_row >= min(self._allowed, _FIRST_RESTARTS):
                return GiveUp("exited")
        if self._in_a_row >= self._allowed:
            return GiveUp("restarts")
        return self._again(now)

    def gave_up(self) -> None:
        """It cannot even be started."""
        self.state = "failed"
        self.ready_since = None

    def stopped(self) -> None:
        """It was stopped on purpose."""
        self.ready_since = None
        if self.state != "failed":
            self.state = "stopped"

    def _again(self, now: float) -> Again:
        self.state = "waiting"
        self._in_a_row += 1
        self.restarts += 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._pauses, 10))
        self._pauses += 1
        return Again(now + pause * self._random.uniform(1 - _JITTER, 1 + _JITTER))
