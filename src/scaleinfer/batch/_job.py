"""One batch at a server, as a state machine: when to look at it, and what was seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaleinfer.backends import BatchState

__all__ = ["Job"]

_SHARE = 0.05
"""Of a batch's age is waited until the next look, so that hours are not spent asking."""
_ORDER = {"validating": 0, "in_progress": 1, "cancelling": 2, "finalizing": 2}
_ENDED = 3


class Job:
    """A batch that was submitted.

    Args:
        now: The clock, in seconds.
        poll_s: Seconds between two looks: right after the submission, and at most.

    Attributes:
        state: What was seen last; `None` before the first look.
        ended: True once it has its end; nothing is looked at after that.
        next_look: When to look at it; infinite once it has its end.
        failures: Looks in a row that brought no answer.
    """

    def __init__(self, now: float, poll_s: tuple[float, float]) -> None:
        self.state: BatchState | None = None
        self.ended = False
        self.failures = 0
        self.next_look = now + poll_s[0]
        self._submitted = now
        self._first, self._most = poll_s

    def seen(self, state: BatchState, now: float) -> None:
        """Take note of what the server shows; what has ended stays so."""
        if self.ended:
            return
        self.failures = 0
        before = self.state
        if before is None or _rank(state) >= _rank(before):
            # A server's replicas may show an older state after a newer one.
            self.state = state
        self.ended = state.ended
        self.next_look = math.inf if self.ended else now + self._pause(now)

    def unseen(self, now: float, retry_after: float | None = None) -> None:
        """Take note of a look that brought no answer; the next ones come later and later.

        Args:
            now: The clock.
            retry_after: Seconds that the server asked us to wait.
        """
        if self.ended:
            return
        self.failures += 1
        pause = min(self._most, self._pause(now) * 2.0 ** min(self.failures, 30))
        self.next_look = now + max(pause, retry_after or 0.0)

    def look_now(self, now: float) -> None:
        """Look at once: something was done to the batch."""
        if not self.ended:
            self.next_look = now

    @property
    def phase(self) -> str:
        """Where it is, in OpenAI's words; `submitted` before the first look."""
        return "submitted" if self.state is None else self.state.phase

    @property
    def share(self) -> float:
        """Share of its rows that were worked on, from 0 to 1."""
        state = self.state
        if state is None or not state.total:
            return 0.0
        return min(1.0, state.done / state.total)

    def _pause(self, now: float) -> float:
        return min(self._most, max(self._first, _SHARE * (now - self._submitted)))


def _rank(state: BatchState) -> int:
    return _ENDED if state.ended else _ORDER[state.phase]
